//! A whole query as one LakeScan, with what Postgres has to do above it: finish expressions, filter groups, sort, limit.
//!
//! The plan against the source stays beside it (`custom_plans`), together with its range table, so that privileges,
//! locks and invalidation are those of the source, and any failure can still be answered.

use std::collections::HashMap;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use crate::deparse::query::constant_limit;
use crate::deparse::{Deparser, NotSent};
use crate::finish::Finisher;
use crate::lake_plan::{LakePlan, Output, Sql};
use crate::{node, tree};

/// How a query is split.
pub(crate) struct Whole {
    plan: LakePlan,
    columns: Vec<crate::finish::Column>,
    values: Vec<*mut pg_sys::Expr>,
    targets: *mut pg_sys::List,
    qual: *mut pg_sys::List,
    sorts: bool,
    limits: bool,
    query: *mut pg_sys::Query,
}

impl Whole {
    /// Whether Postgres applies the LIMIT: then the heap's plan must not.
    pub(crate) fn limits(&self) -> bool {
        self.limits
    }

    /// The query was on the sources' own names: nobody hears of a lake that cannot answer.
    pub(crate) fn transparent(mut self) -> Self {
        self.plan.transparent = true;
        self
    }

    /// Splits a query.
    ///
    /// # Safety
    /// `query` is a query tree of our own with the markers in it.
    pub(crate) unsafe fn split(
        query: *mut pg_sys::Query,
        sources: &[u32],
        parameters: pg_sys::ParamListInfo,
    ) -> Result<Self, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let mut deparser = Deparser::new(parameters);
            deparser.open(query)?;
            let body = deparser.body(query)?;
            let distinct = deparser.distinct_word(query)?;
            let is_distinct = !distinct.0.is_empty();
            let mut finisher = Finisher::new(&mut deparser);
            let Targets { targets, numbers, mut not_pushed } = Targets::of(query, &mut finisher, is_distinct)?;
            let mut qual = std::ptr::null_mut();
            let mut having = Sql::default();
            if !(*query).havingQual.is_null() {
                let mark = finisher.deparser.mark();
                match finisher.deparser.condition((*query).havingQual) {
                    Ok(condition) => having = Sql::from(" HAVING ") + condition,
                    Err(reason) if (*query).hasWindowFuncs => return Err(reason),
                    Err(reason) => {
                        not_pushed.push(reason.0);
                        finisher.deparser.reset(mark);
                        let finished = finisher.finish((*query).havingQual)?;
                        qual = if tree::tag(finished) == NodeTag::T_List {
                            finished.cast()
                        } else {
                            pg_sys::make_ands_implicit(finished.cast())
                        };
                    }
                }
            }
            let columns = finisher.columns;
            if is_distinct && !qual.is_null() {
                return NotSent::because("DISTINCT over groups that Postgres has to filter");
            }
            let order = deparser.order(query, &|resno| numbers.get(&resno).copied());
            if (*query).hasDistinctOn {
                // Which row is the first one is told by the order.
                order.clone()?;
            }
            not_pushed.extend(order.as_ref().err().map(|reason| reason.0.clone()));
            let sorts = order.is_err();
            let limit = constant_limit(query);
            let limited = !(*query).limitCount.is_null() || !(*query).limitOffset.is_null();
            for bound in [(*query).limitCount, (*query).limitOffset] {
                if tree::any(bound, &mut |node| tree::tag(node) == NodeTag::T_SubLink) {
                    return NotSent::because("LIMIT by a sub-query");
                }
            }
            let limits = limited && (sorts || !qual.is_null() || limit.is_err());
            let names: Vec<Sql> = columns
                .iter()
                .enumerate()
                .map(|(index, column)| column.sql.clone() + &format!(" AS c{}", index + 1))
                .collect();
            let names = if names.is_empty() { Sql::from("1 AS c1") } else { Sql::join(names, ", ") };
            let mut sql = deparser.shared_ctes() + "SELECT " + distinct + names + body.from + body.group + having;
            if let Ok(order) = order {
                sql = sql + order;
            }
            if let (Ok(limit), false) = (limit, limits) {
                sql = sql + &limit;
            }
            let outputs = columns
                .iter()
                .enumerate()
                .map(|(place, column)| Output { place, type_oid: column.oid.to_u32(), typmod: column.typmod })
                .collect();
            let Deparser { tables, values, throws, utc, .. } = deparser;
            let sources = sources.to_vec();
            let plan = LakePlan {
                sql,
                tables,
                sources,
                outputs,
                throws,
                utc,
                heap_jit: 0,
                not_pushed,
                transparent: false,
                alone: true,
                mixed: false,
            };
            let targets = tree::list_of(&targets);
            Ok(Self { plan, columns, values, targets, qual, sorts, limits, query })
        }
    }

    /// Puts the scan, and what is above it, into the plan against the source.
    ///
    /// # Safety
    /// `stmt` is that plan, of our own.
    pub(crate) unsafe fn install(mut self, stmt: *mut pg_sys::PlannedStmt) {
        // SAFETY: nodes are made zeroed and filled; lists are of fresh nodes.
        unsafe {
            let heap = (*stmt).planTree;
            self.plan.heap_jit = std::mem::take(&mut (*stmt).jitFlags);
            let scan = tree::make::<pg_sys::CustomScan>(NodeTag::T_CustomScan);
            let plan = &raw mut (*scan).scan.plan;
            copy_costs(plan, heap);
            (*plan).targetlist = self.targets;
            (*plan).qual = self.qual;
            pg_sys::fix_opfuncids((*plan).targetlist.cast());
            pg_sys::fix_opfuncids((*plan).qual.cast());
            (*scan).custom_plans = tree::list_of(&[heap]);
            let values: Vec<*mut pg_sys::Expr> =
                self.values.iter().map(|value| pg_sys::expression_planner(*value)).collect();
            (*scan).custom_exprs = tree::list_of(&values);
            (*scan).custom_private = self.plan.to_private();
            let scanned: Vec<*mut pg_sys::TargetEntry> = self
                .columns
                .iter()
                .enumerate()
                .map(|(index, column)| {
                    let null = pg_sys::makeNullConst(column.oid, column.typmod, column.collation);
                    let number = i16::try_from(index + 1).unwrap_or(i16::MAX);
                    pg_sys::makeTargetEntry(null.cast(), number, std::ptr::null_mut(), false)
                })
                .collect();
            (*scan).custom_scan_tlist = tree::list_of(&scanned);
            (*scan).methods = node::scan_methods();
            let mut top: *mut pg_sys::Plan = scan.cast();
            if self.sorts {
                top = self.sort(top);
            }
            if self.limits {
                top = self.limit(top);
            }
            (*stmt).planTree = top;
            (*stmt).parallelModeNeeded = false;
        }
    }

    unsafe fn sort(&self, child: *mut pg_sys::Plan) -> *mut pg_sys::Plan {
        // SAFETY: the caller passes the scan of this query; arrays are palloc'd with a place for each key.
        unsafe {
            let clauses = tree::items::<pg_sys::SortGroupClause>((*self.query).sortClause);
            let sort = tree::make::<pg_sys::Sort>(NodeTag::T_Sort);
            copy_costs(&raw mut (*sort).plan, child);
            (*sort).plan.lefttree = child;
            (*sort).plan.targetlist = outer_targets((*child).targetlist);
            let count = clauses.len();
            (*sort).numCols = i32::try_from(count).unwrap_or(0);
            (*sort).sortColIdx = pg_sys::palloc0(count * size_of::<i16>()).cast();
            (*sort).sortOperators = pg_sys::palloc0(count * size_of::<pg_sys::Oid>()).cast();
            (*sort).collations = pg_sys::palloc0(count * size_of::<pg_sys::Oid>()).cast();
            (*sort).nullsFirst = pg_sys::palloc0(count).cast();
            for (index, clause) in clauses.into_iter().enumerate() {
                let entry = pg_sys::get_sortgroupclause_tle(clause, (*self.query).targetList);
                *(*sort).sortColIdx.add(index) = (*entry).resno;
                *(*sort).sortOperators.add(index) = (*clause).sortop;
                *(*sort).collations.add(index) = pg_sys::exprCollation((*entry).expr.cast());
                *(*sort).nullsFirst.add(index) = (*clause).nulls_first;
            }
            sort.cast()
        }
    }

    unsafe fn limit(&self, child: *mut pg_sys::Plan) -> *mut pg_sys::Plan {
        // SAFETY: the caller passes the plan of this query without its LIMIT.
        unsafe {
            let limit = tree::make::<pg_sys::Limit>(NodeTag::T_Limit);
            copy_costs(&raw mut (*limit).plan, child);
            (*limit).plan.lefttree = child;
            (*limit).plan.targetlist = outer_targets((*child).targetlist);
            let planned = |node: *mut pg_sys::Node| {
                if node.is_null() { node } else { pg_sys::expression_planner(tree::copy(node).cast()).cast() }
            };
            (*limit).limitCount = planned((*self.query).limitCount);
            (*limit).limitOffset = planned((*self.query).limitOffset);
            (*limit).limitOption = pg_sys::LimitOption::LIMIT_OPTION_COUNT;
            limit.cast()
        }
    }
}

/// The outputs of a query, over the columns of its scan.
struct Targets {
    targets: Vec<*mut pg_sys::TargetEntry>,
    /// The column of each output that is one.
    numbers: HashMap<i16, usize>,
    not_pushed: Vec<String>,
}

impl Targets {
    /// Sends what can be sent of each output. All of them must be where they are `distinct`.
    unsafe fn of(query: *mut pg_sys::Query, finisher: &mut Finisher<'_>, distinct: bool) -> Result<Self, NotSent> {
        let (mut targets, mut numbers, mut not_pushed) = (Vec::new(), HashMap::new(), Vec::new());
        // SAFETY: the caller passes the query of the finisher's scope.
        unsafe {
            for entry in tree::items::<pg_sys::TargetEntry>((*query).targetList) {
                let node = (*entry).expr.cast();
                let finished = if (*entry).resjunk && !sorts_by(query, entry) {
                    // A key of a window or group: nobody above looks at it.
                    let (typmod, collation) = (pg_sys::exprTypmod(node), pg_sys::exprCollation(node));
                    pg_sys::makeNullConst(pg_sys::exprType(node), typmod, collation).cast()
                } else {
                    match finisher.send(node) {
                        Ok((var, number)) => {
                            numbers.insert((*entry).resno, number);
                            var
                        }
                        Err(reason) if distinct => return Err(reason),
                        Err(reason) => {
                            not_pushed.push(reason.0);
                            finisher.finish(node)?
                        }
                    }
                };
                let target = tree::copy(entry);
                (*target).expr = finished.cast();
                targets.push(target);
            }
        }
        Ok(Self { targets, numbers, not_pushed })
    }
}

/// Whether the query's order looks at a target.
unsafe fn sorts_by(query: *mut pg_sys::Query, entry: *mut pg_sys::TargetEntry) -> bool {
    // SAFETY: the caller passes a target of the query.
    unsafe {
        tree::items::<pg_sys::SortGroupClause>((*query).sortClause)
            .into_iter()
            .any(|clause| (*clause).tleSortGroupRef == (*entry).ressortgroupref)
    }
}

/// Variables for each of a child's targets.
unsafe fn outer_targets(targets: *mut pg_sys::List) -> *mut pg_sys::List {
    // SAFETY: the caller passes a target list.
    unsafe {
        let mapped: Vec<*mut pg_sys::TargetEntry> = tree::items::<pg_sys::TargetEntry>(targets)
            .into_iter()
            .map(|target| {
                let node = (*target).expr.cast();
                let outer = tree::make::<pg_sys::TargetEntry>(NodeTag::T_TargetEntry);
                *outer = *target;
                (*outer).expr = pg_sys::makeVar(
                    pg_sys::OUTER_VAR,
                    (*target).resno,
                    pg_sys::exprType(node),
                    pg_sys::exprTypmod(node),
                    pg_sys::exprCollation(node),
                    0,
                )
                .cast();
                outer
            })
            .collect();
        tree::list_of(&mapped)
    }
}

/// The estimates of one plan for another.
unsafe fn copy_costs(to: *mut pg_sys::Plan, from: *mut pg_sys::Plan) {
    // SAFETY: the caller passes two plans.
    unsafe {
        (*to).startup_cost = (*from).startup_cost;
        (*to).total_cost = (*from).total_cost;
        (*to).plan_rows = (*from).plan_rows;
        (*to).plan_width = (*from).plan_width;
        (*to).plan_node_id = (*from).plan_node_id;
    }
}

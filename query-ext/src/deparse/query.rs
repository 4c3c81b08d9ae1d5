//! Queries: FROM, joins, sub-queries, order and limit.

use std::collections::HashMap;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::aggregate::sortable;
use super::number::common_decimal;
use super::operator::built_in;
use super::{Column, Columns, Deparser, NotSent, Scope, SourceKind, Typed, orders_exactly};
use crate::lake_plan::Sql;
use crate::{marker, tree};

/// A query's clauses but its columns, order and limit.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// ` FROM … WHERE …`.
    pub(crate) from: Sql,
    /// ` GROUP BY …`.
    pub(crate) group: Sql,
}

impl Deparser {
    /// Opens a query's scope: checks what is never sent, and prepares its expressions in place.
    ///
    /// # Safety
    /// `query` is a query tree of our own, which this may change.
    pub(crate) unsafe fn open(&mut self, query: *mut pg_sys::Query) -> Result<(), NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let q = &mut *query;
            let refused = [
                (q.commandType != pg_sys::CmdType::CMD_SELECT, "a command that is not SELECT"),
                (q.hasTargetSRFs, "a set-returning function"),
                (q.hasForUpdate || !q.rowMarks.is_null(), "row locks"),
                (q.limitOption != pg_sys::LimitOption::LIMIT_OPTION_COUNT, "FETCH … WITH TIES"),
            ];
            if let Some((_, reason)) = refused.iter().find(|(refused, _)| *refused) {
                return NotSent::because(*reason);
            }
            q.targetList = self.prepared(query, q.targetList.cast()).cast();
            q.havingQual = self.prepared(query, q.havingQual);
            self.scopes.push(Scope { query, sources: HashMap::new() });
            Ok(())
        }
    }

    /// Join aliases and the like replaced by what they stand for, constants folded: as the planner does it.
    unsafe fn prepared(&self, query: *mut pg_sys::Query, node: *mut pg_sys::Node) -> *mut pg_sys::Node {
        // SAFETY: the caller passes an expression of the query, or a list of them.
        unsafe {
            let flat = crate::version::flattened(query, node);
            pg_sys::eval_const_expressions(std::ptr::null_mut(), flat)
        }
    }

    /// Closes the innermost scope.
    pub(crate) fn close(&mut self) {
        self.scopes.pop();
    }

    /// FROM, WHERE and GROUP BY of the innermost scope.
    ///
    /// # Safety
    /// `query` is the query of the innermost scope.
    pub(crate) unsafe fn body(&mut self, query: *mut pg_sys::Query) -> Result<Body, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            if !(*query).setOperations.is_null() {
                let from = self.set_operation(query)?;
                return Ok(Body { from, group: Sql::default() });
            }
            let join_tree = (*query).jointree;
            let items = tree::items::<pg_sys::Node>((*join_tree).fromlist)
                .into_iter()
                .map(|item| self.item_of_from(query, item))
                .collect::<Result<Vec<_>, NotSent>>()?;
            let mut from = if items.is_empty() { Sql::default() } else { Sql::from(" FROM ") + Sql::join(items, ", ") };
            if !(*join_tree).quals.is_null() {
                let quals = self.prepared(query, (*join_tree).quals);
                from = from + " WHERE " + self.condition(quals)?;
                self.note_conditions(quals);
            }
            let group = self.group_by(query)?;
            Ok(Body { from, group })
        }
    }

    /// A condition, which may be an implicit AND list.
    ///
    /// # Safety
    /// `node` is an expression of the innermost scope, or a list of them.
    pub(crate) unsafe fn condition(&mut self, node: *mut pg_sys::Node) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes an expression or a list of them.
        unsafe {
            if tree::tag(node) != NodeTag::T_List {
                return Ok(self.expression(node)?.sql);
            }
            let parts = tree::items::<pg_sys::Node>(node.cast())
                .into_iter()
                .map(|part| Ok(self.expression(part)?.sql))
                .collect::<Result<Vec<_>, NotSent>>()?;
            Ok(Sql::join(parts, " AND "))
        }
    }

    unsafe fn item_of_from(&mut self, query: *mut pg_sys::Query, item: *mut pg_sys::Node) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes a node of the join tree.
        unsafe {
            match tree::tag(item) {
                NodeTag::T_RangeTblRef => {
                    let number = (*item.cast::<pg_sys::RangeTblRef>()).rtindex;
                    self.range(number, tree::rte((*query).rtable, number))
                }
                NodeTag::T_JoinExpr => {
                    let join = &*item.cast::<pg_sys::JoinExpr>();
                    let word = match join.jointype {
                        pg_sys::JoinType::JOIN_INNER => " JOIN ",
                        pg_sys::JoinType::JOIN_LEFT => " LEFT JOIN ",
                        pg_sys::JoinType::JOIN_RIGHT => " RIGHT JOIN ",
                        pg_sys::JoinType::JOIN_FULL => " FULL JOIN ",
                        _ => return NotSent::because("this kind of join"),
                    };
                    let left = self.item_of_from(query, join.larg)?;
                    let right = self.item_of_from(query, join.rarg)?;
                    let quals = if join.quals.is_null() {
                        Sql::from("true")
                    } else {
                        let quals = self.prepared(query, join.quals);
                        let condition = self.condition(quals)?;
                        if join.jointype == pg_sys::JoinType::JOIN_INNER {
                            self.note_conditions(quals);
                        }
                        condition
                    };
                    Ok(Sql::from("(") + left + word + right + " ON " + quals + ")")
                }
                other => NotSent::because(format!("{other:?} in FROM")),
            }
        }
    }

    unsafe fn range(&mut self, number: i32, rte: *mut pg_sys::RangeTblEntry) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes an entry of the innermost scope.
        unsafe {
            if !(*rte).tablesample.is_null() {
                return NotSent::because("TABLESAMPLE");
            }
            let inner = match (*rte).rtekind {
                pg_sys::RTEKind::RTE_RELATION if marker::is_marker(rte) => {
                    return Ok(self.add_table(number, (*rte).relid));
                }
                pg_sys::RTEKind::RTE_SUBQUERY => (*rte).subquery,
                pg_sys::RTEKind::RTE_CTE => return self.cte(number, rte),
                pg_sys::RTEKind::RTE_VALUES => return self.values_list(number, rte),
                _ => return NotSent::because("something in FROM that is no mirrored table"),
            };
            let (sql, columns) = self.source_query(inner)?;
            let alias = self.add_source(number, SourceKind::Columns(columns));
            let lateral = if (*rte).lateral { "LATERAL (" } else { "(" };
            Ok(Sql::from(lateral) + sql + &format!(") AS {alias}"))
        }
    }

    /// `VALUES` in FROM.
    unsafe fn values_list(&mut self, number: i32, rte: *mut pg_sys::RangeTblEntry) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes a VALUES entry of the innermost scope.
        unsafe {
            let types = tree::oids((*rte).coltypes);
            let mut values: Vec<Vec<Typed>> = vec![Vec::new(); types.len()];
            for row in tree::items::<pg_sys::List>((*rte).values_lists) {
                for (column, node) in values.iter_mut().zip(tree::items::<pg_sys::Node>(row)) {
                    let node = pg_sys::eval_const_expressions(std::ptr::null_mut(), node);
                    column.push(self.expression(node)?);
                }
            }
            let rows = values.first().map_or(0, Vec::len);
            let mut columns = Columns::new();
            for (column, oid) in values.iter_mut().zip(types) {
                if column.iter().any(|value| value.oid != oid || value.unshown) {
                    return NotSent::because("VALUES of different types");
                }
                let decimal = common_decimal(column, oid)?;
                for value in column.iter_mut() {
                    value.decimal = decimal;
                }
                columns.push(Column { oid, decimal, unshown: false, left_out: None });
            }
            let mut written = Vec::new();
            for row in 0..rows {
                let cells =
                    values.iter().map(|column| column[row].clone().exact()).collect::<Result<Vec<_>, NotSent>>()?;
                written.push(Sql::from("(") + Sql::join(cells, ", ") + ")");
            }
            let names: Vec<String> = (1..=columns.len()).map(|number| format!("c{number}")).collect();
            let alias = self.add_source(number, SourceKind::Columns(columns));
            Ok(Sql::from("(VALUES ") + Sql::join(written, ", ") + &format!(") AS {alias}({})", names.join(", ")))
        }
    }

    /// A whole query whose columns are `c1`, `c2`…
    ///
    /// # Safety
    /// `query` is a query tree of our own.
    pub(super) unsafe fn sub_query(&mut self, query: *mut pg_sys::Query) -> Result<(Sql, Columns), NotSent> {
        // SAFETY: per the contract.
        unsafe { self.query_of_columns(query, false) }
    }

    /// The same, of which only the columns count that somebody refers to by name. Those that cannot be sent are left out, as
    /// Postgres leaves out those that nobody refers to.
    ///
    /// # Safety
    /// `query` is a query tree of our own.
    pub(super) unsafe fn source_query(&mut self, query: *mut pg_sys::Query) -> Result<(Sql, Columns), NotSent> {
        // SAFETY: per the contract.
        unsafe { self.query_of_columns(query, true) }
    }

    unsafe fn query_of_columns(
        &mut self,
        query: *mut pg_sys::Query,
        leaves_out: bool,
    ) -> Result<(Sql, Columns), NotSent> {
        // SAFETY: the callers pass a query tree of our own.
        unsafe {
            self.open(query)?;
            let body = self.body(query)?;
            let mut columns = Vec::new();
            let mut outputs = Vec::new();
            let targets = tree::items::<pg_sys::TargetEntry>((*query).targetList).into_iter();
            for (index, entry) in targets.filter(|entry| !(**entry).resjunk).enumerate() {
                let mark = (leaves_out && can_be_left_out(query, entry)).then(|| self.mark());
                let (column, sql) = match (self.output((*entry).expr.cast()), mark) {
                    (Ok(output), _) => output,
                    (Err(NotSent(reason)), Some(mark)) => {
                        self.reset(mark);
                        self.left_out.push(reason);
                        let left_out = Some(self.left_out.len() - 1);
                        let oid = pg_sys::exprType((*entry).expr.cast());
                        (Column { oid, decimal: None, unshown: false, left_out }, Sql::from("NULL"))
                    }
                    (Err(error), None) => return Err(error),
                };
                columns.push(column);
                outputs.push(sql + &format!(" AS c{}", index + 1));
            }
            let having = if (*query).havingQual.is_null() {
                Sql::default()
            } else {
                Sql::from(" HAVING ") + self.condition((*query).havingQual)?
            };
            let distinct = self.distinct_word(query)?;
            let order =
                self.order(query, &|resno| usize::try_from(resno).ok().filter(|resno| *resno <= columns.len()))?;
            let limit = constant_limit(query)?;
            self.close();
            let outputs = if outputs.is_empty() { Sql::from("1 AS c1") } else { Sql::join(outputs, ", ") };
            let sql = Sql::from("SELECT ") + distinct + outputs + body.from + body.group + having + order;
            Ok((sql + &limit, columns))
        }
    }

    unsafe fn output(&mut self, node: *mut pg_sys::Node) -> Result<(Column, Sql), NotSent> {
        // SAFETY: the caller passes an expression of the innermost scope.
        let typed = unsafe { self.expression(node)? };
        let column = Column { oid: typed.oid, decimal: typed.decimal, unshown: typed.unshown, left_out: None };
        Ok((column, typed.exact()?))
    }

    /// ` ORDER BY …`, by the numbers of the columns, which `number` knows.
    ///
    /// # Safety
    /// `query` is the query of the innermost scope.
    pub(crate) unsafe fn order(
        &mut self,
        query: *mut pg_sys::Query,
        number: &dyn Fn(i16) -> Option<usize>,
    ) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let mut keys = Vec::new();
            for clause in tree::items::<pg_sys::SortGroupClause>((*query).sortClause) {
                let entry = pg_sys::get_sortgroupclause_tle(clause, (*query).targetList);
                let node = (*entry).expr.cast();
                if !orders_exactly(pg_sys::exprType(node), pg_sys::exprCollation(node)) {
                    return NotSent::because(
                        "ORDER BY by a linguistic collation, or of a type that is not on the list",
                    );
                }
                if (*entry).resjunk && number((*entry).resno).is_none() {
                    keys.push(sortable(self.expression(node)?) + direction(clause)?);
                    continue;
                }
                let Some(number) = number((*entry).resno) else {
                    return NotSent::because("ORDER BY of what Postgres has to compute");
                };
                let key = match pg_sys::exprType(node) {
                    pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => sortable(self.expression(node)?),
                    _ => Sql::from(number.to_string()),
                };
                keys.push(key + direction(clause)?);
            }
            Ok(if keys.is_empty() { Sql::default() } else { Sql::from(" ORDER BY ") + Sql::join(keys, ", ") })
        }
    }
}

/// Whether a query gives the same rows without a column: as Postgres does it (`remove_unused_subquery_outputs`), but without
/// counting on the planner where the column is what makes the query an aggregate.
///
/// # Safety
/// `entry` is of the target list of `query`, which is no set operation.
unsafe fn can_be_left_out(query: *mut pg_sys::Query, entry: *mut pg_sys::TargetEntry) -> bool {
    // SAFETY: per the contract.
    unsafe {
        let node = (*entry).expr.cast();
        (*query).distinctClause.is_null()
            && (*query).setOperations.is_null()
            && (*entry).ressortgroupref == 0
            && !pg_sys::contain_aggs_of_level(node, 0)
            && !pg_sys::contain_windowfuncs(node)
            && !pg_sys::contain_volatile_functions(node)
    }
}

/// ` ASC NULLS LAST` and its kin.
///
/// # Safety
/// `clause` is of a query tree.
pub(super) unsafe fn direction(clause: *mut pg_sys::SortGroupClause) -> Result<&'static str, NotSent> {
    // SAFETY: per the contract.
    unsafe {
        Ok(match (built_in((*clause).sortop)?.as_str(), (*clause).nulls_first) {
            ("<", false) => " ASC NULLS LAST",
            ("<", true) => " ASC NULLS FIRST",
            (">", false) => " DESC NULLS LAST",
            (">", true) => " DESC NULLS FIRST",
            (name, _) => return NotSent::because(format!("ORDER BY USING {name}")),
        })
    }
}

/// ` LIMIT … OFFSET …` when both are constants.
///
/// # Safety
/// `query` is a query tree.
pub(crate) unsafe fn constant_limit(query: *mut pg_sys::Query) -> Result<String, NotSent> {
    // SAFETY: per the contract; the casts are to the struct of the tag.
    unsafe {
        let mut sql = String::new();
        for (node, word) in [((*query).limitCount, "LIMIT"), ((*query).limitOffset, "OFFSET")] {
            let node = pg_sys::eval_const_expressions(std::ptr::null_mut(), node);
            if node.is_null() {
                continue;
            }
            if tree::tag(node) != NodeTag::T_Const {
                return NotSent::because(format!("{word} by an expression"));
            }
            let constant = &*node.cast::<pg_sys::Const>();
            if constant.constisnull {
                continue;
            }
            let rows = constant.constvalue.value().cast_signed();
            if rows < 0 {
                return NotSent::because(format!("a negative {word}"));
            }
            sql.push_str(&format!(" {word} {rows}"));
        }
        Ok(sql)
    }
}

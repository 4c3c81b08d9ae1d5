//! GROUP BY, grouping sets, and DISTINCT.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::{Deparser, NotSent, Typed, groups_exactly, type_name};
use crate::lake_plan::Sql;
use crate::{tree, version};

/// Sets that a GROUP BY may come to.
const MOST_SETS: i32 = 256;

impl Deparser {
    /// ` GROUP BY …` of the innermost scope.
    ///
    /// # Safety
    /// `query` is the query of the innermost scope, its target list prepared.
    pub(super) unsafe fn group_by(&mut self, query: *mut pg_sys::Query) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            if !(*query).groupingSets.is_null() {
                return self.grouping_sets(query);
            }
            let mut keys = Vec::new();
            for clause in tree::items::<pg_sys::SortGroupClause>((*query).groupClause) {
                keys.push(self.group_key(query, (*clause).tleSortGroupRef)?);
            }
            if !(*query).constraintDeps.is_null() {
                self.add_dependent(query, &mut keys)?;
            }
            Ok(if keys.is_empty() { Sql::default() } else { Sql::from(" GROUP BY ") + Sql::join(keys, ", ") })
        }
    }

    unsafe fn group_key(&mut self, query: *mut pg_sys::Query, number: u32) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes the number of a target of the query.
        unsafe {
            let node = (*pg_sys::get_sortgroupref_tle(number, (*query).targetList)).expr.cast();
            let key = self.expression(node)?;
            if !groups_exactly(key.oid, pg_sys::exprCollation(node)) {
                return NotSent::because(format!("GROUP BY of {}", type_name(key.oid)));
            }
            Ok(key.sql)
        }
    }

    /// Columns that the primary key among the keys tells: to DuckDB they are keys too, and make no more groups.
    unsafe fn add_dependent(&mut self, query: *mut pg_sys::Query, keys: &mut Vec<Sql>) -> Result<(), NotSent> {
        // SAFETY: the caller passes the query of the innermost scope; without sub-queries all variables are its own.
        unsafe {
            if (*query).hasSubLinks || (*query).hasWindowFuncs {
                return NotSent::because("GROUP BY a primary key, with sub-queries or window functions");
            }
            let aggregates = pg_sys::PVC_INCLUDE_AGGREGATES.cast_signed();
            for part in [(*query).targetList.cast(), (*query).havingQual] {
                // What looks for variables raises when it meets those of an outer query.
                if tree::any(part, &mut |node| is_outer(node)) {
                    return NotSent::because("GROUP BY a primary key, with columns of an outer query");
                }
                for node in tree::items::<pg_sys::Node>(pg_sys::pull_var_clause(part, aggregates)) {
                    if tree::tag(node) == NodeTag::T_Var {
                        let column = self.expression(node)?.sql;
                        if !keys.contains(&column) {
                            keys.push(column);
                        }
                    }
                }
            }
            Ok(())
        }
    }

    /// `GROUPING SETS`, with ROLLUP and CUBE written out.
    unsafe fn grouping_sets(&mut self, query: *mut pg_sys::Query) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes the query of the innermost scope; the sets are lists of numbers of its targets.
        unsafe {
            let sets = version::grouping_sets(query, MOST_SETS);
            let Some(sets) = sets else { return NotSent::because("grouping sets") };
            let mut written = Vec::new();
            for set in sets {
                let keys = set
                    .into_iter()
                    .map(|number| self.group_key(query, u32::try_from(number).unwrap_or(0)))
                    .collect::<Result<Vec<_>, NotSent>>()?;
                written.push(Sql::from("(") + Sql::join(keys, ", ") + ")");
            }
            Ok(Sql::from(" GROUP BY GROUPING SETS (") + Sql::join(written, ", ") + ")")
        }
    }

    /// `GROUPING(…)`.
    ///
    /// # Safety
    /// `grouping` is a GroupingFunc of the innermost scope.
    pub(super) unsafe fn grouping(&mut self, grouping: *mut pg_sys::GroupingFunc) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            if (*grouping).agglevelsup > 0 {
                return NotSent::because("GROUPING of an outer query");
            }
            let args = tree::items::<pg_sys::Node>((*grouping).args)
                .into_iter()
                .map(|node| Ok(self.expression(node)?.sql))
                .collect::<Result<Vec<_>, NotSent>>()?;
            let sql = Sql::from("CAST(GROUPING(") + Sql::join(args, ", ") + ") AS INTEGER)";
            Ok(Typed::new(sql, pg_sys::INT4OID, None))
        }
    }

    /// `DISTINCT ` or `DISTINCT ON (…) `, if the query has it and its columns can.
    ///
    /// # Safety
    /// `query` is the query of the innermost scope.
    pub(crate) unsafe fn distinct_word(&mut self, query: *mut pg_sys::Query) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let mut keys = Vec::new();
            for clause in tree::items::<pg_sys::SortGroupClause>((*query).distinctClause) {
                let node = (*pg_sys::get_sortgroupclause_tle(clause, (*query).targetList)).expr.cast();
                if !groups_exactly(pg_sys::exprType(node), pg_sys::exprCollation(node)) {
                    return NotSent::because(format!("DISTINCT of {}", type_name(pg_sys::exprType(node))));
                }
                if (*query).hasDistinctOn {
                    keys.push(self.expression(node)?.sql);
                }
            }
            Ok(match ((*query).distinctClause.is_null(), (*query).hasDistinctOn) {
                (true, _) => Sql::default(),
                (false, false) => "DISTINCT ".into(),
                (false, true) => Sql::from("DISTINCT ON (") + Sql::join(keys, ", ") + ") ",
            })
        }
    }
}

/// Whether a node is of an outer query.
fn is_outer(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the walker hands out nodes; the casts are to the struct of the tag.
    unsafe {
        match tree::tag(node) {
            NodeTag::T_Var => (*node.cast::<pg_sys::Var>()).varlevelsup > 0,
            NodeTag::T_Aggref => (*node.cast::<pg_sys::Aggref>()).agglevelsup > 0,
            NodeTag::T_GroupingFunc => (*node.cast::<pg_sys::GroupingFunc>()).agglevelsup > 0,
            _ => false,
        }
    }
}

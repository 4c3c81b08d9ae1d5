//! WITH: written out where it is used, for nothing that is sent is volatile. A recursive one is a query of its own there, and one of the
//! whole query that is used more than once is DuckDB's WITH too, so that it is computed once.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::{Columns, Deparser, NotSent, Recursive, Shared, SourceKind, groups_exactly};
use crate::lake_plan::Sql;
use crate::tree;

impl Deparser {
    /// A CTE in FROM.
    ///
    /// # Safety
    /// `rte` is a CTE's entry, with this number, of the innermost scope.
    pub(super) unsafe fn cte(&mut self, number: i32, rte: *mut pg_sys::RangeTblEntry) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let level = usize::try_from((*rte).ctelevelsup).unwrap_or(usize::MAX);
            if (*rte).self_reference {
                let name = CStr::from_ptr((*rte).ctename);
                let found = self.recursive.iter().rev().find(|of| CStr::from_ptr((*of.cte).ctename) == name);
                let Some((alias, columns)) = found.map(|of| (of.alias.clone(), of.columns.clone())) else {
                    return NotSent::because("WITH RECURSIVE");
                };
                let own = self.add_source(number, SourceKind::Columns(columns));
                return Ok(Sql::from(format!("{alias} AS {own}")));
            }
            let Some(index) = self.scopes.len().checked_sub(level.saturating_add(1)) else {
                return NotSent::because("a CTE that is not there");
            };
            let owner = self.scopes[index].query;
            for cte in tree::items::<pg_sys::CommonTableExpr>((*owner).cteList) {
                if CStr::from_ptr((*cte).ctename) != CStr::from_ptr((*rte).ctename) {
                    continue;
                }
                if (*cte).cterecursive && self.scopes.iter().any(|scope| !(*scope.query).limitCount.is_null()) {
                    return NotSent::because("WITH RECURSIVE under a LIMIT, which may end it");
                }
                // Around the outermost query is nothing that it could refer to, so one text is right for all its uses.
                let shares = index == 0
                    && (*cte).cterefcount > 1
                    && !(*cte).cterecursive
                    && (*cte).ctematerialized != pg_sys::CTEMaterialize::CTEMaterializeNever;
                if let Some(known) = self.shared.iter().find(|shared| shared.cte == cte).filter(|_| shares) {
                    let (name, columns) = (known.name.clone(), known.columns.clone());
                    let alias = self.add_source(number, SourceKind::Columns(columns));
                    return Ok(Sql::from(format!("{name} AS {alias}")));
                }
                // It sees the scopes around its WITH, not those around its use.
                let hidden = self.scopes.split_off(index + 1);
                let outcome = if (*cte).cterecursive {
                    self.recursion(cte)
                } else {
                    self.source_query(tree::copy((*cte).ctequery.cast()))
                };
                self.scopes.truncate(index + 1);
                self.scopes.extend(hidden);
                let (sql, columns) = outcome?;
                let alias = self.add_source(number, SourceKind::Columns(columns.clone()));
                if shares {
                    let name = format!("w{}", self.alias());
                    self.shared.push(Shared { cte, name: name.clone(), columns, sql });
                    return Ok(Sql::from(format!("{name} AS {alias}")));
                }
                return Ok(Sql::from("(") + sql + &format!(") AS {alias}"));
            }
            NotSent::because("a CTE that is not there")
        }
    }

    /// `WITH …`, of what is used more than once; each after those that it uses.
    pub(crate) fn shared_ctes(&self) -> Sql {
        let parts: Vec<Sql> = self
            .shared
            .iter()
            .map(|shared| Sql::from(format!("{} AS (", shared.name)) + shared.sql.clone() + ")")
            .collect();
        if parts.is_empty() { Sql::default() } else { Sql::from("WITH ") + Sql::join(parts, ", ") + " " }
    }

    /// A recursive CTE.
    unsafe fn recursion(&mut self, cte: *mut pg_sys::CommonTableExpr) -> Result<(Sql, Columns), NotSent> {
        // SAFETY: the caller passes a recursive CTE, whose query is the union of two.
        unsafe {
            let query = tree::copy((*cte).ctequery.cast::<pg_sys::Query>());
            let q = &*query;
            let union = q.setOperations.cast::<pg_sys::SetOperationStmt>();
            let plain = tree::tag(union) == NodeTag::T_SetOperationStmt
                && (*union).op == pg_sys::SetOperation::SETOP_UNION
                && q.sortClause.is_null()
                && q.limitCount.is_null()
                && q.limitOffset.is_null()
                && q.cteList.is_null()
                && (*cte).search_clause.is_null()
                && (*cte).cycle_clause.is_null();
            if !plain {
                return NotSent::because("this kind of WITH RECURSIVE");
            }
            self.open(query)?;
            let part = |node: *mut pg_sys::Node| {
                let number = (*node.cast::<pg_sys::RangeTblRef>()).rtindex;
                (tree::tag(node) == NodeTag::T_RangeTblRef).then(|| (*tree::rte(q.rtable, number)).subquery)
            };
            let (Some(first), Some(next)) = (part((*union).larg), part((*union).rarg)) else {
                return NotSent::because("this kind of WITH RECURSIVE");
            };
            let (first, columns) = self.sub_query(first)?;
            let collations = tree::oids((*union).colCollations);
            let grouped = columns.iter().zip(collations).all(|(column, of)| groups_exactly(column.oid, of));
            if !((*union).all || grouped) {
                return NotSent::because("WITH RECURSIVE … UNION of such a type");
            }
            let alias = format!("r{}", self.alias());
            self.recursive.push(Recursive { cte, alias: alias.clone(), columns: columns.clone() });
            let next = self.sub_query(next);
            self.recursive.pop();
            let (next, next_columns) = next?;
            if columns != next_columns {
                return NotSent::because("WITH RECURSIVE with a numeric that changes its scale");
            }
            self.close();
            let names: Vec<String> = (1..=columns.len()).map(|number| format!("c{number}")).collect();
            let all = if (*union).all { " ALL" } else { "" };
            let head = format!("WITH RECURSIVE {alias}({}) AS ((", names.join(", "));
            let sql =
                Sql::from(head) + first + &format!(") UNION{all} (") + next + &format!(")) SELECT * FROM {alias}");
            Ok((sql, columns))
        }
    }
}

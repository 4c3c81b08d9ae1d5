//! Set operations, and sub-queries in expressions: EXISTS, IN and scalar ones.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::expression::truth;
use super::operator::{built_in, comparable};
use super::{Columns, Deparser, NotSent, SourceKind, Typed, groups_exactly, type_name};
use crate::lake_plan::Sql;
use crate::tree;

impl Deparser {
    /// The set operation of the innermost scope as its FROM; its columns are those of the leftmost query.
    ///
    /// # Safety
    /// `query` is the query of the innermost scope.
    pub(super) unsafe fn set_operation(&mut self, query: *mut pg_sys::Query) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes the query of the innermost scope.
        unsafe {
            let types = tree::oids((*(*query).setOperations.cast::<pg_sys::SetOperationStmt>()).colTypes);
            let (sql, columns) = self.set_branch(query, (*query).setOperations, &types)?;
            let mut leftmost = (*query).setOperations;
            while tree::tag(leftmost) == NodeTag::T_SetOperationStmt {
                leftmost = (*leftmost.cast::<pg_sys::SetOperationStmt>()).larg;
            }
            let number = (*leftmost.cast::<pg_sys::RangeTblRef>()).rtindex;
            let alias = self.add_source(number, SourceKind::Columns(columns));
            Ok(Sql::from(" FROM ") + sql + &format!(" AS {alias}"))
        }
    }

    unsafe fn set_branch(
        &mut self,
        query: *mut pg_sys::Query,
        node: *mut pg_sys::Node,
        types: &[pg_sys::Oid],
    ) -> Result<(Sql, Columns), NotSent> {
        // SAFETY: the caller passes a node of the query's set operation.
        unsafe {
            if tree::tag(node) == NodeTag::T_RangeTblRef {
                let rte = tree::rte((*query).rtable, (*node.cast::<pg_sys::RangeTblRef>()).rtindex);
                let (sql, columns) = self.sub_query((*rte).subquery)?;
                return coerced(sql, columns, types);
            }
            let operation = &*node.cast::<pg_sys::SetOperationStmt>();
            let (left, left_columns) = self.set_branch(query, operation.larg, types)?;
            let (right, right_columns) = self.set_branch(query, operation.rarg, types)?;
            if left_columns != right_columns {
                return NotSent::because("a set operation of different types");
            }
            let collations = tree::oids(operation.colCollations);
            if !operation.all || operation.op != pg_sys::SetOperation::SETOP_UNION {
                for (column, collation) in left_columns.iter().zip(collations) {
                    if !groups_exactly(column.oid, collation) {
                        return NotSent::because(format!("a set operation on {}", type_name(column.oid)));
                    }
                }
            }
            let word = match operation.op {
                pg_sys::SetOperation::SETOP_UNION => " UNION ",
                pg_sys::SetOperation::SETOP_INTERSECT => " INTERSECT ",
                pg_sys::SetOperation::SETOP_EXCEPT => " EXCEPT ",
                _ => return NotSent::because("a set operation"),
            };
            let all = if operation.all { "ALL " } else { "" };
            Ok((Sql::from("(") + left + word + all + right + ")", left_columns))
        }
    }

    /// EXISTS, IN and scalar sub-queries.
    ///
    /// # Safety
    /// `link` is a SubLink of the innermost scope.
    pub(super) unsafe fn sub_link(&mut self, link: *mut pg_sys::SubLink) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let inner = tree::copy((*link).subselect.cast::<pg_sys::Query>());
            match (*link).subLinkType {
                pg_sys::SubLinkType::EXISTS_SUBLINK => {
                    let (sql, _) = self.source_query(inner)?;
                    Ok(truth(Sql::from("EXISTS (") + sql + ")"))
                }
                pg_sys::SubLinkType::EXPR_SUBLINK => {
                    let (sql, columns) = self.sub_query(inner)?;
                    let [column] = columns[..] else {
                        return NotSent::because("a sub-query of several columns");
                    };
                    let sql = Sql::from("(") + sql + ")";
                    Ok(Typed { unshown: column.unshown, ..Typed::new(sql, column.oid, column.decimal) })
                }
                pg_sys::SubLinkType::ANY_SUBLINK => {
                    let test = (*link).testexpr;
                    if tree::tag(test) != NodeTag::T_OpExpr {
                        return NotSent::because("IN with several columns");
                    }
                    let test = &*test.cast::<pg_sys::OpExpr>();
                    let operands = tree::items::<pg_sys::Node>(test.args);
                    if built_in(test.opno)? != "=" || operands.len() != 2 {
                        return NotSent::because("ANY with this operator");
                    }
                    if tree::tag(operands[1]) != NodeTag::T_Param {
                        return NotSent::because("IN with a cast of the sub-query's column");
                    }
                    let operand = self.expression(operands[0])?;
                    let (sql, columns) = self.sub_query(inner)?;
                    let [column] = columns[..] else {
                        return NotSent::because("a sub-query of several columns");
                    };
                    let found = Typed::new(Sql::default(), column.oid, column.decimal);
                    comparable("=", &operand, &found, test.inputcollid)?;
                    Ok(truth(Sql::from("(") + operand.sql + " IN (" + sql + "))"))
                }
                _ => NotSent::because("this kind of sub-query"),
            }
        }
    }
}

/// A branch of a set operation with the types of its result, where they are only wider.
fn coerced(sql: Sql, mut columns: Columns, types: &[pg_sys::Oid]) -> Result<(Sql, Columns), NotSent> {
    let textual = |oid| matches!(oid, pg_sys::TEXTOID | pg_sys::VARCHAROID);
    let width = |oid| [pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID].iter().position(|of| *of == oid);
    let mut wider = false;
    for (column, oid) in columns.iter_mut().zip(types) {
        match (width(column.oid), width(*oid)) {
            _ if column.oid == *oid || textual(column.oid) && textual(*oid) => {}
            (Some(from), Some(to)) if from < to => wider = true,
            _ => return NotSent::because("a set operation of different types"),
        }
        column.oid = *oid;
    }
    if !wider {
        return Ok((Sql::from("(") + sql + ")", columns));
    }
    let casts = columns.iter().enumerate().map(|(index, column)| {
        let name = format!("c{}", index + 1);
        Ok(Typed::new(name.clone().into(), column.oid, column.decimal).exact()? + &format!(" AS {name}"))
    });
    let casts = Sql::join(casts.collect::<Result<Vec<_>, NotSent>>()?, ", ");
    Ok((Sql::from("(SELECT ") + casts + " FROM (" + sql + ") AS branch)", columns))
}

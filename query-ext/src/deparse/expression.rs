//! Expressions: variables, constants, boolean logic, CASE and its kin.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::number::{branched, common_decimal};
use super::parameter::is_known;
use super::{Column, Deparser, NotSent, SourceKind, Typed, groups_exactly, orders_exactly, type_name};
use crate::lake_plan::{PlanColumn, Sql};
use crate::literal::{decimal_of_typmod, literal, scan_type};
use crate::tree;

impl Deparser {
    /// An expression that is to be a column of the result, in exactly its type.
    ///
    /// # Safety
    /// `node` is an expression of the innermost scope, its constants folded and join aliases flattened.
    pub(crate) unsafe fn column(&mut self, node: *mut pg_sys::Node) -> Result<(Sql, pg_sys::Oid), NotSent> {
        // SAFETY: per the contract.
        let typed = unsafe { self.expression(node)? };
        if typed.unshown {
            return NotSent::because("a quotient whose digits are seen");
        }
        // SAFETY: per the contract.
        if typed.oid == pg_sys::BPCHAROID && unsafe { pg_sys::exprTypmod(node) } < 0 {
            return NotSent::because("a character of any length");
        }
        Ok((typed.clone().exact()?, typed.oid))
    }

    /// Any expression.
    ///
    /// # Safety
    /// As [`Self::column`].
    pub(crate) unsafe fn expression(&mut self, node: *mut pg_sys::Node) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let mark = self.values.len();
            let found = self.written(node);
            // What cannot be sent may be known before the query runs.
            found.or_else(|reason| {
                if !is_known(node) {
                    return Err(reason);
                }
                self.values.truncate(mark);
                self.computes = true;
                self.value(node.cast())
            })
        }
    }

    unsafe fn written(&mut self, node: *mut pg_sys::Node) -> Result<Typed, NotSent> {
        // SAFETY: each branch casts to the struct of its tag.
        unsafe {
            match tree::tag(node) {
                NodeTag::T_Var => self.variable(node.cast()),
                NodeTag::T_Const => {
                    let constant = &*node.cast::<pg_sys::Const>();
                    let text = literal(constant.constvalue, constant.constisnull, constant.consttype);
                    let Some((text, decimal)) = text else {
                        return NotSent::because(format!("a constant of type {}", type_name(constant.consttype)));
                    };
                    Ok(Typed::new(text.into(), constant.consttype, decimal))
                }
                NodeTag::T_Param => self.value(node.cast()),
                NodeTag::T_SQLValueFunction => self.value(node.cast()),
                NodeTag::T_RelabelType => self.relabel(node.cast()),
                NodeTag::T_BoolExpr => self.boolean(node.cast()),
                NodeTag::T_NullTest => {
                    let test = &*node.cast::<pg_sys::NullTest>();
                    if test.argisrow {
                        return NotSent::because("IS NULL of a row");
                    }
                    let operand = self.expression(test.arg.cast())?.sql;
                    let is_null = test.nulltesttype == pg_sys::NullTestType::IS_NULL;
                    let test = if is_null { " IS NULL)" } else { " IS NOT NULL)" };
                    Ok(truth(Sql::from("(") + operand + test))
                }
                NodeTag::T_BooleanTest => {
                    let test = &*node.cast::<pg_sys::BooleanTest>();
                    let operand = self.expression(test.arg.cast())?.sql;
                    let words = match test.booltesttype {
                        pg_sys::BoolTestType::IS_TRUE => " IS NOT DISTINCT FROM true)",
                        pg_sys::BoolTestType::IS_NOT_TRUE => " IS DISTINCT FROM true)",
                        pg_sys::BoolTestType::IS_FALSE => " IS NOT DISTINCT FROM false)",
                        pg_sys::BoolTestType::IS_NOT_FALSE => " IS DISTINCT FROM false)",
                        pg_sys::BoolTestType::IS_UNKNOWN => " IS NULL)",
                        _ => " IS NOT NULL)",
                    };
                    Ok(truth(Sql::from("(") + operand + words))
                }
                NodeTag::T_OpExpr => self.operator(node.cast()),
                NodeTag::T_DistinctExpr => self.distinct(node.cast()),
                NodeTag::T_NullIfExpr => self.null_if(node.cast()),
                NodeTag::T_ScalarArrayOpExpr => self.array_operator(node.cast()),
                NodeTag::T_FuncExpr => self.function(node.cast()),
                NodeTag::T_CoerceViaIO => self.cast_to_text(node.cast()),
                NodeTag::T_Aggref => self.aggregate(node.cast()),
                NodeTag::T_WindowFunc => self.window_function(node.cast()),
                NodeTag::T_GroupingFunc => self.grouping(node.cast()),
                NodeTag::T_CaseExpr => self.case(node.cast()),
                NodeTag::T_CaseTestExpr => match self.case_operands.last() {
                    Some(operand) => Ok(operand.clone()),
                    None => NotSent::because("a CASE operand out of place"),
                },
                NodeTag::T_CoalesceExpr => {
                    let coalesce = &*node.cast::<pg_sys::CoalesceExpr>();
                    self.choice("COALESCE", coalesce.args, coalesce.coalescetype)
                }
                NodeTag::T_MinMaxExpr => {
                    let choice = &*node.cast::<pg_sys::MinMaxExpr>();
                    if !orders_exactly(choice.minmaxtype, choice.inputcollid)
                        || !groups_exactly(choice.minmaxtype, choice.inputcollid)
                    {
                        return NotSent::because("GREATEST or LEAST by a linguistic collation or of floats");
                    }
                    let name = if choice.op == pg_sys::MinMaxOp::IS_GREATEST { "greatest" } else { "least" };
                    self.choice(name, choice.args, choice.minmaxtype)
                }
                NodeTag::T_SubLink => self.sub_link(node.cast()),
                NodeTag::T_RowCompareExpr => self.row_comparison(node.cast()),
                other => NotSent::because(format!("expression {other:?}")),
            }
        }
    }

    unsafe fn variable(&mut self, var: *mut pg_sys::Var) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes a Var.
        let var = unsafe { &*var };
        let level = usize::try_from(var.varlevelsup).unwrap_or(usize::MAX);
        let scope = self.scopes.len().checked_sub(level + 1).map(|index| &self.scopes[index]);
        let Some(source) = scope.and_then(|scope| scope.sources.get(&var.varno)).cloned() else {
            return NotSent::because("a variable from outside");
        };
        if var.varattno <= 0 {
            return NotSent::because("a whole row or a system column");
        }
        let sql = Sql::from(format!("{}.c{}", source.alias, var.varattno));
        match source.kind {
            SourceKind::Table { table, marker } => {
                // SAFETY: a column of the marker that it was parsed with.
                if unsafe { crate::companion::is_declared(marker, var.varattno, var.vartype) } {
                    return NotSent::because("a column with values that DuckDB's type has not");
                }
                if scan_type(var.vartype, var.vartypmod).is_none() {
                    return NotSent::because(format!("a column of type {}", type_name(var.vartype)));
                }
                let (attnum, type_oid) = (var.varattno, var.vartype.to_u32());
                let typmod = var.vartypmod;
                self.read_column(table, PlanColumn { attnum, type_oid, typmod, as_text: false });
                Ok(Typed::new(sql, var.vartype, decimal_of_typmod(var.vartypmod)))
            }
            SourceKind::Columns(columns) => {
                let index = usize::try_from(var.varattno - 1).unwrap_or(usize::MAX);
                match columns.get(index) {
                    Some(Column { left_out: Some(index), .. }) => NotSent::because(&self.left_out[*index]),
                    Some(Column { oid, decimal, unshown, left_out: None }) => {
                        Ok(Typed { unshown: *unshown, ..Typed::new(sql, *oid, *decimal) })
                    }
                    None => NotSent::because("a column that the sub-query lacks"),
                }
            }
        }
    }

    unsafe fn relabel(&mut self, relabel: *mut pg_sys::RelabelType) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes a RelabelType.
        unsafe {
            let textual = [pg_sys::TEXTOID, pg_sys::VARCHAROID];
            let mut typed = self.expression((*relabel).arg.cast())?;
            if typed.oid != (*relabel).resulttype
                && !(textual.contains(&typed.oid) && textual.contains(&(*relabel).resulttype))
            {
                return NotSent::because(format!("a cast to {}", type_name((*relabel).resulttype)));
            }
            typed.oid = (*relabel).resulttype;
            Ok(typed)
        }
    }

    unsafe fn boolean(&mut self, expression: *mut pg_sys::BoolExpr) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes a BoolExpr.
        unsafe {
            let operands = tree::items::<pg_sys::Node>((*expression).args)
                .into_iter()
                .map(|node| Ok(self.expression(node)?.sql))
                .collect::<Result<Vec<_>, NotSent>>()?;
            Ok(truth(match (*expression).boolop {
                pg_sys::BoolExprType::AND_EXPR => Sql::from("(") + Sql::join(operands, " AND ") + ")",
                pg_sys::BoolExprType::OR_EXPR => Sql::from("(") + Sql::join(operands, " OR ") + ")",
                _ => Sql::from("(NOT ") + Sql::join(operands, "") + ")",
            }))
        }
    }

    unsafe fn case(&mut self, case: *mut pg_sys::CaseExpr) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes a CaseExpr, whose args are CaseWhens.
        unsafe {
            let simple = !(*case).arg.is_null();
            if simple {
                let operand = self.expression((*case).arg.cast())?;
                self.case_operands.push(operand);
            }
            let mut branches = Vec::new();
            for when in tree::items::<pg_sys::CaseWhen>((*case).args) {
                let condition = self.expression((*when).expr.cast())?.sql;
                let result = self.expression((*when).result.cast())?;
                branches.push((Sql::from(" WHEN ") + condition + " THEN ", result));
            }
            if !(*case).defresult.is_null() {
                branches.push((" ELSE ".into(), self.expression((*case).defresult.cast())?));
            }
            if simple {
                self.case_operands.pop();
            }
            branched(branches, (*case).casetype)
        }
    }

    unsafe fn choice(&mut self, name: &str, args: *mut pg_sys::List, oid: pg_sys::Oid) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes a list of expressions.
        let operands = unsafe { tree::items::<pg_sys::Node>(args) }
            .into_iter()
            // SAFETY: as above.
            .map(|node| unsafe { self.expression(node) })
            .collect::<Result<Vec<_>, NotSent>>()?;
        let decimal = common_decimal(&operands, oid)?;
        let unshown = operands.iter().any(|operand| operand.unshown);
        let list = Sql::join(operands.into_iter().map(|typed| typed.sql).collect(), ", ");
        Ok(Typed { unshown, ..Typed::new(Sql::from(format!("{name}(")) + list + ")", oid, decimal) })
    }
}

/// A boolean expression.
pub(super) fn truth(sql: Sql) -> Typed {
    Typed::new(sql, pg_sys::BOOLOID, None)
}

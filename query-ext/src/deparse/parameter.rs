//! Parameters and the statement's time, and what is computed from them: what Postgres knows before the query runs.
//!
//! A plan that is made for the values of its parameters has them as constants. Otherwise each is a place in the SQL, filled when the query
//! begins.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::operator::built_in_function;
use super::{Deparser, NotSent, Typed, type_name};
use crate::lake_plan::{Piece, Sql};
use crate::literal::{duckdb_type, literal};
use crate::tree;

impl Deparser {
    /// What Postgres is to evaluate before the query runs.
    ///
    /// # Safety
    /// `node` is a Param, a SQLValueFunction or known otherwise ([`is_known`]).
    pub(super) unsafe fn value(&mut self, node: *mut pg_sys::Expr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let oid = pg_sys::exprType(node.cast());
            if tree::tag(node) == NodeTag::T_Param {
                if (*node.cast::<pg_sys::Param>()).paramkind != pg_sys::ParamKind::PARAM_EXTERN {
                    return NotSent::because("a value of the outer plan");
                }
                if let Some((value, is_null)) = self.constant(node.cast()) {
                    let Some((text, decimal)) = literal(value, is_null, oid) else {
                        return NotSent::because(format!("a value of type {}", type_name(oid)));
                    };
                    return Ok(Typed::new(text.into(), oid, decimal));
                }
            }
            // The scale of a numeric parameter is not known before it is there.
            if oid == pg_sys::NUMERICOID || duckdb_type(oid, None).is_none() {
                return NotSent::because(format!("a parameter of type {}", type_name(oid)));
            }
            Ok(Typed::new(self.keep_value(tree::copy(node)), oid, None))
        }
    }

    /// The value of a constant, or of a parameter that the plan is made for.
    ///
    /// # Safety
    /// `node` is an expression.
    pub(super) unsafe fn constant(&self, node: *mut pg_sys::Node) -> Option<(pg_sys::Datum, bool)> {
        // SAFETY: the casts are to the struct of the tag; parameters are looked up as eval_const_expressions does it.
        unsafe {
            match tree::tag(node) {
                NodeTag::T_Const => {
                    let constant = &*node.cast::<pg_sys::Const>();
                    Some((constant.constvalue, constant.constisnull))
                }
                NodeTag::T_Param if !self.parameters.is_null() => {
                    let param = &*node.cast::<pg_sys::Param>();
                    if param.paramkind != pg_sys::ParamKind::PARAM_EXTERN
                        || param.paramid <= 0
                        || param.paramid > (*self.parameters).numParams
                    {
                        return None;
                    }
                    let mut workspace = pg_sys::ParamExternData::default();
                    let found = match (*self.parameters).paramFetch {
                        Some(fetch) => fetch(self.parameters, param.paramid, true, &raw mut workspace),
                        None => {
                            let first: *mut pg_sys::ParamExternData = (&raw mut (*self.parameters).params).cast();
                            first.add(usize::try_from(param.paramid - 1).ok()?)
                        }
                    };
                    let is_constant = u32::from((*found).pflags) & pg_sys::PARAM_FLAG_CONST != 0;
                    (is_constant && (*found).ptype == param.paramtype).then(|| ((*found).value, (*found).isnull))
                }
                _ => None,
            }
        }
    }

    /// The place of an array whose elements are listed when the query begins.
    ///
    /// # Safety
    /// `param` is a Param of an array type.
    pub(super) unsafe fn array_parameter(&mut self, param: *mut pg_sys::Param) -> Result<Sql, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            if (*param).paramkind != pg_sys::ParamKind::PARAM_EXTERN {
                return NotSent::because("an array of the outer plan");
            }
            Ok(self.keep_value(tree::copy(param.cast())))
        }
    }

    /// A value's place in the SQL.
    pub(super) fn keep_value(&mut self, expression: *mut pg_sys::Expr) -> Sql {
        self.values.push(expression);
        Sql(vec![Piece::Value(self.values.len() - 1)])
    }
}

/// Built-in functions of moments, days and times, those of operators and casts too, that an expression may call which is computed beforehand:
/// they see nothing but their arguments, the clock and the session's time zone.
const OF_TIME: [&str; 32] = [
    "now",
    "transaction_timestamp",
    "statement_timestamp",
    "timestamptz_pl_interval",
    "timestamptz_mi_interval",
    "interval_pl_timestamptz",
    "timestamp_pl_interval",
    "timestamp_mi_interval",
    "interval_pl_timestamp",
    "date_pl_interval",
    "date_mi_interval",
    "interval_pl_date",
    "date_pli",
    "date_mii",
    "integer_pl_date",
    "interval_mul",
    "mul_d_interval",
    "interval_div",
    "interval_pl",
    "interval_mi",
    "interval_um",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "timezone",
    "date_trunc",
    "make_date",
    "make_interval",
    "make_timestamp",
    "make_timestamptz",
    "to_timestamp",
];

/// Whether Postgres can compute an expression before the query runs, to the value that it would have for each row: a moment, a day or a
/// time, from parameters, constants and the clock.
///
/// # Safety
/// `node` is an expression.
pub(super) unsafe fn is_known(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the casts are to the structs of the tags.
    unsafe {
        if !matches!(tree::tag(node), NodeTag::T_OpExpr | NodeTag::T_FuncExpr)
            || !matches!(
                pg_sys::exprType(node),
                pg_sys::DATEOID | pg_sys::TIMEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID | pg_sys::INTERVALOID
            )
        {
            return false;
        }
        !tree::any(node, &mut |part| match tree::tag(part) {
            NodeTag::T_Const | NodeTag::T_SQLValueFunction | NodeTag::T_RelabelType | NodeTag::T_List => false,
            NodeTag::T_Param => (*part.cast::<pg_sys::Param>()).paramkind != pg_sys::ParamKind::PARAM_EXTERN,
            NodeTag::T_FuncExpr => !is_of_time((*part.cast::<pg_sys::FuncExpr>()).funcid),
            NodeTag::T_OpExpr => !is_of_time(pg_sys::get_opcode((*part.cast::<pg_sys::OpExpr>()).opno)),
            _ => true,
        })
    }
}

fn is_of_time(function: pg_sys::Oid) -> bool {
    built_in_function(function).is_ok_and(|name| OF_TIME.contains(&name.as_str()))
}

//! What WHERE wants of a table's rows at least: comparisons of a column with what is known before the query runs. The
//! worker leaves the files out that have no such row.
//!
//! It is sound for every kind of join in the FROM beside it: a comparison is not true of a NULL, so a row of an outer
//! join that lacks its partner because that was left out is dropped by WHERE, as the pair would have been. What is below
//! a NOT or an OR is not looked at.

use lake_protocol::Comparison;
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::operator::built_in;
use super::parameter::is_known;
use super::{Deparser, SourceKind, bytewise, deterministic};
use crate::lake_plan::{Known, PlanCondition};
use crate::literal::decimal_of_typmod;
use crate::{pruning, tree};

impl Deparser {
    /// Notes the conditions of a WHERE, or of the ON of an inner join, for the tables of the innermost scope.
    ///
    /// # Safety
    /// `node` is an expression of the innermost scope that was sent, or a list of them.
    pub(super) unsafe fn note_conditions(&mut self, node: *mut pg_sys::Node) {
        // SAFETY: per the contract; the casts are to the struct of the tag.
        unsafe {
            match tree::tag(node) {
                NodeTag::T_List => {
                    tree::items::<pg_sys::Node>(node.cast()).into_iter().for_each(|item| self.note_conditions(item));
                }
                NodeTag::T_BoolExpr if (*node.cast::<pg_sys::BoolExpr>()).boolop == pg_sys::BoolExprType::AND_EXPR => {
                    self.note_conditions((*node.cast::<pg_sys::BoolExpr>()).args.cast());
                }
                NodeTag::T_OpExpr => {
                    let operation = &*node.cast::<pg_sys::OpExpr>();
                    if let [left, right] = tree::items::<pg_sys::Node>(operation.args)[..] {
                        self.note(left, operation.opno, right, operation.inputcollid, false);
                        let commutator = pg_sys::get_commutator(operation.opno);
                        self.note(right, commutator, left, operation.inputcollid, false);
                    }
                }
                NodeTag::T_ScalarArrayOpExpr => {
                    let operation = &*node.cast::<pg_sys::ScalarArrayOpExpr>();
                    if let ([left, right], true) = (&tree::items::<pg_sys::Node>(operation.args)[..], operation.useOr) {
                        self.note(*left, operation.opno, *right, operation.inputcollid, true);
                    }
                }
                _ => {}
            }
        }
    }

    /// Notes one comparison, if it is one of a column with something known.
    unsafe fn note(
        &mut self,
        column: *mut pg_sys::Node,
        operator: pg_sys::Oid,
        other: *mut pg_sys::Node,
        collation: pg_sys::Oid,
        is_array: bool,
    ) -> Option<()> {
        // SAFETY: the caller passes expressions of the innermost scope.
        unsafe {
            let column = if tree::tag(column) == NodeTag::T_RelabelType {
                (*column.cast::<pg_sys::RelabelType>()).arg.cast()
            } else {
                column
            };
            if tree::tag(column) != NodeTag::T_Var {
                return None;
            }
            let var = &*column.cast::<pg_sys::Var>();
            if var.varlevelsup != 0 || var.varattno <= 0 {
                return None;
            }
            let SourceKind::Table { table, .. } = self.scopes.last()?.sources.get(&var.varno)?.kind else {
                return None;
            };
            if self.tables[table].conditions.len() >= pruning::MOST_CONDITIONS {
                return None;
            }
            let comparison = match built_in(operator).ok()?.as_str() {
                "=" => Comparison::Equal,
                "<" => Comparison::Less,
                "<=" => Comparison::AtMost,
                ">" => Comparison::Greater,
                ">=" => Comparison::AtLeast,
                _ => return None,
            };
            let family = pruning::family(var.vartype)?;
            let oid = pg_sys::exprType(other);
            let element = if is_array { pg_sys::get_element_type(oid) } else { oid };
            if pruning::family(element) != Some(family) {
                return None;
            }
            // The files' bounds are in the order of bytes.
            let alike = if comparison == Comparison::Equal { deterministic(collation) } else { bytewise(collation) };
            if family == pruning::Family::Text && !alike {
                return None;
            }
            let scale = decimal_of_typmod(var.vartypmod).map(|(_, scale)| scale);
            if family == pruning::Family::Decimal && scale.is_none() {
                return None;
            }
            let known = match self.constant(other) {
                Some((value, is_null)) => Known::Values(pruning::values(value, is_null, oid, scale)?),
                None => match tree::tag(other) {
                    // Its place in the SQL has been checked.
                    NodeTag::T_Param
                        if (*other.cast::<pg_sys::Param>()).paramkind == pg_sys::ParamKind::PARAM_EXTERN =>
                    {
                        self.place_of(other)
                    }
                    NodeTag::T_SQLValueFunction => self.place_of(other),
                    _ if is_known(other) => self.place_of(other),
                    _ => return None,
                },
            };
            self.tables[table].conditions.push(PlanCondition { attnum: var.varattno, comparison, scale, known });
            Some(())
        }
    }

    unsafe fn place_of(&mut self, node: *mut pg_sys::Node) -> Known {
        // SAFETY: the caller passes an expression.
        self.keep_value(unsafe { tree::copy(node.cast()) });
        Known::Place(self.values.len() - 1)
    }
}

//! Window functions, and aggregates over windows.

use lake_allowlist::{Type, WINDOWS};
use pgrx::pg_sys;

use super::aggregate::Call;
use super::number::{common_decimal, constant_integer};
use super::operator::{Found, built_in_function};
use super::{Deparser, NotSent, Typed, groups_exactly, type_name};
use crate::lake_plan::Sql;
use crate::tree;

impl Deparser {
    /// A call over a window.
    ///
    /// # Safety
    /// `call` is a WindowFunc of the innermost scope.
    pub(super) unsafe fn window_function(&mut self, of: *mut pg_sys::WindowFunc) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let call = self.window_call(of)?;
            if (*of).winagg {
                return self.aggregated(&call);
            }
            match call.name.as_str() {
                "lag" | "lead" | "first_value" | "last_value" | "nth_value" => self.row_value(&call),
                _ => {
                    let operands =
                        call.args.iter().map(|node| self.expression(*node)).collect::<Result<Vec<_>, NotSent>>()?;
                    let Call { name, tail, result, collation, .. } = call;
                    self.entry(WINDOWS, &name, Found { operands, collation, result, distinct: false, tail })
                }
            }
        }
    }

    /// A value out of another row of the window.
    unsafe fn row_value(&mut self, call: &Call) -> Result<Typed, NotSent> {
        // SAFETY: the caller passes expressions of the innermost scope.
        unsafe {
            let [first, rest @ ..] = &call.args[..] else { return NotSent::because("a window function") };
            let value = self.expression(*first)?;
            let mut sql = Sql::from(format!("{}(", call.name)) + value.sql.clone();
            let mut values = vec![value.clone()];
            if let Some(offset) = rest.first() {
                let offset = constant_integer(*offset)?;
                if offset < i32::from(call.name == "nth_value") {
                    return NotSent::because(format!("{} by {offset} rows", call.name));
                }
                sql = sql + &format!(", CAST({offset} AS INTEGER)");
            }
            if let Some(default) = rest.get(1) {
                let default = self.expression(*default)?;
                if default.oid != value.oid {
                    return NotSent::because(format!("{} with a default of another type", call.name));
                }
                sql = sql + ", " + default.sql.clone();
                values.push(default);
            }
            let unshown = values.iter().any(|value| value.unshown);
            let decimal = common_decimal(&values, value.oid)?;
            Ok(Typed { unshown, ..Typed::new(sql + ")" + call.tail.clone(), call.result, decimal) })
        }
    }

    /// Name, arguments, FILTER and OVER.
    ///
    /// # Safety
    /// As [`Self::window_function`].
    pub(super) unsafe fn window_call(&mut self, of: *mut pg_sys::WindowFunc) -> Result<Call, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let of = &*of;
            let name = built_in_function(of.winfnoid)?;
            let framed = of.winagg || matches!(name.as_str(), "first_value" | "last_value" | "nth_value");
            let filter = self.filter(of.aggfilter)?;
            let Some(query) = self.scopes.last().map(|scope| scope.query).filter(|query| !query.is_null()) else {
                return NotSent::because("a window function");
            };
            let clauses = tree::items::<pg_sys::WindowClause>((*query).windowClause);
            let Some(clause) = clauses.into_iter().find(|clause| (**clause).winref == of.winref) else {
                return NotSent::because("a window that is not there");
            };
            let tail = filter + " OVER (" + self.window(query, clause, framed)? + ")";
            let args = tree::items::<pg_sys::Node>(of.args);
            let (result, collation, order) = (of.wintype, of.inputcollid, Sql::default());
            Ok(Call { name, args, distinct: false, order, tail, result, collation })
        }
    }

    unsafe fn window(
        &mut self,
        query: *mut pg_sys::Query,
        clause: *mut pg_sys::WindowClause,
        framed: bool,
    ) -> Result<Sql, NotSent> {
        // SAFETY: the caller passes a window clause of the query.
        unsafe {
            let targets = (*query).targetList;
            let mut parts = Vec::new();
            let mut keys = Vec::new();
            for key in tree::items::<pg_sys::SortGroupClause>((*clause).partitionClause) {
                let node = (*pg_sys::get_sortgroupclause_tle(key, targets)).expr.cast();
                let typed = self.expression(node)?;
                if !groups_exactly(typed.oid, pg_sys::exprCollation(node)) || typed.kind() == Some(Type::Json) {
                    return NotSent::because(format!("PARTITION BY of {}", type_name(typed.oid)));
                }
                keys.push(typed.sql);
            }
            if !keys.is_empty() {
                parts.push(Sql::from("PARTITION BY ") + Sql::join(keys, ", "));
            }
            let mut keys = Vec::new();
            for key in tree::items::<pg_sys::SortGroupClause>((*clause).orderClause) {
                let node = (*pg_sys::get_sortgroupclause_tle(key, targets)).expr.cast();
                keys.push(self.sort_key(key, node)?);
            }
            if !keys.is_empty() {
                parts.push(Sql::from("ORDER BY ") + Sql::join(keys, ", "));
            }
            if framed {
                parts.push(frame(clause)?.into());
            }
            Ok(Sql::join(parts, " "))
        }
    }
}

/// The frame, always written out.
unsafe fn frame(clause: *mut pg_sys::WindowClause) -> Result<String, NotSent> {
    // SAFETY: the caller passes a window clause.
    let (options, start, end) =
        unsafe { ((*clause).frameOptions.cast_unsigned(), (*clause).startOffset, (*clause).endOffset) };
    let has = |option: u32| options & option != 0;
    let without = if has(pg_sys::FRAMEOPTION_EXCLUDE_CURRENT_ROW) {
        " EXCLUDE CURRENT ROW"
    } else if has(pg_sys::FRAMEOPTION_EXCLUDE_GROUP) {
        " EXCLUDE GROUP"
    } else if has(pg_sys::FRAMEOPTION_EXCLUDE_TIES) {
        " EXCLUDE TIES"
    } else {
        ""
    };
    let offset = |node| {
        // SAFETY: an expression, or null, which is none.
        let rows = unsafe { constant_integer(node)? };
        if rows < 0 || has(pg_sys::FRAMEOPTION_RANGE) {
            return NotSent::because("a window frame by a range of values");
        }
        Ok(rows)
    };
    let bound = |unbounded: [u32; 2], current: u32, by: [u32; 2], node| {
        Ok(if has(unbounded[0]) {
            "UNBOUNDED PRECEDING".to_owned()
        } else if has(unbounded[1]) {
            "UNBOUNDED FOLLOWING".to_owned()
        } else if has(current) {
            "CURRENT ROW".to_owned()
        } else if has(by[0]) {
            format!("{} PRECEDING", offset(node)?)
        } else if has(by[1]) {
            format!("{} FOLLOWING", offset(node)?)
        } else {
            return NotSent::because("a window frame");
        })
    };
    let from = bound(
        [pg_sys::FRAMEOPTION_START_UNBOUNDED_PRECEDING, pg_sys::FRAMEOPTION_START_UNBOUNDED_FOLLOWING],
        pg_sys::FRAMEOPTION_START_CURRENT_ROW,
        [pg_sys::FRAMEOPTION_START_OFFSET_PRECEDING, pg_sys::FRAMEOPTION_START_OFFSET_FOLLOWING],
        start,
    )?;
    let to = bound(
        [pg_sys::FRAMEOPTION_END_UNBOUNDED_PRECEDING, pg_sys::FRAMEOPTION_END_UNBOUNDED_FOLLOWING],
        pg_sys::FRAMEOPTION_END_CURRENT_ROW,
        [pg_sys::FRAMEOPTION_END_OFFSET_PRECEDING, pg_sys::FRAMEOPTION_END_OFFSET_FOLLOWING],
        end,
    )?;
    let mode = if has(pg_sys::FRAMEOPTION_ROWS) {
        "ROWS"
    } else if has(pg_sys::FRAMEOPTION_GROUPS) {
        "GROUPS"
    } else {
        "RANGE"
    };
    Ok(format!("{mode} BETWEEN {from} AND {to}{without}"))
}

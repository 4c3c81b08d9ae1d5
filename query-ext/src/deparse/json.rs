//! Operators of `jsonb` with an array of texts.

use pgrx::pg_sys;

use super::{Deparser, NotSent, Typed};
use crate::lake_plan::Sql;
use crate::literal::{elements, literal};

impl Deparser {
    /// `#>`, `#>>`, `?|`, `?&` with a constant array, which goes to the lake's own functions as `jsonb` would print it.
    ///
    /// # Safety
    /// The nodes are the operands of that operator, in the innermost scope.
    pub(super) unsafe fn json_steps(
        &mut self,
        name: &str,
        left: *mut pg_sys::Node,
        right: *mut pg_sys::Node,
        result: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let refuse = || NotSent::because(format!("{name} with an array that is not a constant, or has NULLs"));
            let document = self.expression(left)?;
            if document.oid != pg_sys::JSONBOID || pg_sys::exprType(right) != pg_sys::TEXTARRAYOID {
                return refuse();
            }
            let Some((array, false)) = self.constant(right) else { return refuse() };
            let mut steps = Vec::new();
            for (value, is_null) in elements(array, pg_sys::TEXTOID) {
                let text = literal(value, is_null, pg_sys::TEXTOID).filter(|_| !is_null);
                let text = text
                    .and_then(|(text, _)| Some(text.strip_prefix("CAST('")?.strip_suffix("' AS VARCHAR)")?.to_owned()));
                let Some(text) = text.map(|text| text.replace("''", "'")) else { return refuse() };
                let is_path = name.starts_with('#');
                if is_path && looks_numeric(&text) && !is_index(&text) {
                    return NotSent::because(format!("{name} with the step {text}"));
                }
                steps.push(serde_json::to_string(&text).unwrap_or_default());
            }
            let function = match name {
                "#>" => "lake_json_path",
                "#>>" => "lake_json_path_text",
                "?|" => "lake_json_exists_any",
                _ => "lake_json_exists_all",
            };
            let steps = format!("[{}]", steps.join(", ")).replace('\'', "''");
            let sql = Sql::from(format!("{function}(")) + document.exact()? + &format!(", CAST('{steps}' AS VARCHAR))");
            Ok(Typed::new(sql, result, None))
        }
    }
}

/// Whether Postgres might take a step for a number: it skips blanks, and knows a plus.
fn looks_numeric(step: &str) -> bool {
    let step = step.trim_start();
    step.trim_start_matches(['+', '-']).starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a step is a number as the lake's functions read it.
fn is_index(step: &str) -> bool {
    let digits = step.strip_prefix('-').unwrap_or(step);
    (1..=9).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit())
}

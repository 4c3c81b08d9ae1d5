//! Functions and casts.

use lake_allowlist::{FUNCTIONS, find};
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::operator::{Around, Found, allows, built_in_function};
use super::{Deparser, NotSent, Typed, type_name};
use crate::lake_plan::Sql;
use crate::literal::literal;
use crate::tree;

impl Deparser {
    /// A function call or cast.
    ///
    /// # Safety
    /// `call` is a FuncExpr of the innermost scope.
    pub(super) unsafe fn function(&mut self, call: *mut pg_sys::FuncExpr) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let name = built_in_function((*call).funcid)?;
            let args = tree::items::<pg_sys::Node>((*call).args);
            let (result, collation) = ((*call).funcresulttype, (*call).inputcollid);
            let of_numeric = args.first().is_some_and(|first| pg_sys::exprType(*first) == pg_sys::NUMERICOID);
            match (name.as_str(), args.len()) {
                ("now" | "transaction_timestamp" | "statement_timestamp", 0) => {
                    let sql = self.keep_value(tree::copy(call.cast::<pg_sys::Expr>()));
                    return Ok(Typed::new(sql, result, None));
                }
                ("numeric", 2) | ("round" | "trunc", 1 | 2) if of_numeric => return self.scaled(&name, &args),
                ("regexp_replace", 3) => return self.replaced(&args, collation),
                _ => {}
            }
            if let Some(word) = args.first().and_then(|first| constant_word(*first))
                && let Some(typed) = self.with_word(&name, &word, &args[1..], collation, result)?
            {
                return Ok(typed);
            }
            let operands = args.iter().map(|node| self.expression(*node)).collect::<Result<Vec<_>, NotSent>>()?;
            self.entry(FUNCTIONS, &name, Found { operands, collation, result, ..Found::default() })
        }
    }

    /// A function whose first argument is one of the entry's words; `None`: it is none of those.
    unsafe fn with_word(
        &mut self,
        name: &str,
        word: &str,
        rest: &[*mut pg_sys::Node],
        collation: pg_sys::Oid,
        result: pg_sys::Oid,
    ) -> Result<Option<Typed>, NotSent> {
        if !FUNCTIONS.iter().any(|entry| entry.name == name && !entry.words.is_empty()) {
            return Ok(None);
        }
        // SAFETY: the caller passes expressions of the innermost scope.
        let operands =
            rest.iter().map(|node| unsafe { self.expression(*node) }).collect::<Result<Vec<_>, NotSent>>()?;
        let mut kinds = vec![Some(lake_allowlist::Type::Text)];
        kinds.extend(operands.iter().map(Typed::kind));
        let kinds: Option<Vec<_>> = kinds.into_iter().collect();
        let entry = kinds.as_ref().and_then(|kinds| {
            find(FUNCTIONS, name, kinds).find(|entry| entry.words.contains(&word) && allows(entry.collation, collation))
        });
        let Some(entry) = entry else {
            let of: Vec<String> = operands.iter().map(|typed| type_name(typed.oid)).collect();
            return NotSent::because(format!("{name} '{word}' of {}", of.join(", ")));
        };
        if entry.utc {
            self.in_utc(&format!("{name} '{word}' of timestamptz"))?;
        }
        let operands = operands.into_iter().map(Typed::exact);
        let arguments: Vec<Sql> =
            std::iter::once(Ok(Sql::from(word))).chain(operands).collect::<Result<_, NotSent>>()?;
        Ok(Some(self.fill(entry, &arguments, None, &Around::default(), result)))
    }

    /// A cast by way of text: of integers and `uuid` to it.
    ///
    /// # Safety
    /// `cast` is a CoerceViaIO of the innermost scope.
    pub(super) unsafe fn cast_to_text(&mut self, cast: *mut pg_sys::CoerceViaIO) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let operand = self.expression((*cast).arg.cast())?;
            let (from, to) = (operand.oid, (*cast).resulttype);
            let printed = matches!(from, pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID | pg_sys::UUIDOID);
            if !printed || !matches!(to, pg_sys::TEXTOID | pg_sys::VARCHAROID) {
                return NotSent::because(format!("a cast of {} to {}", type_name(from), type_name(to)));
            }
            Ok(Typed::new(Sql::from("CAST(") + operand.exact()? + " AS VARCHAR)", to, None))
        }
    }
}

/// A constant text.
unsafe fn constant_word(node: *mut pg_sys::Node) -> Option<String> {
    // SAFETY: the caller passes an expression; the cast is to the struct of the tag.
    unsafe {
        if tree::tag(node) != NodeTag::T_Const {
            return None;
        }
        let constant = &*node.cast::<pg_sys::Const>();
        if constant.constisnull || constant.consttype != pg_sys::TEXTOID {
            return None;
        }
        let (text, _) = literal(constant.constvalue, false, pg_sys::TEXTOID)?;
        Some(text.strip_prefix("CAST('")?.strip_suffix("' AS VARCHAR)")?.to_owned())
    }
}

//! Patterns: LIKE, and the regular expressions that both sides read alike.
//!
//! DuckDB's expressions are RE2's. Postgres's are of another kind, but a pattern of single characters, sets, groups, alternatives and
//! greedy repetitions is a regular language to both: whether a text matches is the same question. *What* of it matches is not (Postgres
//! looks for the longest match), so a replacement is sent only where the whole text matches or nothing does, and where
//! what groups hold is told by taking as much as possible from the left.

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

use super::expression::truth;
use super::{Deparser, NotSent, Typed, bytewise, deterministic};
use crate::lake_plan::Sql;
use crate::tree;

impl Deparser {
    /// `LIKE` with a constant pattern.
    ///
    /// # Safety
    /// The operands are expressions of the innermost scope.
    pub(super) unsafe fn like(
        &mut self,
        name: &str,
        left: *mut pg_sys::Node,
        right: *mut pg_sys::Node,
        collation: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let operand = self.expression(left)?;
            if !matches!(operand.oid, pg_sys::TEXTOID | pg_sys::VARCHAROID) || !deterministic(collation) {
                return NotSent::because("LIKE of this type or collation");
            }
            let word = if name == "~~" { " LIKE " } else { " NOT LIKE " };
            let pattern = match self.constant_text(right)? {
                None => "CAST(NULL AS VARCHAR)".to_owned(),
                Some(pattern) => {
                    let escapes = pattern.chars().rev().take_while(|letter| *letter == '\\').count();
                    if escapes % 2 == 1 {
                        return NotSent::because("LIKE with an escape at the end");
                    }
                    quoted(&pattern)
                }
            };
            // Without an escape it means the same, and DuckDB compiles the pattern once.
            let escape = if pattern.contains('\\') { " ESCAPE '\\')" } else { ")" };
            Ok(truth(Sql::from("(") + operand.sql + word + &pattern + escape))
        }
    }

    /// `~` and its kin with a constant pattern.
    ///
    /// # Safety
    /// As [`Self::like`].
    pub(super) unsafe fn matches(
        &mut self,
        name: &str,
        left: *mut pg_sys::Node,
        right: *mut pg_sys::Node,
        collation: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let operand = self.expression(left)?;
            let pattern = self.constant_text(right)?.filter(|pattern| Pattern::of(pattern).is_some());
            let ignores_case = name.ends_with('*');
            let suits = deterministic(collation) && (!ignores_case || bytewise(collation));
            let Some(pattern) = pattern.filter(|_| suits) else {
                return NotSent::because("a regular expression that is not on the list");
            };
            let options = if ignores_case { "si" } else { "s" };
            let not = if name.starts_with('!') { "NOT " } else { "" };
            let mut text = operand.sql;
            if ignores_case {
                // RE2 takes two letters beyond ASCII for the other case of k and s.
                text = Sql::from("translate(") + text + ", '\u{212a}\u{17f}', '\u{fffd}\u{fffd}')";
            }
            let sql =
                Sql::from(format!("({not}regexp_matches(")) + text + &format!(", {}, '{options}'))", quoted(&pattern));
            Ok(truth(sql))
        }
    }

    /// `regexp_replace` of a whole text.
    ///
    /// # Safety
    /// The arguments are expressions of the innermost scope.
    pub(super) unsafe fn replaced(
        &mut self,
        args: &[*mut pg_sys::Node],
        collation: pg_sys::Oid,
    ) -> Result<Typed, NotSent> {
        // SAFETY: per the contract.
        unsafe {
            let operand = self.expression(args[0])?;
            let (pattern, replacement) = (self.constant_text(args[1])?, self.constant_text(args[2])?);
            let (Some(pattern), Some(replacement)) = (pattern, replacement) else {
                return NotSent::because("regexp_replace with NULL");
            };
            let groups = Pattern::of(&pattern).filter(|pattern| pattern.whole && !pattern.branches && !pattern.nested);
            let known = groups.filter(|of| deterministic(collation) && refers(&replacement, of.groups));
            if known.is_none() {
                return NotSent::because("a regular expression that is not on the list");
            }
            let call = Sql::from("regexp_replace(") + operand.sql;
            let sql = call + &format!(", {}, {}, 's')", quoted(&pattern), quoted(&replacement));
            Ok(Typed::new(sql, pg_sys::TEXTOID, None))
        }
    }

    /// A constant text, or NULL.
    unsafe fn constant_text(&self, node: *mut pg_sys::Node) -> Result<Option<String>, NotSent> {
        // SAFETY: the caller passes an expression; its type is looked at.
        unsafe {
            let is_text = pg_sys::exprType(node) == pg_sys::TEXTOID;
            let constant = if tree::tag(node) == NodeTag::T_Invalid { None } else { self.constant(node) };
            match constant.filter(|_| is_text) {
                None => NotSent::because("a pattern that is not a constant"),
                Some((_, true)) => Ok(None),
                Some((value, false)) => Ok(tree::taken(pg_sys::text_to_cstring(value.cast_mut_ptr()))),
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("CAST('{}' AS VARCHAR)", text.replace('\'', "''"))
}

/// Whether a replacement refers to groups that there are, and has no other escape.
fn refers(replacement: &str, groups: u32) -> bool {
    let mut letters = replacement.chars();
    while let Some(letter) = letters.next() {
        if letter == '\\'
            && !letters.next().and_then(|digit| digit.to_digit(10)).is_some_and(|at| at >= 1 && at <= groups)
        {
            return false;
        }
    }
    true
}

/// What a pattern that both sides read alike is like.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pattern {
    /// It begins with `^` and ends with `$`.
    whole: bool,
    /// There is a `|` in it.
    branches: bool,
    /// A group is repeated more than once, or there is a repetition within a repeated one.
    nested: bool,
    /// Groups that are counted.
    groups: u32,
}

impl Pattern {
    /// Reads a pattern; `None` when there is something in it that is not known to be read alike.
    fn of(pattern: &str) -> Option<Self> {
        // `***` and `(?…)` at the beginning are Postgres's own.
        if !pattern.is_ascii() || pattern.contains('\0') {
            return None;
        }
        let mut read = Self::default();
        let bytes = pattern.as_bytes();
        let mut at = usize::from(bytes.first() == Some(&b'^'));
        let begins = at == 1;
        let ends =
            bytes.len() > at && bytes.last() == Some(&b'$') && bytes.get(bytes.len().wrapping_sub(2)) != Some(&b'\\');
        let end = bytes.len() - usize::from(ends);
        let mut depth = 0u32;
        // Whether what comes may be repeated, and whether it is a group; whether each open group has a repetition in it.
        let (mut atom, mut closed) = (false, None);
        let mut open: Vec<bool> = Vec::new();
        while at < end {
            match bytes[at] {
                b'(' => {
                    depth += 1;
                    open.push(false);
                    if bytes.get(at + 1..at + 3) == Some(b"?:") {
                        at += 2;
                    } else {
                        read.groups += 1;
                    }
                    (atom, closed) = (false, None);
                }
                b')' => {
                    depth = depth.checked_sub(1)?;
                    let repeats = open.pop()?;
                    // An empty group is another thing on either side.
                    if !atom {
                        return None;
                    }
                    closed = Some(repeats);
                }
                b'|' => {
                    if !atom {
                        return None;
                    }
                    read.branches = true;
                    (atom, closed) = (false, None);
                }
                repeat @ (b'*' | b'+' | b'?') => {
                    // A second one would make it another kind of repetition.
                    if !atom || matches!(bytes.get(at + 1), Some(b'*' | b'+' | b'?' | b'{')) {
                        return None;
                    }
                    if let Some(repeats) = closed {
                        read.nested |= repeats || repeat != b'?';
                    }
                    if let Some(around) = open.last_mut() {
                        *around = true;
                    }
                    closed = None;
                    // `a*` at the end of a group may be followed by more.
                    at += 1;
                    if at < end && matches!(bytes[at], b'*' | b'+' | b'?') {
                        return None;
                    }
                    continue;
                }
                b'[' => {
                    at = end_of_set(bytes, at)?;
                    (atom, closed) = (true, None);
                }
                b'\\' => {
                    at += 1;
                    match *bytes.get(at).filter(|_| at < end)? {
                        punctuation if punctuation.is_ascii_punctuation() => {}
                        _ => return None,
                    }
                    (atom, closed) = (true, None);
                }
                b'{' | b'}' | b'^' | b'$' | b']' => return None,
                _ => (atom, closed) = (true, None),
            }
            at += 1;
        }
        if depth != 0 || (read.branches && !atom) {
            return None;
        }
        read.whole = begins && ends;
        Some(read)
    }
}

/// The `]` of a set of plain characters and ranges.
fn end_of_set(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin + 1;
    if bytes.get(at) == Some(&b'^') {
        at += 1;
    }
    let first = at;
    loop {
        match *bytes.get(at)? {
            b']' if at > first => return Some(at),
            // Classes, escapes and what is an error to one side.
            b'[' | b'\\' | b']' => return None,
            b'-' if at > first && bytes.get(at + 1) != Some(&b']') => {
                let (low, high) = (bytes.get(at - 1)?, bytes.get(at + 1)?);
                if !(low.is_ascii_alphanumeric() && high.is_ascii_alphanumeric() && low <= high)
                    || bytes.get(at + 2) == Some(&b'-')
                {
                    return None;
                }
                at += 2;
            }
            _ => at += 1,
        }
    }
}

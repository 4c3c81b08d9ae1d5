//! `jsonb` as Postgres prints it: members and elements are pieces of that text, and are printed alike.
//!
//! In that text keys are there once, and between tokens there is one space behind `,` and `:` and none elsewhere. A value that is
//! neither object nor array is to Postgres an array of that one value, here as there.

use std::borrow::Cow;

use super::{Argument, Outcome, Value};

/// The end of the value that begins here.
fn end_of_value(json: &str, begin: usize) -> Option<usize> {
    let bytes = json.as_bytes();
    let mut depth = 0usize;
    let mut at = begin;
    loop {
        match *bytes.get(at)? {
            b'"' => at = end_of_string(bytes, at)?,
            b'{' | b'[' => (depth, at) = (depth + 1, at + 1),
            b'}' | b']' => (depth, at) = (depth.checked_sub(1)?, at + 1),
            b',' | b':' | b' ' => at += 1,
            _ => {
                let rest = bytes.get(at..)?;
                at += rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']')).unwrap_or(rest.len());
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Behind the quote that ends the string which begins here.
fn end_of_string(bytes: &[u8], begin: usize) -> Option<usize> {
    let mut at = begin + 1;
    loop {
        match *bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Members of an object, or elements of an array: the key, if there is one, and the value, as they are printed.
struct Items<'a> {
    json: &'a str,
    at: usize,
    keyed: bool,
}

impl<'a> Items<'a> {
    fn of(json: &'a str, open: &str) -> Option<Self> {
        let empty = json.len() == 2;
        json.starts_with(open).then(|| Self { json, at: if empty { json.len() } else { 1 }, keyed: open == "{" })
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let json = self.json;
        if self.at >= json.len() {
            return None;
        }
        let mut key = "";
        if self.keyed {
            let end = end_of_string(json.as_bytes(), self.at)?;
            key = json.get(self.at..end)?;
            // ": "
            self.at = end + 2;
        }
        let end = end_of_value(json, self.at)?;
        let value = json.get(self.at..end)?;
        // ", ", or the closing bracket.
        self.at = if json.as_bytes().get(end) == Some(&b',') { end + 2 } else { json.len() };
        Some((key, value))
    }
}

/// What is within a printed string.
fn unescaped(string: &str) -> Cow<'_, str> {
    let inner = string.get(1..string.len() - 1).unwrap_or_default();
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut text = String::with_capacity(inner.len());
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('b') => text.push('\u{8}'),
            Some('f') => text.push('\u{c}'),
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('t') => text.push('\t'),
            Some('u') => {
                let code: String = letters.by_ref().take(4).collect();
                text.extend(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32));
            }
            Some(other) => text.push(other),
            None => {}
        }
    }
    Cow::Owned(text)
}

/// A value as `->>` gives it.
fn as_text(value: &str) -> Option<Value<'_>> {
    match value {
        "null" => None,
        string if string.starts_with('"') => Some(Value::Text(unescaped(string))),
        other => Some(Value::Text(Cow::Borrowed(other))),
    }
}

fn member<'a>(json: &'a str, key: Argument<'_>) -> Option<&'a str> {
    let Argument::Text(wanted) = key else { return None };
    Items::of(json, "{")?.find(|(key, _)| unescaped(key) == wanted).map(|(_, value)| value)
}

fn item<'a>(json: &'a str, index: Argument<'_>) -> Option<&'a str> {
    let Argument::Integer(index) = index else { return None };
    if json.starts_with('{') {
        return None;
    }
    let Some(mut items) = Items::of(json, "[") else {
        return matches!(index, 0 | -1).then_some(json);
    };
    let at = if index >= 0 {
        usize::try_from(index).ok()?
    } else {
        let count = Items::of(json, "[")?.count();
        count.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?
    };
    items.nth(at).map(|(_, value)| value)
}

pub(super) fn field<'a>(json: &'a str, key: Argument<'a>) -> Outcome<'a> {
    Ok(member(json, key).map(|value| Value::Text(Cow::Borrowed(value))))
}

pub(super) fn field_text<'a>(json: &'a str, key: Argument<'a>) -> Outcome<'a> {
    Ok(member(json, key).and_then(as_text))
}

pub(super) fn element<'a>(json: &'a str, index: Argument<'a>) -> Outcome<'a> {
    Ok(item(json, index).map(|value| Value::Text(Cow::Borrowed(value))))
}

pub(super) fn element_text<'a>(json: &'a str, index: Argument<'a>) -> Outcome<'a> {
    Ok(item(json, index).and_then(as_text))
}

/// Whether a text is a key of the object, an element of the array, or the value.
pub(super) fn exists<'a>(json: &'a str, wanted: Argument<'a>) -> Outcome<'a> {
    let Argument::Text(text) = wanted else { return Ok(None) };
    let is = |value: &str| value.starts_with('"') && unescaped(value) == text;
    let found = match (Items::of(json, "["), json.starts_with('{')) {
        (Some(mut items), _) => items.any(|(_, value)| is(value)),
        (None, true) => member(json, wanted).is_some(),
        (None, false) => is(json),
    };
    Ok(Some(Value::Boolean(found)))
}

/// What is at the end of a path: of steps that are texts, in an array as it is printed.
fn at_path<'a>(json: &'a str, path: Argument<'_>) -> Option<&'a str> {
    let Argument::Text(path) = path else { return None };
    let mut at = json;
    for (_, step) in Items::of(path, "[")? {
        let step = unescaped(step);
        at = if at.starts_with('{') {
            member(at, Argument::Text(&step))?
        } else if at.starts_with('[') {
            item(at, Argument::Integer(step.parse().ok()?))?
        } else {
            return None;
        };
    }
    Some(at)
}

pub(super) fn path<'a>(json: &'a str, path: Argument<'a>) -> Outcome<'a> {
    Ok(at_path(json, path).map(|value| Value::Text(Cow::Borrowed(value))))
}

pub(super) fn path_text<'a>(json: &'a str, path: Argument<'a>) -> Outcome<'a> {
    Ok(at_path(json, path).and_then(as_text))
}

/// Whether each of some texts, or one of them, is there as [`exists`] has it.
fn exist(json: &str, wanted: Argument<'_>, all: bool) -> Outcome<'static> {
    let Argument::Text(wanted) = wanted else { return Ok(None) };
    let Some(mut wanted) = Items::of(wanted, "[") else { return Ok(None) };
    let is_there = |(_, text): (&str, &str)| {
        matches!(exists(json, Argument::Text(&unescaped(text))), Ok(Some(Value::Boolean(true))))
    };
    Ok(Some(Value::Boolean(if all { wanted.all(is_there) } else { wanted.any(is_there) })))
}

pub(super) fn exists_any<'a>(json: &'a str, wanted: Argument<'a>) -> Outcome<'a> {
    exist(json, wanted, false)
}

pub(super) fn exists_all<'a>(json: &'a str, wanted: Argument<'a>) -> Outcome<'a> {
    exist(json, wanted, true)
}

/// How deep documents may be: deeper ones are left to Postgres, whose stack has a limit of its own.
const DEPTH: usize = 200;

/// `@>`: whether a document has all that another has, at the same places; the order of elements, and how often they are there, does not count.
pub(super) fn contains<'a>(json: &'a str, wanted: Argument<'a>) -> Outcome<'a> {
    let Argument::Text(wanted) = wanted else { return Ok(None) };
    // Of the outermost, an array also has a value that is one of its elements.
    let found = match (kind(json), kind(wanted)) {
        ('{', '{') | ('[', '[') => holds(json, wanted, DEPTH)?,
        ('[', 'v') => elements(json).any(|element| same(element, wanted)),
        ('v', 'v') => same(json, wanted),
        _ => false,
    };
    Ok(Some(Value::Boolean(found)))
}

/// `{`, `[`, or `v` for a value that is neither object nor array.
fn kind(json: &str) -> char {
    match json.as_bytes().first() {
        Some(b'{') => '{',
        Some(b'[') => '[',
        _ => 'v',
    }
}

fn elements(json: &str) -> impl Iterator<Item = &str> {
    Items::of(json, "[").into_iter().flatten().map(|(_, element)| element)
}

/// Whether an object holds another, or an array another.
fn holds(json: &str, wanted: &str, depth: usize) -> Result<bool, String> {
    let depth = depth.checked_sub(1).ok_or("a document that is too deep")?;
    if kind(json) == '{' {
        for (key, wanted) in Items::of(wanted, "{").into_iter().flatten() {
            let Some(value) = member(json, Argument::Text(&unescaped(key))) else { return Ok(false) };
            if !is_or_holds(value, wanted, depth)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    for wanted in elements(wanted) {
        let mut found = false;
        for element in elements(json) {
            if is_or_holds(element, wanted, depth)? {
                found = true;
                break;
            }
        }
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_or_holds(value: &str, wanted: &str, depth: usize) -> Result<bool, String> {
    match (kind(value), kind(wanted)) {
        ('v', 'v') => Ok(same(value, wanted)),
        (of, other) if of == other => holds(value, wanted, depth),
        _ => Ok(false),
    }
}

/// Whether two values are equal that are neither objects nor arrays: numbers by what they are worth.
fn same(value: &str, other: &str) -> bool {
    let is_number = |value: &str| value.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    value == other || (is_number(value) && is_number(other) && worth(value) == worth(other))
}

/// Sign, digits before the point and digits behind it, without the zeros that do not count.
fn worth(number: &str) -> (bool, &str, &str) {
    let digits = number.strip_prefix('-').unwrap_or(number);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let is_zero = whole.is_empty() && fraction.is_empty();
    (digits.len() < number.len() && !is_zero, whole, fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"a": [1, {"b": "x, y"}, []], "b": "q\"\\\n\u0001ä", "": null, "c": {}, "long": -1.50}"#;

    fn text(outcome: Outcome<'_>) -> Option<String> {
        match outcome.unwrap() {
            Some(Value::Text(text)) => Some(text.into_owned()),
            Some(Value::Boolean(value)) => Some(value.to_string()),
            None => None,
        }
    }

    #[test]
    fn members_and_elements_are_pieces_of_the_text() {
        let key = Argument::Text;
        assert_eq!(text(field(JSON, key("a"))).unwrap(), r#"[1, {"b": "x, y"}, []]"#);
        assert_eq!(text(field(JSON, key(""))).unwrap(), "null");
        assert_eq!(text(field_text(JSON, key(""))), None);
        assert_eq!(text(field_text(JSON, key("b"))).unwrap(), "q\"\\\n\u{1}ä");
        assert_eq!(text(field(JSON, key("c"))).unwrap(), "{}");
        assert_eq!(text(field_text(JSON, key("long"))).unwrap(), "-1.50");
        assert_eq!(text(field(JSON, key("none"))), None);
        assert_eq!(text(field("[1]", key("a"))), None);
        let list = r#"[1, {"b": "x, y"}, [], "s"]"#;
        assert_eq!(text(element(list, Argument::Integer(1))).unwrap(), r#"{"b": "x, y"}"#);
        assert_eq!(text(element(list, Argument::Integer(-2))).unwrap(), "[]");
        assert_eq!(text(element_text(list, Argument::Integer(-1))).unwrap(), "s");
        assert_eq!(text(element(list, Argument::Integer(4))), None);
        assert_eq!(text(element(list, Argument::Integer(-5))), None);
        assert_eq!(text(exists(list, key("s"))).unwrap(), "true");
        assert_eq!(text(exists(list, key("1"))).unwrap(), "false");
        assert_eq!(text(exists(JSON, key("c"))).unwrap(), "true");
        assert_eq!(text(exists("\"s\"", key("s"))).unwrap(), "true");
    }

    #[test]
    fn paths_lead_through_objects_and_arrays() {
        let at = |steps| text(path(JSON, Argument::Text(steps)));
        assert_eq!(at(r#"["a", "1", "b"]"#).unwrap(), r#""x, y""#);
        assert_eq!(text(path_text(JSON, Argument::Text(r#"["a", "-2", "b"]"#))).unwrap(), "x, y");
        assert_eq!(at("[]").unwrap(), JSON);
        assert_eq!(at(r#"["a", "b"]"#), None);
        assert_eq!(at(r#"["long", "0"]"#), None);
        let wanted = |call: fn(&'static str, Argument<'static>) -> Outcome<'static>, texts| {
            text(call(JSON, Argument::Text(texts))).unwrap()
        };
        assert_eq!(wanted(exists_any, r#"["none", "c"]"#), "true");
        assert_eq!(wanted(exists_all, r#"["none", "c"]"#), "false");
        assert_eq!(wanted(exists_any, "[]"), "false");
        assert_eq!(wanted(exists_all, "[]"), "true");
    }

    #[test]
    fn a_document_contains_what_is_at_the_same_places() {
        let holds = |json, wanted| text(contains(json, Argument::Text(wanted))).unwrap() == "true";
        assert!(holds(JSON, r#"{"a": [[], {"b": "x, y"}, {}], "long": -1.5}"#));
        assert!(!holds(JSON, r#"{"a": [2]}"#));
        assert!(holds("[1, 2, [1, 3]]", "[1, [3], 1]"));
        assert!(!holds("[1, 2, [1, 3]]", "[1, 3]"));
        assert!(holds("[1, \"a\"]", "\"a\""));
        assert!(!holds("\"a\"", "[\"a\"]"));
        assert!(!holds("{}", "[]"));
        assert!(holds("-0.10", "-0.1") && holds("[0.00]", "[0]") && !holds("1", "-1") && !holds("10", "1"));
        let deep = format!("{}{}", "[".repeat(300), "]".repeat(300));
        assert!(contains(&deep, Argument::Text(&deep)).is_err());
    }
}

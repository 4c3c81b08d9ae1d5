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
}

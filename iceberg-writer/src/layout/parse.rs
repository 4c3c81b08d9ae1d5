//! What a user wrote of a layout, as SQL reads names: folded to lower case unless they are quoted.

use iceberg::spec::{NullOrder, SortDirection, Transform};

/// A transform of a column.
pub(super) struct Partition {
    pub(super) column: String,
    pub(super) transform: Transform,
}

/// A column to sort by.
pub(super) struct Sort {
    pub(super) column: String,
    pub(super) direction: SortDirection,
    pub(super) nulls: NullOrder,
}

/// A name, a number or a sign.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Folded; false: it was quoted, and is no keyword.
    Name(String, bool),
    Number(String),
    Sign(char),
}

/// `bucket(16, id), day(at), name`.
pub(super) fn partition(text: &str) -> Result<Vec<Partition>, String> {
    items(text)?.iter().map(|tokens| partition_item(tokens).ok_or_else(|| not_understood(tokens))).collect()
}

/// `at DESC NULLS LAST, id`.
pub(super) fn sort(text: &str) -> Result<Vec<Sort>, String> {
    items(text)?.iter().map(|tokens| sort_item(tokens).ok_or_else(|| not_understood(tokens))).collect()
}

/// A name as [`partition`] and [`sort`] read it.
pub(super) fn quoted(name: &str) -> String {
    let plain = |c: char| c == '_' || c.is_lowercase() || c.is_ascii_digit();
    if name.chars().all(plain) && name.starts_with(|c: char| !c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn partition_item(tokens: &[Token]) -> Option<Partition> {
    use Token::{Name, Number, Sign};
    match tokens {
        [Name(column, _)] => Some(Partition { column: column.clone(), transform: Transform::Identity }),
        [Name(transform, true), Sign('('), Name(column, _), Sign(')')] => {
            let transform = match transform.as_str() {
                "identity" => Transform::Identity,
                "year" => Transform::Year,
                "month" => Transform::Month,
                "day" => Transform::Day,
                "hour" => Transform::Hour,
                "void" => Transform::Void,
                _ => return None,
            };
            Some(Partition { column: column.clone(), transform })
        }
        [Name(transform, true), Sign('('), Number(number), Sign(','), Name(column, _), Sign(')')] => {
            let number = number.parse().ok()?;
            let transform = match transform.as_str() {
                "bucket" => Transform::Bucket(number),
                "truncate" => Transform::Truncate(number),
                _ => return None,
            };
            Some(Partition { column: column.clone(), transform })
        }
        _ => None,
    }
}

fn sort_item(tokens: &[Token]) -> Option<Sort> {
    let [Token::Name(column, _), rest @ ..] = tokens else { return None };
    let words: Vec<&str> = rest
        .iter()
        .map(|token| match token {
            Token::Name(word, true) => Some(word.as_str()),
            _ => None,
        })
        .collect::<Option<_>>()?;
    let (direction, rest) = match words.as_slice() {
        ["asc", rest @ ..] => (SortDirection::Ascending, rest),
        ["desc", rest @ ..] => (SortDirection::Descending, rest),
        rest => (SortDirection::Ascending, rest),
    };
    let nulls = match (rest, direction) {
        (["nulls", "first"], _) | ([], SortDirection::Descending) => NullOrder::First,
        (["nulls", "last"], _) | ([], SortDirection::Ascending) => NullOrder::Last,
        _ => return None,
    };
    Some(Sort { column: column.clone(), direction, nulls })
}

/// The text between commas that are in no brackets. None of empty text.
fn items(text: &str) -> Result<Vec<Vec<Token>>, String> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Ok(Vec::new());
    }
    let (mut items, mut depth) = (vec![Vec::new()], 0);
    for token in tokens {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth -= 1,
            Token::Sign(',') if depth == 0 => {
                items.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if let Some(item) = items.last_mut() {
            item.push(token);
        }
    }
    Ok(items)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let (mut tokens, mut chars) = (Vec::new(), text.chars().peekable());
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        if c == '"' {
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some('"') if chars.peek() == Some(&'"') => name.extend(chars.next()),
                    Some('"') => break,
                    Some(other) => name.push(other),
                    None => return Err(format!("\"{name} has no closing quote")),
                }
            }
            tokens.push(Token::Name(name, false));
        } else if c == '_' || c.is_alphanumeric() {
            let mut word = String::from(c);
            while let Some(next) = chars.next_if(|next| *next == '_' || *next == '$' || next.is_alphanumeric()) {
                word.push(next);
            }
            let number = word.chars().all(|c| c.is_ascii_digit());
            // Postgres folds ASCII alone, in a database of UTF-8.
            tokens.push(if number { Token::Number(word) } else { Token::Name(word.to_ascii_lowercase(), true) });
        } else if matches!(c, '(' | ')' | ',') {
            tokens.push(Token::Sign(c));
        } else {
            return Err(format!("\"{c}\" is not understood"));
        }
    }
    Ok(tokens)
}

fn not_understood(tokens: &[Token]) -> String {
    let mut shown = String::new();
    for token in tokens {
        match token {
            Token::Name(word, _) | Token::Number(word) => {
                if shown.ends_with(|c: char| c.is_alphanumeric() || c == '_') || shown.ends_with(',') {
                    shown.push(' ');
                }
                shown.push_str(word);
            }
            Token::Sign(sign) => shown.push(*sign),
        }
    }
    if shown.is_empty() {
        return "there is nothing between two commas, or behind the last".to_owned();
    }
    format!("{shown} is not understood")
}

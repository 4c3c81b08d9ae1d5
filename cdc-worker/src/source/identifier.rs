//! Names in SQL text.

/// Quotes an identifier, as `quote_ident` does, always with quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string constant. Only for places that take no parameters, with `standard_conforming_strings` on.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::{literal, quote};

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(quote("a\"; DROP"), "\"a\"\"; DROP\"");
        assert_eq!(literal("a'; DROP"), "'a''; DROP'");
    }
}

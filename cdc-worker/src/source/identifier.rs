//! Names in SQL text.

/// Quotes an identifier, as `quote_ident` does, always with quotes.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(quote("a\"; DROP"), "\"a\"\"; DROP\"");
    }
}

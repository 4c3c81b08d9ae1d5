//! A script for psql, as statements.

/// What psql would send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// SQL, without its semicolon.
    Sql(String),
    /// `COPY … FROM stdin`, and its rows.
    Copy(String, String),
}

/// The statements of a script.
pub fn statements(script: &str) -> Vec<Statement> {
    Reader { rest: script, sql: String::new(), found: Vec::new(), parentheses: 0, blocks: 0 }.read()
}

struct Reader<'a> {
    rest: &'a str,
    sql: String,
    found: Vec<Statement>,
    parentheses: usize,
    /// Open BEGINs and CASEs of a function whose body is SQL.
    blocks: usize,
}

impl Reader<'_> {
    fn read(mut self) -> Vec<Statement> {
        while let Some(first) = self.rest.chars().next() {
            let length = match first {
                '-' if self.rest.starts_with("--") => {
                    self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
                    continue;
                }
                '/' if self.rest.starts_with("/*") => comment(self.rest),
                '\'' => {
                    let escapes = self.sql.ends_with(['e', 'E']) && !ends_in_word(&self.sql[..self.sql.len() - 1]);
                    quoted(self.rest, '\'', escapes)
                }
                '"' => quoted(self.rest, '"', false),
                '$' if !ends_in_word(&self.sql) => dollar_quoted(self.rest),
                '\\' => {
                    self.command();
                    continue;
                }
                ';' if self.parentheses == 0 && self.blocks == 0 => {
                    self.skip(1);
                    self.send();
                    continue;
                }
                first if first.is_alphabetic() || first == '_' => self.word(),
                first => {
                    match first {
                        '(' => self.parentheses += 1,
                        ')' => self.parentheses = self.parentheses.saturating_sub(1),
                        _ => {}
                    }
                    first.len_utf8()
                }
            };
            self.sql.push_str(&self.rest[..length]);
            self.skip(length);
        }
        self.found
    }

    fn skip(&mut self, length: usize) {
        self.rest = &self.rest[length..];
    }

    /// A word's length; the ones that open and close the body of a function are counted.
    fn word(&mut self) -> usize {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$').unwrap_or(self.rest.len());
        let mut begins = self.sql.split_whitespace().map(str::to_lowercase);
        let makes_function = begins.next().as_deref() == Some("create")
            && begins.take(3).any(|word| word == "function" || word == "procedure");
        if makes_function {
            match self.rest[..end].to_lowercase().as_str() {
                "begin" => self.blocks += 1,
                "case" if self.blocks > 0 => self.blocks += 1,
                "end" => self.blocks = self.blocks.saturating_sub(1),
                _ => {}
            }
        }
        end
    }

    /// A command of psql's, to the end of its line. Those that send what was written so far do so.
    fn command(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        let name = self.rest[1..end].split_whitespace().next().unwrap_or_default();
        let sends = name.starts_with('g') || name.starts_with("crosstabview") || name.starts_with(';');
        let is_reset = name == "r";
        self.skip(if name.starts_with(';') { 2 } else { end });
        if sends {
            self.send();
        } else if is_reset {
            self.sql.clear();
        }
    }

    fn send(&mut self) {
        self.parentheses = 0;
        let sql = std::mem::take(&mut self.sql).trim().to_owned();
        if sql.is_empty() {
            return;
        }
        let words = sql.to_lowercase();
        if words.starts_with("copy") && words.contains("from stdin") {
            let begin = self.rest.find('\n').map_or(self.rest.len(), |line| line + 1);
            let rows = &self.rest[begin..];
            let end = if rows.starts_with("\\.") { 0 } else { rows.find("\n\\.").map_or(rows.len(), |end| end + 1) };
            let statement = Statement::Copy(sql, rows[..end].to_owned());
            self.skip(begin + end);
            self.skip(self.rest.find('\n').unwrap_or(self.rest.len()));
            self.found.push(statement);
        } else {
            self.found.push(Statement::Sql(sql));
        }
    }
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$')
}

/// The length of a comment, which may have others in it.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a quoted text, quotes and all. A doubled quote is two texts behind each other, which comes to the same.
fn quoted(text: &str, quote: char, escapes: bool) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if escapes && c == '\\' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

/// The length of a text between `$tag$`s, or of the dollar alone.
fn dollar_quoted(text: &str) -> usize {
    let tag = text[1..].find('$').map(|end| &text[..end + 2]);
    let is_name = |tag: &str| {
        let name = &tag[1..tag.len() - 1];
        !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    match tag.filter(|tag| is_name(tag)) {
        Some(tag) => text[tag.len()..].find(tag).map_or(text.len(), |end| end + 2 * tag.len()),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_psql_ends_them() {
        let sql = |text: &str| Statement::Sql(text.to_owned());
        let script = "SELECT 1; -- a; b\nSELECT 'a;''b', \"c;d\" /* e; /* f; */ g; */ ;\n\\d t\nSELECT E'a\\';b';
            CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);
            CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $x$ SELECT 1; $$ $x$; SELECT $1;
            CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END;
            SELECT 3 \\gset p_\nSELECT name$1 FROM t";
        let found = statements(script);
        let wanted = [
            sql("SELECT 1"),
            sql("SELECT 'a;''b', \"c;d\" /* e; /* f; */ g; */"),
            sql("SELECT E'a\\';b'"),
            sql("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)"),
            sql("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $x$ SELECT 1; $$ $x$"),
            sql("SELECT $1"),
            sql("CREATE FUNCTION g() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END"),
            sql("SELECT 3"),
        ];
        assert_eq!(found, wanted, "what has no end is not sent");
    }

    #[test]
    fn rows_follow_a_copy() {
        let found = statements("COPY t FROM stdin;\n1\t;\n2\tb'\n\\.\nSELECT 1;\nCOPY t FROM STDIN;\n\\.\n");
        let wanted = [
            Statement::Copy("COPY t FROM stdin".into(), "1\t;\n2\tb'\n".into()),
            Statement::Sql("SELECT 1".into()),
            Statement::Copy("COPY t FROM STDIN".into(), String::new()),
        ];
        assert_eq!(found, wanted);
    }
}

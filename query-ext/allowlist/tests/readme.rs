//! The README says what is on the list, and what is not.

use lake_allowlist::{not_sent, table};

#[test]
fn the_readme_has_the_list() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(path).expect("README.md is there");
    for (what, table) in [("what is sent", table()), ("what is not", not_sent())] {
        assert!(readme.contains(&table), "the README's table of {what} should be:\n{table}");
    }
}

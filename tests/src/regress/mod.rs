//! PostgreSQL's own regression tests as work for the lake: their scripts, a statement at a time, as psql would send them.
//!
//! The scripts are fetched by `tests/regress.sh`. Of psql's language there is what they need to run: the end of a statement, and
//! rows behind `COPY … FROM stdin`; its commands, which begin with a backslash, are left out.

mod data;
mod script;

pub use data::rows;
pub use script::{Statement, statements};

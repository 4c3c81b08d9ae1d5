//! The settings of every connection to the source whose values are kept.
//!
//! What a text says must depend on the value alone: not on a server's, a database's or a role's settings, which these
//! override, and not on which of our connections it came over. And any session must be able to read it back.

/// Whatever output functions look at. `iso_8601` intervals and ISO dates are read alike under every `IntervalStyle` and
/// `DateStyle`; times come with their offset; names outside of `pg_catalog` come with their schema; 1 asks for the shortest
/// digits that tell a float from its neighbours.
macro_rules! text {
    () => {
        "-c search_path=pg_catalog -c DateStyle=ISO -c IntervalStyle=iso_8601 -c TimeZone=UTC -c extra_float_digits=1 \
         -c bytea_output=hex -c lc_monetary=C -c xmloption=content -c quote_all_identifiers=off"
    };
}

/// Asks for UTF-8, except of a database in `SQL_ASCII`: its server would not convert but check, and a single text that is no
/// UTF-8 would end a session for all tables. Those texts are checked here, where only their table stops.
pub(crate) const ENCODING: &str = "SELECT set_config('client_encoding', CASE current_setting('server_encoding') WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, false)";

/// A replication session.
pub(crate) const REPLICATION: &str = concat!(text!(), " -c statement_timeout=0");

/// An SQL connection: a row-level security policy makes the copy fail instead of making it incomplete. Compiling the
/// queries on the catalog, twice a second, would take several times as long as running them.
pub(crate) const SQL: &str = concat!(
    text!(),
    " -c jit=off -c row_security=off -c statement_timeout=0 -c lock_timeout=0 \
     -c idle_in_transaction_session_timeout=0 -c default_transaction_isolation=read\\ committed"
);

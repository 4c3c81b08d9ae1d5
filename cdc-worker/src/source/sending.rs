//! Whether the source can send everything that is published in binary format.
//!
//! A type without a send function is sent as text, and does no harm. But the send functions of arrays, composites and ranges
//! fail when the type within has none, and pgoutput fails with them: the stream would end at the first such value, of
//! whichever published table, mirrored or not. Such a publication is streamed as text from the beginning. Where it
//! becomes one while a session runs, that session ends, and the next one sees it.

use tokio_postgres::Client;

use crate::Result;

use super::replication::ValueFormat;

/// The format that the publication needs.
///
/// # Errors
/// [`crate::ErrorKind::SourceUnreachable`].
pub(crate) async fn format(client: &Client, publication: &str) -> Result<ValueFormat> {
    // The parts of a type: elements, base, subtype and columns. (Types of fixed length have an element type without being
    // arrays; what is not 0 may be followed all the same.)
    let row = client
        .query_one(
            "WITH RECURSIVE used (type, within) AS ( \
                 SELECT a.atttypid, false FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname \
                 JOIN pg_class c ON c.relname = p.tablename AND c.relnamespace = n.oid \
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped WHERE p.pubname = $1 \
               UNION \
                 SELECT part.type, t.typtype <> 'd' OR used.within FROM used JOIN pg_type t ON t.oid = used.type \
                 LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid) \
                 CROSS JOIN LATERAL (SELECT unnest(ARRAY[t.typelem, t.typbasetype, r.rngsubtype]) \
                     UNION SELECT atttypid FROM pg_attribute WHERE t.typrelid <> 0 AND attrelid = t.typrelid \
                         AND attnum > 0 AND NOT attisdropped) part (type) \
                 WHERE t.typsend <> 0 AND part.type <> 0) \
             SELECT EXISTS (SELECT FROM used JOIN pg_type t ON t.oid = used.type WHERE within AND t.typsend = 0)",
            &[&publication],
        )
        .await?;
    Ok(if row.get(0) { ValueFormat::Text } else { ValueFormat::Binary })
}

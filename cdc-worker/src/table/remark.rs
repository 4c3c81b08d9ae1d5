//! What is remembered of a table's columns, in the Iceberg table itself: a worker that starts finds the columns of the
//! committed position there, whatever the source's have become since.

use iceberg_writer::{ColumnSpec, PgType, TableSpec};
use serde::{Deserialize, Serialize};

use super::columns::Seen;

#[derive(Debug, Serialize, Deserialize)]
struct Remark {
    columns: Vec<Column>,
    /// Numbers of columns, in the key's order.
    key: Vec<i32>,
    seen: Seen,
}

/// What Iceberg's schema does not say of a column, and its name, so that nothing has to be put together.
#[derive(Debug, Serialize, Deserialize)]
struct Column {
    number: i32,
    name: String,
    type_oid: u32,
    typmod: i32,
    held: PgType,
    /// Whether it has a companion.
    #[serde(default)]
    companion: bool,
}

/// A table's columns as text.
pub(crate) fn of(spec: &TableSpec, seen: &Seen) -> String {
    let columns = spec.columns.iter().map(|column| Column {
        number: column.field_id,
        name: column.name.clone(),
        type_oid: column.type_oid,
        typmod: column.typmod,
        held: column.pg_type,
        companion: column.companion,
    });
    let key = spec.key.iter().filter_map(|&index| Some(spec.columns.get(index)?.field_id)).collect();
    let remark = Remark { columns: columns.collect(), key, seen: seen.clone() };
    // Numbers and strings, in structures and lists: that cannot fail.
    serde_json::to_string(&remark).unwrap_or_default()
}

/// The columns of the table of this name that the text is about. `None`: it is not ours.
pub(crate) fn read(text: &str, namespace: &str, name: &str) -> Option<(TableSpec, Seen)> {
    let remark: Remark = serde_json::from_str(text).ok()?;
    let columns = remark.columns.into_iter().map(|column| ColumnSpec {
        required: remark.key.contains(&column.number),
        name: column.name,
        field_id: column.number,
        pg_type: column.held,
        type_oid: column.type_oid,
        typmod: column.typmod,
        companion: column.companion,
    });
    let columns: Vec<ColumnSpec> = columns.collect();
    let place = |number: &i32| columns.iter().position(|column| column.field_id == *number);
    let key = remark.key.iter().map(place).collect::<Option<Vec<_>>>()?;
    let spec = TableSpec { namespace: namespace.to_owned(), name: name.to_owned(), columns, key };
    Some((spec, remark.seen))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::table::{Attribute, Shape};

    #[test]
    fn what_is_remembered_is_found_again() {
        let column = |name: &str, field_id, type_oid, typmod, required| ColumnSpec {
            name: name.to_owned(),
            field_id,
            pg_type: PgType::built_in(type_oid, typmod).unwrap(),
            type_oid,
            typmod,
            required,
            companion: name == "price",
        };
        let columns = vec![
            column("a \"quoted\" näme", 1, 23, -1, true),
            column("price", 3, 1700, (10 << 16 | 2) + 4, false),
            column("id", 7, 25, -1, true),
        ];
        let spec = TableSpec { namespace: "n".to_owned(), name: "t".to_owned(), columns, key: vec![2, 0] };
        let attribute = Attribute::integer("", 4_000_000_000);
        let seen = Shape { file: 9, attributes: BTreeMap::from([(7, attribute)]) }.seen();
        assert_eq!(read(&of(&spec, &seen), "n", "t"), Some((spec, seen)));
        assert_eq!(read("", "n", "t"), None);
        assert_eq!(read("{\"columns\":[],\"key\":[1]}", "n", "t"), None);
    }
}

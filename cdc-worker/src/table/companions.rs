//! Values that the Iceberg type of their column has not (I5): kept as text in a companion column, or the table stops.

use iceberg_writer::TableSpec;

use crate::Result;
use crate::config::Unrepresentable;
use crate::error::{COPY_ANEW, Error, ErrorKind};

impl Unrepresentable {
    /// Whether these columns, by field id, may have companions.
    ///
    /// # Errors
    /// [`ErrorKind::Table`] when they may not, with a query that finds the rows. Their values are not ours to show.
    pub(crate) fn allow(self, spec: &TableSpec, of: &[i32]) -> Result<()> {
        let stopped = spec.columns.iter().find(|column| of.contains(&column.field_id));
        let (Self::Stop, Some(column)) = (self, stopped) else { return Ok(()) };
        let name = &column.name;
        let (what, condition) = column.pg_type.lacking().unwrap_or(("a value", "true"));
        let message = format!("column \"{name}\" holds {what}, which Iceberg's {} has not", column.pg_type.iceberg());
        let quoted = crate::quote(name);
        let key = spec.key.iter().filter_map(|&index| Some(crate::quote(&spec.columns.get(index)?.name)));
        let shown = key.chain([quoted.clone()]).collect::<Vec<_>>().join(", ");
        let condition = condition.replace("{c}", &quoted);
        let table = format!("{}.{}", crate::quote(&spec.namespace), crate::quote(&spec.name));
        let hint = format!(
            "SELECT {shown} FROM {table} WHERE {condition}; change these values, or set lake.unrepresentable = \"companion\", \
             by which they are kept as text beside the column; then {COPY_ANEW}"
        );
        Err(Error::new(ErrorKind::Table, message).with_hint(hint))
    }
}

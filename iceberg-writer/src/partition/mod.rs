//! Which partition a file is in, and a table's partition spec as it is and as it is to be.
//!
//! A file is in one partition of one spec: of the table's when it was written. A spec that is replaced stays with the table,
//! so files of before stay where they are, and each manifest and each delete file is about files of one spec (and a delete
//! file about those of one partition), as Iceberg demands.
//!
//! What tells one field of a spec from another is its column and its transform. Its name is a label which it keeps when the
//! column gets another name.

mod buckets;
mod divider;
mod transform;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use iceberg::spec::{
    PartitionField, PartitionSpec, SortField, SortOrder, Struct, StructType, TableMetadata, TableMetadataBuilder,
    Transform, UnboundPartitionField, UnboundPartitionSpec,
};

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::schema::TableSpec;
use crate::table::LakeTable;

pub use buckets::Buckets;
pub use divider::Divider;

/// The partition that a file is in. Cheap to clone.
#[derive(Clone)]
pub struct Partition(Arc<Inner>);

struct Inner {
    spec_id: i32,
    /// The types of the values.
    fields: StructType,
    values: Struct,
}

impl Partition {
    pub(crate) fn new(spec_id: i32, fields: StructType, values: Struct) -> Self {
        Self(Arc::new(Inner { spec_id, fields, values }))
    }

    /// The number of the partition spec.
    pub(crate) fn spec_id(&self) -> i32 {
        self.0.spec_id
    }

    pub(crate) fn fields(&self) -> &StructType {
        &self.0.fields
    }

    pub(crate) fn values(&self) -> &Struct {
        &self.0.values
    }
}

impl Default for Partition {
    /// That of a table which has never had partitions.
    fn default() -> Self {
        Self::new(0, StructType::new(Vec::new()), Struct::empty())
    }
}

impl PartialEq for Partition {
    fn eq(&self, other: &Self) -> bool {
        self.0.spec_id == other.0.spec_id && self.0.values == other.0.values
    }
}

impl Eq for Partition {}

impl Hash for Partition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.spec_id.hash(state);
        self.0.values.hash(state);
    }
}

impl fmt::Debug for Partition {
    /// Without the values, which are a row's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("spec_id", &self.0.spec_id).finish_non_exhaustive()
    }
}

impl LakeTable {
    /// The table as the next commit is to leave it: laid out like this, as far as its columns allow. Files are written so
    /// from now on; those that are there stay as they are.
    #[must_use]
    pub fn laid_out(&self, layout: &Layout) -> Self {
        self.with_layout(Some(layout.possible(&self.spec().columns)))
    }

    /// Whether the catalog has it laid out as it is to be.
    pub fn has_its_layout(&self) -> bool {
        let Some(layout) = self.layout() else { return true };
        is_partitioned_so(self.metadata().default_partition_spec(), layout)
            && is_sorted_so(self.metadata().default_sort_order(), layout)
    }

    /// Whether a column of this description is in the way of the partitions that the table has or has had: readers take the
    /// name of a field for the column's, and want the column of a field to be there.
    pub fn partitions_conflict(&self, spec: &TableSpec) -> bool {
        let fields = self.metadata().partition_specs_iter().flat_map(|known| known.fields());
        fields.into_iter().any(|field| {
            let namesake = spec.columns.iter().find(|column| column.name == field.name);
            let source = spec.columns.iter().find(|column| column.field_id == field.source_id);
            let fits = source.is_some_and(|source| {
                field.transform.result_type(&iceberg::spec::Type::Primitive(source.pg_type.iceberg())).is_ok()
            });
            !fits || namesake.is_some_and(|namesake| namesake.field_id != field.source_id)
        })
    }

    /// The spec of the partitions that files are written into now.
    pub(crate) fn next_partition_spec(&self) -> Result<Arc<PartitionSpec>> {
        if self.has_its_layout() {
            return Ok(Arc::clone(self.metadata().default_partition_spec()));
        }
        Ok(Arc::clone(self.laid_out_metadata()?.default_partition_spec()))
    }

    /// The order of rows in files that are written now.
    pub(crate) fn next_sort_order(&self) -> Result<Arc<SortOrder>> {
        if self.has_its_layout() {
            return Ok(Arc::clone(self.metadata().default_sort_order()));
        }
        Ok(Arc::clone(self.laid_out_metadata()?.default_sort_order()))
    }

    /// Names the order of rows in files that are written now, among those of the table; 0: there is none.
    pub fn sorted_by(&self) -> Result<i64> {
        Ok(self.next_sort_order()?.order_id)
    }

    /// A spec that files of the table are in, or will be with the next commit.
    pub(crate) fn partition_spec(&self, id: i32) -> Result<Arc<PartitionSpec>> {
        if let Some(known) = self.metadata().partition_spec_by_id(id) {
            return Ok(Arc::clone(known));
        }
        let next = self.next_partition_spec()?;
        if next.spec_id() == id {
            return Ok(next);
        }
        Err(Error::format(format!("{} has no partition spec {id}", self.full_name())))
    }

    /// The types of a spec's values.
    pub(crate) fn partition_fields(&self, spec: &PartitionSpec) -> Result<StructType> {
        let fields = spec.partition_type(&*self.next_schema()?);
        fields.map_err(|error| Error::iceberg(format!("read the partitions of {}", self.full_name()), error))
    }

    /// The one partition of files that are written now, if there is no other.
    pub(crate) fn only_partition(&self) -> Result<Partition> {
        let spec = self.next_partition_spec()?;
        if !spec.fields().is_empty() {
            return Err(Error::invalid(format!("a file of {} is in no partition", self.full_name())));
        }
        Ok(Partition::new(spec.spec_id(), StructType::new(Vec::new()), Struct::empty()))
    }

    /// A prepared table whose specs and orders have the numbers that they have in `there`, whose place it will take: files
    /// are written by these numbers before.
    pub(crate) fn numbered_like(&self, there: &TableMetadata) -> Result<Self> {
        let fail = |error| Error::format(format!("prepare {}", self.full_name())).with_source(error);
        let mut specs: Vec<_> = there.partition_specs_iter().map(|spec| &**spec).collect();
        let Some(whole) = specs.iter().find(|spec| spec.fields().is_empty()).map(|spec| spec.spec_id()) else {
            return Err(self.foreign_change("was made with partitions by someone else"));
        };
        specs.sort_by_key(|spec| spec.spec_id());
        let mut orders: Vec<_> = there.sort_orders_iter().map(|order| &**order).collect();
        orders.sort_by_key(|order| order.order_id);
        let mut json = serde_json::to_value(self.metadata()).map_err(fail)?;
        json["partition-specs"] = serde_json::to_value(specs).map_err(fail)?;
        json["default-spec-id"] = whole.into();
        json["last-partition-id"] = there.last_partition_id().into();
        json["sort-orders"] = serde_json::to_value(orders).map_err(fail)?;
        Ok(self.with_metadata(serde_json::from_value(json).map_err(fail)?))
    }

    fn laid_out_metadata(&self) -> Result<TableMetadata> {
        let fail = |error| Error::iceberg(format!("lay out {}", self.full_name()), error);
        let builder = self.next_metadata()?.into_builder(None);
        Ok(self.lay_out(builder)?.build().map_err(fail)?.metadata)
    }

    /// Gives the table's next metadata the layout that it is to have.
    pub(crate) fn lay_out(&self, builder: TableMetadataBuilder) -> Result<TableMetadataBuilder> {
        let Some(layout) = self.layout().filter(|_| !self.has_its_layout()) else { return Ok(builder) };
        let fail = |error| Error::iceberg(format!("lay out {}", self.full_name()), error);
        let mut builder = builder;
        if !is_partitioned_so(self.metadata().default_partition_spec(), layout) {
            builder =
                builder.add_default_partition_spec(self.partition_spec_of(layout).map_err(fail)?).map_err(fail)?;
        }
        if !is_sorted_so(self.metadata().default_sort_order(), layout) {
            let order = sort_order_of(layout);
            let added = match order.is_unsorted() {
                // Every table has it, and its number is fixed.
                true => builder.set_default_sort_order(0),
                false => builder.add_sort_order(order).and_then(|builder| builder.set_default_sort_order(LAST_ADDED)),
            };
            builder = added.map_err(fail)?;
        }
        Ok(builder)
    }

    fn partition_spec_of(&self, layout: &Layout) -> iceberg::Result<UnboundPartitionSpec> {
        let known: Vec<&PartitionField> =
            self.metadata().partition_specs_iter().flat_map(|spec| spec.fields()).collect();
        let field = |by: &crate::layout::PartitionBy| {
            let same = known.iter().find(|field| field.source_id == by.column && field.transform == by.transform);
            let name = same.map_or_else(|| self.new_field_name(by, &known), |same| same.name.clone());
            let field_id = same.map(|same| same.field_id);
            UnboundPartitionField { source_id: by.column, field_id, name, transform: by.transform }
        };
        let fields: Vec<_> = layout.partition.iter().map(field).collect();
        Ok(UnboundPartitionSpec::builder().add_partition_fields(fields)?.build())
    }

    /// A name that is no other field's, and no other column's in any version of the table.
    fn new_field_name(&self, by: &crate::layout::PartitionBy, known: &[&PartitionField]) -> String {
        let columns = &self.spec().columns;
        let column = columns.iter().find(|column| column.field_id == by.column).map_or("", |column| &column.name);
        let mut name = by.field_name(column);
        let schemas = || self.metadata().schemas_iter().map(|schema| schema.as_struct().fields());
        while known.iter().any(|field| field.name == name)
            || columns.iter().any(|other| other.name == name && !(by.is_identity() && other.field_id == by.column))
            || schemas().flatten().any(|other| other.name == name && !(by.is_identity() && other.id == by.column))
        {
            name.push('_');
        }
        name
    }
}

/// What was added last, to the library.
const LAST_ADDED: i64 = -1;

fn is_partitioned_so(spec: &PartitionSpec, layout: &Layout) -> bool {
    let fields = spec.fields().iter().map(|field| (field.source_id, field.transform));
    fields.eq(layout.partition.iter().map(|by| (by.column, by.transform)))
}

fn is_sorted_so(order: &SortOrder, layout: &Layout) -> bool {
    order.fields == sort_order_of(layout).fields
}

fn sort_order_of(layout: &Layout) -> SortOrder {
    let fields = layout.sort.iter().map(|by| SortField {
        source_id: by.column,
        transform: Transform::Identity,
        direction: by.direction,
        null_order: by.nulls,
    });
    SortOrder { order_id: i64::from(!layout.sort.is_empty()), fields: fields.collect() }
}

use proptest::prelude::*;

use super::*;

const INT: (u32, i32) = (23, -1);
const BIGINT: (u32, i32) = (20, -1);
const TEXT: (u32, i32) = (25, -1);
const VARCHAR: (u32, i32) = (1043, 14);

/// A table of the source, with its rows: what the mirror is to have.
#[derive(Debug, Clone, Default)]
struct Heap {
    shape: Shape,
    /// Each with the values of the columns that it has, by number.
    rows: Vec<BTreeMap<i16, u32>>,
    transactions: i64,
    /// The number of the command in the transaction that is open.
    command: Option<i64>,
    changes: u32,
    files: u32,
}

impl Heap {
    fn new(columns: &[(&str, (u32, i32))]) -> Self {
        let mut heap = Self { files: 100, transactions: 700, ..Self::default() };
        heap.shape.file = heap.files;
        for (name, kind) in columns {
            heap.add(name, *kind);
        }
        heap
    }

    fn stamp(&mut self) -> i64 {
        self.changes += 1;
        match &mut self.command {
            Some(command) => *command += 1,
            None => self.transactions += 1,
        }
        self.transactions
    }

    fn rewrite(&mut self) {
        self.files += 1;
        self.shape.file = self.files;
        for attribute in self.shape.attributes.values_mut() {
            attribute.missing = false;
        }
    }

    fn add(&mut self, name: &str, (type_oid, typmod): (u32, i32)) -> i16 {
        let number = self.shape.attributes.len() as i16 + 1;
        let stamp = self.stamp();
        let name = name.to_owned();
        let attribute = Attribute {
            name,
            type_oid,
            typmod,
            held: PgType::built_in(type_oid, typmod),
            dropped: false,
            sent: true,
            missing: false,
            stamp,
            command: self.command,
        };
        self.shape.attributes.insert(number, attribute);
        number
    }

    fn give_all(&mut self, number: i16, value: u32) {
        for row in &mut self.rows {
            row.insert(number, value);
        }
    }

    fn alive(&self) -> Vec<i16> {
        self.shape.attributes.iter().filter(|(_, column)| !column.dropped).map(|(&number, _)| number).collect()
    }

    /// The name of a column, if another one has not got it.
    fn is_free(&self, name: &str) -> bool {
        !self.alive().iter().any(|number| self.shape.attributes[number].name == name)
    }

    fn touch(&mut self, number: i16) -> &mut Attribute {
        let (stamp, command) = (self.stamp(), self.command);
        let attribute = self.shape.attributes.get_mut(&number).unwrap();
        (attribute.stamp, attribute.command) = (stamp, command);
        attribute
    }

    fn drop_column(&mut self, number: i16) {
        let attribute = self.touch(number);
        (attribute.dropped, attribute.missing, attribute.type_oid) = (true, false, 0);
        attribute.name = format!("........pg.dropped.{number}........");
    }

    fn described(&self) -> Vec<RelationColumn> {
        let column = |(_, attribute): (i16, &Attribute)| RelationColumn {
            in_identity: false,
            name: attribute.name.clone(),
            type_oid: attribute.type_oid,
            typmod: attribute.typmod,
        };
        self.shape.sent().map(column).collect()
    }

    fn spec(&self) -> TableSpec {
        let columns = self.shape.sent().map(|(number, column)| ColumnSpec {
            name: column.name.clone(),
            field_id: i32::from(number),
            pg_type: PgType::built_in(column.type_oid, column.typmod).unwrap(),
            type_oid: column.type_oid,
            typmod: column.typmod,
            required: number == 1,
            companion: false,
        });
        TableSpec { namespace: "public".to_owned(), name: "t".to_owned(), columns: columns.collect(), key: vec![0] }
    }

    /// The values that the stream and a copy bring.
    fn sent_rows(&self) -> Vec<BTreeMap<i32, u32>> {
        let sent: Vec<i16> = self.shape.sent().map(|(number, _)| number).collect();
        let row = |row: &BTreeMap<i16, u32>| {
            sent.iter().filter_map(|number| Some((i32::from(*number), *row.get(number)?))).collect()
        };
        self.rows.iter().map(row).collect()
    }
}

/// The mirror of it.
#[derive(Debug)]
struct Mirror {
    spec: TableSpec,
    seen: Seen,
    rows: Vec<BTreeMap<i32, u32>>,
}

impl Mirror {
    fn copy(heap: &Heap) -> Self {
        Self { spec: heap.spec(), seen: heap.shape.seen(), rows: heap.sent_rows() }
    }

    /// False: the table has to be copied anew.
    fn follow(&mut self, described: Described<'_>, now: &Shape) -> bool {
        let known = Known { spec: &self.spec, identity: RowIdentity::Key, seen: Some(&self.seen) };
        match follow(known, described, now) {
            Followed::Same(seen) => self.seen = seen,
            Followed::Changed(spec, seen) => {
                for row in &mut self.rows {
                    row.retain(|field, _| spec.columns.iter().any(|column| column.field_id == *field));
                }
                (self.spec, self.seen) = (spec, seen);
            }
            Followed::CopyAnew(_) => return false,
            Followed::Otherwise => panic!("it was described"),
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Add(usize, usize, Option<u32>),
    AddRewritten(usize, u32),
    AddGenerated(usize),
    DropExpression(usize),
    Drop(usize),
    Rename(usize, usize),
    Swap(usize, usize),
    Widen(usize),
    Using(usize, u32),
    Retype(usize),
    Touch(usize),
    Rewrite,
    Insert(u32),
    Begin,
    Commit,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn happening() -> impl Strategy<Value = Happening> {
    let any = 0usize..6;
    let name = 0usize..NAMES.len();
    prop_oneof![
        4 => (name.clone(), any.clone(), prop_oneof![4 => Just(None), 1 => Just(Some(5u32))]).prop_map(|(name, kind, default)| Happening::Add(name, kind, default)),
        1 => (name.clone(), 0u32..3).prop_map(|(name, value)| Happening::AddRewritten(name, value)),
        1 => name.clone().prop_map(Happening::AddGenerated),
        1 => any.clone().prop_map(Happening::DropExpression),
        4 => any.clone().prop_map(Happening::Drop),
        4 => (any.clone(), name).prop_map(|(column, name)| Happening::Rename(column, name)),
        2 => (any.clone(), any.clone()).prop_map(|(a, b)| Happening::Swap(a, b)),
        2 => any.clone().prop_map(Happening::Widen),
        1 => (any.clone(), 1u32..9).prop_map(|(column, by)| Happening::Using(column, by)),
        1 => any.clone().prop_map(Happening::Retype),
        1 => any.prop_map(Happening::Touch),
        1 => Just(Happening::Rewrite),
        1 => Just(Happening::Begin),
        1 => Just(Happening::Commit),
        9 => (0u32..99).prop_map(Happening::Insert),
    ]
}

fn happen(heap: &mut Heap, happening: &Happening) {
    // The key stays.
    let others: Vec<i16> = heap.alive().into_iter().filter(|number| *number != 1).collect();
    let pick = |at: usize| others.get(at % others.len().max(1)).copied();
    match *happening {
        Happening::Add(name, kind, default) if heap.is_free(NAMES[name]) => {
            let number = heap.add(NAMES[name], [INT, TEXT, VARCHAR][kind % 3]);
            if let Some(value) = default {
                heap.shape.attributes.get_mut(&number).unwrap().missing = true;
                heap.give_all(number, value);
            }
        }
        Happening::AddRewritten(name, value) if heap.is_free(NAMES[name]) => {
            let number = heap.add(NAMES[name], INT);
            heap.rewrite();
            heap.give_all(number, value);
        }
        Happening::AddGenerated(name) if heap.is_free(NAMES[name]) => {
            let number = heap.add(NAMES[name], INT);
            heap.rewrite();
            heap.shape.attributes.get_mut(&number).unwrap().sent = false;
            heap.give_all(number, 77);
        }
        Happening::DropExpression(at) => {
            if let Some(number) = pick(at).filter(|number| !heap.shape.attributes[number].sent) {
                heap.touch(number).sent = true;
            }
        }
        Happening::Drop(at) => {
            if let Some(number) = pick(at) {
                heap.drop_column(number);
            }
        }
        Happening::Rename(at, name) => {
            if let Some(number) = pick(at).filter(|_| heap.is_free(NAMES[name])) {
                NAMES[name].clone_into(&mut heap.touch(number).name);
            }
        }
        Happening::Swap(a, b) => {
            if let (Some(a), Some(b)) = (pick(a), pick(b)) {
                let (of_a, of_b) = (heap.shape.attributes[&a].name.clone(), heap.shape.attributes[&b].name.clone());
                heap.touch(a).name = of_b;
                heap.touch(b).name = of_a;
            }
        }
        Happening::Widen(at) => {
            if let Some(number) = pick(at).filter(|number| heap.shape.attributes[number].type_oid == VARCHAR.0) {
                let attribute = heap.touch(number);
                (attribute.type_oid, attribute.typmod) = TEXT;
            }
        }
        Happening::Using(at, by) => {
            if let Some(number) = pick(at) {
                heap.touch(number);
                heap.rewrite();
                heap.rows.iter_mut().filter_map(|row| row.get_mut(&number)).for_each(|value| *value += by);
            }
        }
        Happening::Retype(at) => {
            if let Some(number) = pick(at).filter(|number| heap.shape.attributes[number].type_oid == INT.0) {
                let attribute = heap.touch(number);
                (attribute.type_oid, attribute.typmod) = BIGINT;
                heap.rewrite();
            }
        }
        Happening::Touch(at) => {
            if let Some(number) = pick(at) {
                heap.touch(number);
            }
        }
        Happening::Rewrite => heap.rewrite(),
        Happening::Begin if heap.command.is_none() => {
            heap.transactions += 1;
            heap.command = Some(0);
        }
        Happening::Commit => heap.command = None,
        Happening::Insert(value) => {
            let row =
                heap.alive().into_iter().map(|number| (number, value + u32::from(number.unsigned_abs()))).collect();
            heap.rows.push(row);
        }
        _ => {}
    }
}

proptest! {
    /// Whatever happens, and however late the catalog is looked at: the mirror has the columns and the rows that the
    /// table had where the stream describes it, or it does not claim to.
    #[test]
    fn what_is_followed_is_what_the_table_was(
        mut happenings in proptest::collection::vec((happening(), 0usize..4), 0..40),
        settled_at_end in any::<bool>(),
    ) {
        happenings.push((Happening::Commit, 0));
        let mut heap = Heap::new(&[("id", INT), ("a", INT), ("b", VARCHAR)]);
        heap.rows.push(BTreeMap::from([(1, 1), (2, 2), (3, 3)]));
        let mut history = vec![heap.clone()];
        for (happening, _) in &happenings {
            happen(&mut heap, happening);
            history.push(heap.clone());
        }
        let mut mirror = Mirror::copy(&history[0]);
        let (mut copied, mut described_as_of) = (0, history[0].changes);
        for (at, (happening, late)) in happenings.iter().enumerate() {
            let Happening::Insert(_) = happening else { continue };
            if at < copied {
                continue;
            }
            let then = &history[at + 1];
            // A description comes with the first row behind a change.
            if then.changes != described_as_of || then.shape.file != mirror.seen.file {
                described_as_of = then.changes;
                // The transaction is visible then, as a whole.
                let looked = (at + 1 + late).min(history.len() - 1);
                let visible = (looked..).find(|at| history[*at].command.is_none()).unwrap();
                if !mirror.follow(Described::Then(&then.described()), &history[visible].shape) {
                    // Copied as it is now: what the stream brings until there is in the copy.
                    mirror = Mirror::copy(&history[visible]);
                    (copied, described_as_of) = (visible, history[visible].changes);
                    continue;
                }
            }
            prop_assert_eq!(&mirror.spec, &then.spec());
            let new = then.sent_rows().pop().unwrap();
            mirror.rows.push(new);
            prop_assert_eq!(&mirror.rows, &then.sent_rows());
        }
        let last = history.last().unwrap();
        if settled_at_end && mirror.follow(Described::Now, &last.shape) {
            prop_assert_eq!(&mirror.spec, &last.spec());
            prop_assert_eq!(&mirror.rows, &last.sent_rows());
        }
    }
}

/// The mirror of `before`, led to the description of `then` by the catalog of `now`.
fn led(before: &Heap, then: &Heap, now: &Heap) -> Followed {
    let mirror = Mirror::copy(before);
    let known = Known { spec: &mirror.spec, identity: RowIdentity::Key, seen: Some(&mirror.seen) };
    follow(known, Described::Then(&then.described()), &now.shape)
}

fn numbers(followed: &Followed) -> Option<Vec<(i32, &str)>> {
    let Followed::Changed(spec, _) = followed else { return None };
    Some(spec.columns.iter().map(|column| (column.field_id, column.name.as_str())).collect())
}

fn table() -> Heap {
    Heap::new(&[("id", INT), ("a", VARCHAR), ("b", VARCHAR)])
}

#[test]
fn the_usual_changes_are_followed() {
    let before = table();
    let mut heap = before.clone();
    assert!(matches!(led(&before, &heap, &heap), Followed::Same(_)));
    heap.add("c", INT);
    assert_eq!(numbers(&led(&before, &heap, &heap)), Some(vec![(1, "id"), (2, "a"), (3, "b"), (4, "c")]));
    let mut heap = before.clone();
    heap.drop_column(2);
    assert_eq!(numbers(&led(&before, &heap, &heap)), Some(vec![(1, "id"), (3, "b")]));
    // By a third name and back: the numbers stay where they are.
    let mut heap = before.clone();
    for (number, name) in [(2, "t"), (3, "a"), (2, "b")] {
        name.clone_into(&mut heap.touch(number).name);
    }
    assert_eq!(numbers(&led(&before, &heap, &heap)), Some(vec![(1, "id"), (2, "b"), (3, "a")]));
    // One added and looked at when the next had come already.
    let mut then = before.clone();
    then.add("c", INT);
    let mut now = then.clone();
    now.add("d", INT);
    assert_eq!(numbers(&led(&before, &then, &now)), Some(vec![(1, "id"), (2, "a"), (3, "b"), (4, "c")]));
    // Dropped, and looked at when another had come: that one is not described yet.
    assert!(matches!(led(&before, &before, &now), Followed::Same(_)));
    let mut heap = before.clone();
    (heap.touch(2).type_oid, heap.touch(2).typmod) = TEXT;
    assert!(matches!(led(&before, &heap, &heap), Followed::Changed(_, _)));
    let mut heap = before.clone();
    heap.rewrite();
    assert!(matches!(led(&before, &heap, &heap), Followed::Same(_)));
    // One came and another went: they cannot be mistaken for each other where their types exclude it.
    let mut now = before.clone();
    now.add("b", INT);
    now.drop_column(3);
    assert!(matches!(led(&before, &before, &now), Followed::Same(_)));
    assert_eq!(numbers(&led(&before, &now, &now)), Some(vec![(1, "id"), (2, "a"), (4, "b")]));
    // One after the other, in one transaction.
    let mut then = before.clone();
    then.command = Some(5);
    then.drop_column(3);
    let mut now = then.clone();
    now.drop_column(2);
    assert_eq!(numbers(&led(&before, &then, &now)), Some(vec![(1, "id"), (2, "a")]));
}

#[test]
fn what_cannot_be_proved_is_not_followed() {
    let before = table();
    let refused = |then: &Heap, now: &Heap| matches!(led(&before, then, now), Followed::CopyAnew(_));
    // The same name and type under another number, before or after the description.
    let mut again = before.clone();
    again.drop_column(2);
    again.add("a", VARCHAR);
    assert!(refused(&before, &again) && refused(&again, &again));
    // With a default, be it gone again; by a rewrite.
    let mut heap = before.clone();
    let number = heap.add("c", INT);
    heap.shape.attributes.get_mut(&number).unwrap().missing = true;
    assert!(refused(&heap, &heap));
    let mut rewritten = heap.clone();
    rewritten.rewrite();
    assert!(refused(&heap, &rewritten));
    // Added and gone before anybody looked.
    let mut now = before.clone();
    now.add("c", INT);
    let then = now.clone();
    now.drop_column(4);
    assert!(refused(&then, &now));
    // USING: the same description.
    let mut heap = before.clone();
    heap.touch(2);
    heap.rewrite();
    assert!(refused(&heap, &heap));
    // The key.
    let mut heap = before.clone();
    heap.drop_column(1);
    assert!(refused(&heap, &heap));
    // A type that only the catalog knows, which has another by now.
    let mut heap = before.clone();
    let number = heap.add("c", (70_000, -1));
    let mut now = heap.clone();
    now.shape.attributes.get_mut(&number).unwrap().type_oid = 70_001;
    assert!(refused(&heap, &now));
    heap.shape.attributes.get_mut(&number).unwrap().held = Some(PgType::Enum);
    assert!(!refused(&heap, &heap));
}

#[test]
fn what_was_seen_where_nothing_has_happened_since_decides() {
    let before = table();
    let mut again = before.clone();
    again.drop_column(2);
    again.add("a", VARCHAR);
    let mirror = Mirror::copy(&before);
    let known = Known { spec: &mirror.spec, identity: RowIdentity::Key, seen: Some(&mirror.seen) };
    let described = again.described();
    let expected = Some(vec![(1, "id"), (3, "b"), (4, "a")]);
    assert_eq!(numbers(&follow(known, Described::Still(&described), &again.shape)), expected);
    assert_eq!(numbers(&follow(known, Described::Now, &again.shape)), expected);
    assert_eq!(follow(known, Described::Still(&described[1..]), &again.shape), Followed::Otherwise);
    // A list of columns that the publication was given.
    assert_eq!(follow(known, Described::Then(&before.described()[..1]), &before.shape), Followed::Otherwise);
    // Of a table without a key all columns are its identity.
    let known = Known { identity: RowIdentity::FullRow, ..known };
    assert!(matches!(follow(known, Described::Now, &again.shape), Followed::CopyAnew(_)));
    // Nothing remembered: only a table that is as it was goes on.
    let known = Known { seen: None, ..known };
    assert_eq!(follow(known, Described::Then(&before.described()), &before.shape), Followed::Same(before.shape.seen()));
    assert!(matches!(follow(known, Described::Then(&described), &again.shape), Followed::CopyAnew(_)));
}

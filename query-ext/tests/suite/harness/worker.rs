//! The stand-in for the worker's read service.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{RecordBatch, UInt32Array};
use arrow_ipc::writer::StreamWriter;
use lake_protocol::{
    Alternatives, Column, DataFile, Pin, PinnedTable, Refusal, Request, RequestBody, Response, Section, encode_header,
    encode_section, read_header,
};
use parquet::arrow::ArrowWriter;
use roaring::RoaringTreemap;

use super::tables::Copied;
use super::wanted::rows_that_count;

#[derive(Clone)]
struct Served {
    columns: Vec<Column>,
    files: Vec<Stored>,
    fresh: Vec<u8>,
    fresh_rows: u64,
}

/// A data file, what is in it, and which of its rows are deleted.
#[derive(Clone)]
struct Stored {
    file: DataFile,
    rows: RecordBatch,
    deleted: RoaringTreemap,
}

impl Served {
    /// The table as it is pinned for a query.
    fn pinned(&self, relation: u32, wanted: &Alternatives, behaviour: &Behaviour) -> (PinnedTable, Section) {
        let (mut files, mut section, mut pruned) = (Vec::new(), Section::default(), 0);
        for Stored { file, rows, deleted } in &self.files {
            let counts = rows_that_count(rows, &self.columns, wanted);
            let left_out = counts.iter().filter(|counts| !**counts).count() as u64;
            behaviour.left_out.fetch_add(left_out, Ordering::SeqCst);
            if !counts.is_empty() && !counts.contains(&true) {
                pruned += 1;
                continue;
            }
            let others = counts.iter().enumerate().filter(|(_, counts)| !**counts).map(|(row, _)| row as u64);
            let deleted = deleted | others.collect::<RoaringTreemap>();
            if !deleted.is_empty() {
                let mut bitmap = Vec::new();
                deleted.serialize_into(&mut bitmap).unwrap();
                section.deleted.extend_from_slice(&u32::try_from(files.len()).unwrap().to_be_bytes());
                section.deleted.extend_from_slice(&u32::try_from(bitmap.len()).unwrap().to_be_bytes());
                section.deleted.extend_from_slice(&bitmap);
            }
            files.push(DataFile { deleted: deleted.len(), ..file.clone() });
        }
        section.fresh.clone_from(&self.fresh);
        let columns = self.columns.clone();
        (PinnedTable { relation, columns, pruned, files, fresh_rows: self.fresh_rows }, section)
    }
}

/// What the worker does, and what it was asked.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Answers nothing.
    pub(crate) silent: AtomicBool,
    /// Refuses with this SQLSTATE.
    pub(crate) refuse: AtomicBool,
    pub(crate) pins: AtomicU64,
    pub(crate) last_lsn: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) tables_of_last_pin: AtomicU64,
    /// Rows that were left out so far, because they did not count.
    pub(crate) left_out: AtomicU64,
}

#[derive(Clone)]
pub(crate) struct Worker {
    tables: Arc<Mutex<HashMap<u32, Served>>>,
    path: std::path::PathBuf,
    pub(crate) behaviour: Arc<Behaviour>,
}

fn write_file(directory: &Path, name: &str, rows: &RecordBatch) -> DataFile {
    let path = directory.join(name);
    let mut writer = ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), rows.schema(), None).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
    let bytes = std::fs::metadata(&path).unwrap().len();
    DataFile { path: path.to_str().unwrap().into(), rows: rows.num_rows() as u64, bytes, deleted: 0 }
}

fn pick(rows: &RecordBatch, which: &[u32]) -> RecordBatch {
    let which = UInt32Array::from(which.to_vec());
    let columns = rows.columns().iter().map(|column| arrow_select::take::take(column, &which, None).unwrap()).collect();
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

impl Worker {
    pub(crate) fn start(data: &Path, database: u32) -> Self {
        let directory = data.join("lake");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.join(format!("read.{database}.sock"));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let worker = Self { tables: Arc::default(), path, behaviour: Arc::default() };
        let serving = worker.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || {
                    serving.behaviour.open.fetch_add(1, Ordering::SeqCst);
                    serving.serve(socket);
                    serving.behaviour.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        worker
    }

    /// Takes a table in: a third of the rows in a file between rows that are deleted, a third in a plain file, the rest
    /// fresh.
    pub(crate) fn add(&self, directory: &Path, table: &Copied) {
        let all: Vec<u32> = (0..u32::try_from(table.rows.num_rows()).unwrap()).collect();
        let (first, rest) = all.split_at(all.len() / 3);
        let (second, third) = rest.split_at(rest.len() / 2);
        let mut files = Vec::new();
        let mut written = Vec::new();
        if !all.is_empty() {
            // Every other row of the first file is a row of the others, deleted here.
            let mut holed = Vec::new();
            let mut deleted = RoaringTreemap::new();
            for (index, row) in first.iter().enumerate() {
                deleted.insert(holed.len() as u64);
                holed.push(rest[index % rest.len()]);
                holed.push(*row);
            }
            let rows = pick(&table.rows, second);
            let file = write_file(directory, &format!("{}-plain.parquet", table.relation), &rows);
            files.push(Stored { file, rows, deleted: RoaringTreemap::new() });
            if !holed.is_empty() {
                let rows = pick(&table.rows, &holed);
                let file = write_file(directory, &format!("{}-holed.parquet", table.relation), &rows);
                files.push(Stored { file, rows, deleted });
            }
            let fresh = pick(&table.rows, third);
            let mut writer = StreamWriter::try_new(&mut written, &fresh.schema()).unwrap();
            writer.write(&fresh).unwrap();
            writer.finish().unwrap();
        }
        let served = Served { columns: table.columns.clone(), files, fresh: written, fresh_rows: third.len() as u64 };
        self.tables.lock().unwrap().insert(table.relation, served);
    }

    fn serve(&self, mut socket: std::os::unix::net::UnixStream) {
        while let Ok(request) = read_header::<Request>(&mut socket) {
            if self.behaviour.silent.load(Ordering::SeqCst) {
                let mut rest = Vec::new();
                let _ = socket.read_to_end(&mut rest);
                return;
            }
            let RequestBody::Pin { relations, wanted, min_lsn, .. } = request.body else { return };
            self.behaviour.pins.fetch_add(1, Ordering::SeqCst);
            self.behaviour.last_lsn.store(min_lsn.unwrap_or(0), Ordering::SeqCst);
            self.behaviour.tables_of_last_pin.store(relations.len() as u64, Ordering::SeqCst);
            if self.behaviour.refuse.load(Ordering::SeqCst) {
                let refusal = Refusal {
                    sqlstate: "55000".into(),
                    message: "table is errored".into(),
                    detail: Some("a detail".into()),
                    hint: Some("a hint".into()),
                };
                socket.write_all(&encode_header(&Response::Refused(refusal)).unwrap()).unwrap();
                continue;
            }
            let tables = self.tables.lock().unwrap();
            let pinned = relations.iter().enumerate().map(|(index, relation)| {
                tables[relation].pinned(*relation, wanted.get(index).unwrap_or(&Alternatives::new()), &self.behaviour)
            });
            let (pinned, sections): (Vec<_>, Vec<_>) = pinned.unzip();
            drop(tables);
            let pin = Pin { lsn: min_lsn.unwrap_or(16), committed_lsn: 16, tables: pinned };
            let mut bytes = encode_header(&Response::Pinned(pin)).unwrap();
            for section in &sections {
                encode_section(section, &mut bytes);
            }
            if socket.write_all(&bytes).is_err() {
                return;
            }
        }
    }

    /// Goes away: nothing listens any more.
    pub(crate) fn close(&self) {
        std::fs::remove_file(&self.path).unwrap();
    }

    /// Waits until no lease is open.
    pub(crate) fn drained(&self) -> bool {
        for _ in 0..100 {
            if self.behaviour.open.load(Ordering::SeqCst) == 0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

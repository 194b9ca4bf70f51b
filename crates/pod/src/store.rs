//! What must be true after a crash of the daemon or of the machine: one redb file.
//!
//! ```text
//! meta               "schema" ─▶ u64
//! sandboxes          pod id ─▶ SandboxRecord           written once
//! sandbox_status     pod id ─▶ SandboxStatusRecord     replaced
//! containers         container id ─▶ ContainerRecord   written once
//! container_status   container id ─▶ StatusRecord      replaced
//! ```
//!
//! Values are prost messages, so that a field can be added without a new schema; a change of meaning raises
//! [`SCHEMA`]. Immutable facts live apart from mutable status: an exit rewrites 60 bytes, not a pod's configuration.
//!
//! One thread is the only writer. It takes all changes that wait and commits them as one transaction, so that any
//! number of pods that start together share one fsync.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use api::cri::v1::{ContainerConfig, LinuxContainerResources, PodSandboxConfig};
use api::id::{ContainerId, PodId};
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::oneshot;

use crate::limits::PodLimits;

/// Version of the meaning of the records. A store with a higher one is refused.
pub const SCHEMA: u64 = 1;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const SANDBOXES: Table = TableDefinition::new("sandboxes");
const SANDBOX_STATUS: Table = TableDefinition::new("sandbox_status");
const CONTAINERS: Table = TableDefinition::new("containers");
const CONTAINER_STATUS: Table = TableDefinition::new("container_status");

/// Page cache of the store, in bytes: records are read once, at start.
const CACHE: usize = 4 << 20;

/// Immutable facts of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxRecord {
    #[prost(message, optional, tag = "1")]
    pub config: Option<PodSandboxConfig>,
    #[prost(string, tag = "2")]
    pub handler: String,
    #[prost(int64, tag = "3")]
    pub created_at: i64,
    #[prost(string, tag = "4")]
    pub cgroup: String,
    /// IPv4 address of its lease, empty on the node's network.
    #[prost(string, tag = "5")]
    pub ipv4: String,
    /// Empty where IPv6 is off.
    #[prost(string, tag = "6")]
    pub ipv6: String,
}

/// Mutable facts of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxStatusRecord {
    #[prost(bool, tag = "1")]
    pub stopped: bool,
    /// Set from the freeze of a migration until its end: the id, so that recovery can ask the peer.
    #[prost(string, tag = "2")]
    pub migration: String,
    /// Absent: those of the configuration.
    #[prost(message, optional, tag = "3")]
    pub limits: Option<PodLimits>,
}

/// Immutable facts of a container.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub pod: String,
    #[prost(message, optional, tag = "2")]
    pub config: Option<ContainerConfig>,
    #[prost(string, tag = "3")]
    pub image_id: String,
    #[prost(string, tag = "4")]
    pub image_name: String,
    #[prost(int64, tag = "5")]
    pub created_at: i64,
    #[prost(string, tag = "6")]
    pub log_path: String,
    #[prost(bytes = "vec", tag = "7")]
    pub spec: Vec<u8>,
    #[prost(uint32, tag = "8")]
    pub stop_signal: u32,
    #[prost(uint32, tag = "9")]
    pub uid: u32,
    #[prost(uint32, tag = "10")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "11")]
    pub groups: Vec<u32>,
    #[prost(bool, tag = "12")]
    pub restored: bool,
    #[prost(btree_map = "string, string", tag = "20")]
    pub volume_images: std::collections::BTreeMap<String, String>,
}

/// Mutable facts of a container.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatusRecord {
    /// `runtime.v1.ContainerState`.
    #[prost(int32, tag = "1")]
    pub state: i32,
    #[prost(int64, tag = "2")]
    pub started_at: i64,
    #[prost(int64, tag = "3")]
    pub finished_at: i64,
    #[prost(int32, tag = "4")]
    pub exit_code: i32,
    #[prost(string, tag = "5")]
    pub reason: String,
    #[prost(string, tag = "6")]
    pub message: String,
    /// Set once they were changed.
    #[prost(message, optional, boxed, tag = "7")]
    pub resources: Option<Box<LinuxContainerResources>>,
}

/// One change; those of one call are one transaction.
#[derive(Debug)]
pub(crate) enum Change {
    Sandbox(PodId, Box<SandboxRecord>),
    SandboxStatus(PodId, Box<SandboxStatusRecord>),
    Container(ContainerId, Box<ContainerRecord>),
    Status(ContainerId, StatusRecord),
    RemoveSandbox(PodId),
    RemoveContainer(ContainerId),
}

/// Everything the store holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub sandboxes: Vec<(PodId, SandboxRecord, SandboxStatusRecord)>,
    pub containers: Vec<(ContainerId, ContainerRecord, StatusRecord)>,
    /// Keys whose record cannot be read, with the reason; they stay in the file and are not served.
    pub broken: Vec<(String, String)>,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// redb cannot open or read it.
    #[error("pod store {path}: cannot be opened; move it away to start without the pods it lists")]
    Database {
        /// The file.
        path: PathBuf,
        /// What redb says.
        #[source]
        source: Box<redb::Error>,
    },
    /// It was written by a newer Meridian.
    #[error(
        "pod store {path} has schema {found}, this version reads up to {SCHEMA}: start the newer meridiand"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// No thread for the writer.
    #[error("the writer of pod store {path} cannot be started")]
    Writer {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a change is not durable.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the pod store could not be written: {reason}")]
pub struct CommitError {
    reason: String,
}

/// Handle of the store; the file closes after the last handle is dropped and all changes are written.
#[derive(Clone)]
pub(crate) struct Store {
    writer: mpsc::Sender<Batch>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

struct Batch {
    changes: Vec<Change>,
    done: Option<oneshot::Sender<Result<(), CommitError>>>,
}

/// A commit under way.
#[derive(Debug)]
pub(crate) struct Commit(oneshot::Receiver<Result<(), CommitError>>);

impl Commit {
    /// Waits until the changes are durable.
    pub(crate) async fn durable(self) -> Result<(), CommitError> {
        self.0.await.unwrap_or_else(|_| Err(CommitError { reason: "its writer has ended".to_owned() }))
    }
}

impl Store {
    /// Opens or makes the store and reads it whole.
    pub(crate) fn open(path: &Path) -> Result<(Self, Contents), OpenError> {
        let failed =
            |source: redb::Error| OpenError::Database { path: path.to_owned(), source: Box::new(source) };
        let database =
            Database::builder().set_cache_size(CACHE).create(path).map_err(|e| failed(e.into()))?;
        let found = prepare(&database).map_err(failed)?;
        if found > SCHEMA {
            return Err(OpenError::Schema { path: path.to_owned(), found });
        }
        let contents = read(&database).map_err(failed)?;
        let (writer, batches) = mpsc::channel();
        std::thread::Builder::new()
            .name("pod-store".to_owned())
            .spawn(move || write_batches(&database, &batches))
            .map_err(|source| OpenError::Writer { path: path.to_owned(), source })?;
        Ok((Self { writer }, contents))
    }

    /// Hands changes to the writer; the work of the caller goes on meanwhile.
    pub(crate) fn commit(&self, changes: Vec<Change>) -> Commit {
        let (done, result) = oneshot::channel();
        // A writer that is gone drops `done`, which `durable` reports.
        let _ = self.writer.send(Batch { changes, done: Some(done) });
        Commit(result)
    }

    /// As `commit`, for what the kernel or the shim can tell again: nobody waits, a failure is logged.
    pub(crate) fn post(&self, changes: Vec<Change>) {
        let _ = self.writer.send(Batch { changes, done: None });
    }
}

/// Makes the tables; returns the schema of the file.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("schema")?.map(|v| v.value());
        if found.is_none() {
            meta.insert("schema", SCHEMA)?;
        }
        found.unwrap_or(SCHEMA)
    };
    if found <= SCHEMA {
        for table in [SANDBOXES, SANDBOX_STATUS, CONTAINERS, CONTAINER_STATUS] {
            transaction.open_table(table)?;
        }
    }
    transaction.commit()?;
    Ok(found)
}

fn read(database: &Database) -> Result<Contents, redb::Error> {
    let transaction = database.begin_read()?;
    let mut contents = Contents::default();
    let status = transaction.open_table(SANDBOX_STATUS)?;
    for row in transaction.open_table(SANDBOXES)?.iter()? {
        let (key, value) = row?;
        match sandbox(key.value(), value.value(), status.get(key.value())?.map(|v| v.value().to_vec())) {
            Ok(row) => contents.sandboxes.push(row),
            Err(reason) => contents.broken.push((key.value().to_owned(), reason)),
        }
    }
    let status = transaction.open_table(CONTAINER_STATUS)?;
    for row in transaction.open_table(CONTAINERS)?.iter()? {
        let (key, value) = row?;
        match container(key.value(), value.value(), status.get(key.value())?.map(|v| v.value().to_vec())) {
            Ok(row) => contents.containers.push(row),
            Err(reason) => contents.broken.push((key.value().to_owned(), reason)),
        }
    }
    Ok(contents)
}

fn sandbox(
    key: &str,
    value: &[u8],
    status: Option<Vec<u8>>,
) -> Result<(PodId, SandboxRecord, SandboxStatusRecord), String> {
    let id = key.parse::<PodId>().map_err(|e| e.to_string())?;
    let record = SandboxRecord::decode(value).map_err(|e| e.to_string())?;
    let status =
        SandboxStatusRecord::decode(status.unwrap_or_default().as_slice()).map_err(|e| e.to_string())?;
    Ok((id, record, status))
}

fn container(
    key: &str,
    value: &[u8],
    status: Option<Vec<u8>>,
) -> Result<(ContainerId, ContainerRecord, StatusRecord), String> {
    let id = key.parse::<ContainerId>().map_err(|e| e.to_string())?;
    let record = ContainerRecord::decode(value).map_err(|e| e.to_string())?;
    let status = StatusRecord::decode(status.unwrap_or_default().as_slice()).map_err(|e| e.to_string())?;
    Ok((id, record, status))
}

/// The writer: everything that waits becomes one transaction.
fn write_batches(database: &Database, batches: &mpsc::Receiver<Batch>) {
    while let Ok(first) = batches.recv() {
        let mut all = vec![first];
        all.extend(batches.try_iter());
        let result = write(database, &all).map_err(|e| CommitError { reason: e.to_string() });
        if let Err(error) = &result {
            tracing::error!(%error, "pod store");
        }
        for done in all.into_iter().filter_map(|batch| batch.done) {
            let _ = done.send(result.clone());
        }
    }
}

fn write(database: &Database, batches: &[Batch]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut sandboxes = transaction.open_table(SANDBOXES)?;
        let mut sandbox_status = transaction.open_table(SANDBOX_STATUS)?;
        let mut containers = transaction.open_table(CONTAINERS)?;
        let mut container_status = transaction.open_table(CONTAINER_STATUS)?;
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            match change {
                Change::Sandbox(id, record) => {
                    sandboxes.insert(id.as_str(), record.encode_to_vec().as_slice())?;
                }
                Change::SandboxStatus(id, record) => {
                    sandbox_status.insert(id.as_str(), record.encode_to_vec().as_slice())?;
                }
                Change::Container(id, record) => {
                    containers.insert(id.as_str(), record.encode_to_vec().as_slice())?;
                }
                Change::Status(id, record) => {
                    container_status.insert(id.as_str(), record.encode_to_vec().as_slice())?;
                }
                Change::RemoveSandbox(id) => {
                    sandboxes.remove(id.as_str())?;
                    sandbox_status.remove(id.as_str())?;
                }
                Change::RemoveContainer(id) => {
                    containers.remove(id.as_str())?;
                    container_status.remove(id.as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(handler: &str) -> SandboxRecord {
        SandboxRecord { handler: handler.to_owned(), created_at: 7, ..SandboxRecord::default() }
    }

    #[tokio::test]
    async fn what_was_committed_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let (kept, gone, container) = (PodId::random(), PodId::random(), ContainerId::random());
        let (store, contents) = Store::open(&path).unwrap();
        assert!(contents.sandboxes.is_empty());
        let first = store.commit(vec![
            Change::Sandbox(kept.clone(), Box::new(record("a"))),
            Change::Sandbox(gone.clone(), Box::new(record("b"))),
            Change::Container(container.clone(), Box::default()),
        ]);
        let status = StatusRecord { exit_code: 3, ..StatusRecord::default() };
        let second =
            store.commit(vec![Change::Status(container.clone(), status), Change::RemoveSandbox(gone)]);
        first.durable().await.unwrap();
        second.durable().await.unwrap();
        drop(store);
        let (_store, contents) = reopen(&path);
        assert_eq!(contents.sandboxes, [(kept, record("a"), SandboxStatusRecord::default())]);
        assert_eq!(contents.containers[0].0, container);
        assert_eq!(contents.containers[0].2.exit_code, 3);
        assert!(contents.broken.is_empty());
    }

    #[test]
    fn a_newer_schema_is_refused_and_a_broken_row_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.redb");
        let database = Database::create(&path).unwrap();
        prepare(&database).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(SANDBOXES).unwrap().insert("no id", [255u8].as_slice()).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let (store, contents) = reopen(&path);
        assert_eq!(contents.broken.len(), 1);
        drop(store);
        let database = std::iter::repeat_with(|| Database::create(&path)).find_map(Result::ok).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        let refused = Store::open(&path).unwrap_err();
        assert!(matches!(refused, OpenError::Schema { found, .. } if found == SCHEMA + 1), "{refused}");
    }

    /// The writer thread of a dropped store may hold the file for another moment.
    fn reopen(path: &Path) -> (Store, Contents) {
        for _ in 0..100 {
            if let Ok(opened) = Store::open(path) {
                return opened;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Store::open(path).unwrap()
    }
}

//! The durable epoch of each migration: who may run the pod.
//!
//! ```text
//! source:       (none) ──Committing──> Committed ──> (none)     written before Commit is sent / on Confirmed / pod removed
//!                          └────────> (none)                    the peer says it was given up: thawed
//! destination:  Receiving ──Committed──> kept a day             written on Commit, before the release
//!                    └────────────────> (none)                  no Commit came: the copy was removed
//!               (any but Committed) ──Given up──> kept a day    somebody asked before a Commit came
//! ```
//!
//! No record means: before the commit. Then the source runs and the destination's copy, if any, is removed. A
//! record that was written survives any crash: temporary file, fsync, rename, fsync of the directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// How long a destination remembers.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// What is known of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// 1.
    pub version: u32,
    /// The migration's id.
    pub migration: String,
    /// The pod's id on this node.
    pub pod: String,
    /// The other node's address; the source's record only.
    pub peer: String,
    /// Hex of the destination's ticket.
    pub ticket: String,
    /// How far it is.
    pub state: EpochState,
}

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EpochState {
    /// Source: the destination may have committed. The pod stays frozen.
    SourceCommitting,
    /// Source: the destination has. The pod is to be removed.
    SourceCommitted,
    /// Destination: a copy is being made.
    DestinationReceiving,
    /// Destination: the pod is this node's.
    DestinationCommitted,
    /// Destination: it never will be.
    DestinationGivenUp,
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct JournalError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// All records of one node.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// One commit or resolution at a time: they decide the same question.
    deciding: Mutex<()>,
}

impl Journal {
    /// Opens the directory of records, made if missing, and forgets what is old.
    pub fn open(dir: &Path) -> Result<Self, JournalError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(failed("make", dir))?;
        let journal = Self { dir: dir.to_owned(), deciding: Mutex::new(()) };
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            if entry.path().extension().is_some_and(|extension| extension == "new") || is_old(&entry) {
                fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(journal)
    }

    /// Moves that this node has to look at after a restart.
    pub fn unfinished(&self) -> Result<Vec<Epoch>, JournalError> {
        let mut found = self.all()?;
        found.retain(|epoch| epoch.state != EpochState::DestinationGivenUp);
        Ok(found)
    }

    fn all(&self) -> Result<Vec<Epoch>, JournalError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            found.extend(read(&path)?);
        }
        Ok(found)
    }

    /// A record of this migration.
    pub fn get(&self, migration: &str) -> Result<Option<Epoch>, JournalError> {
        read(&self.path(migration))
    }

    /// Writes a record; it is durable on return.
    pub fn put(&self, epoch: &Epoch) -> Result<(), JournalError> {
        let path = self.path(&epoch.migration);
        let new = path.with_extension("new");
        let json = serde_json::to_vec(epoch).expect("strings and a number");
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&json)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Forgets a migration.
    pub fn remove(&self, migration: &str) -> Result<(), JournalError> {
        let path = self.path(migration);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Destination: commits unless it was given up. True: the pod is this node's from here on.
    pub fn commit(&self, epoch: &Epoch) -> Result<bool, JournalError> {
        let _alone = self.deciding.lock();
        let receiving = |known: Epoch| known.state == EpochState::DestinationReceiving;
        if !self.get(&epoch.migration)?.is_none_or(receiving) {
            return Ok(false);
        }
        self.put(&Epoch { state: EpochState::DestinationCommitted, ..epoch.clone() })?;
        Ok(true)
    }

    /// Destination: its copy is gone. Forgets a move that nobody asked about.
    pub fn give_up(&self, epoch: &Epoch) -> Result<(), JournalError> {
        let _alone = self.deciding.lock();
        let receiving = |known: &Epoch| known.state == EpochState::DestinationReceiving;
        match self.get(&epoch.migration)?.filter(receiving) {
            Some(_) => self.remove(&epoch.migration),
            None => Ok(()),
        }
    }

    /// Destination: what became of it? If it was not committed, it never will be. `None`: the ticket is wrong.
    pub fn resolve(&self, migration: &str, ticket: &str) -> Result<Option<Epoch>, JournalError> {
        let _alone = self.deciding.lock();
        match self.get(migration)? {
            Some(epoch) if epoch.ticket != ticket => return Ok(None),
            Some(epoch) if epoch.state != EpochState::DestinationReceiving => return Ok(Some(epoch)),
            _ => {}
        }
        let epoch = Epoch {
            version: 1,
            migration: migration.to_owned(),
            pod: String::new(),
            peer: String::new(),
            ticket: ticket.to_owned(),
            state: EpochState::DestinationGivenUp,
        };
        self.put(&epoch)?;
        Ok(Some(epoch))
    }

    fn path(&self, migration: &str) -> PathBuf {
        self.dir.join(format!("{migration}.json"))
    }
}

fn failed(step: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError {
    move |source| JournalError { step, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Option<Epoch>, JournalError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
        Ok(bytes) => {
            let epoch = serde_json::from_slice(&bytes).map_err(io::Error::from);
            epoch.map(Some).map_err(failed("read", path))
        }
    }
}

fn is_old(entry: &fs::DirEntry) -> bool {
    let settled = |epoch: Epoch| {
        matches!(epoch.state, EpochState::DestinationCommitted | EpochState::DestinationGivenUp)
    };
    let modified = entry.metadata().and_then(|meta| meta.modified()).ok();
    let age = modified.and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > KEPT) && read(&entry.path()).ok().flatten().is_some_and(settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(migration: &str, state: EpochState) -> Epoch {
        let text = str::to_owned;
        Epoch {
            version: 1,
            migration: text(migration),
            pod: text("p"),
            peer: text("b:1"),
            ticket: text("t"),
            state,
        }
    }

    #[test]
    fn a_question_and_a_commit_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("migrations")).unwrap();
        let committed = epoch("m1", EpochState::DestinationCommitted);
        assert!(journal.commit(&committed).unwrap());
        assert_eq!(journal.resolve("m1", "t").unwrap(), Some(committed.clone()));
        assert_eq!(journal.resolve("m1", "wrong").unwrap(), None);
        assert_eq!(journal.resolve("m2", "t").unwrap().unwrap().state, EpochState::DestinationGivenUp);
        assert!(!journal.commit(&epoch("m2", EpochState::DestinationCommitted)).unwrap());
        journal.put(&epoch("m3", EpochState::DestinationReceiving)).unwrap();
        assert!(journal.commit(&epoch("m3", EpochState::DestinationCommitted)).unwrap());
        journal.put(&epoch("m4", EpochState::DestinationReceiving)).unwrap();
        assert_eq!(journal.resolve("m4", "t").unwrap().unwrap().state, EpochState::DestinationGivenUp);
        assert!(!journal.commit(&epoch("m4", EpochState::DestinationCommitted)).unwrap());
    }

    #[test]
    fn records_survive_and_open_ones_are_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        for (id, state) in [("a", EpochState::SourceCommitting), ("b", EpochState::DestinationGivenUp)] {
            journal.put(&epoch(id, state)).unwrap();
        }
        fs::write(dir.path().join("torn.new"), "{").unwrap();
        let again = Journal::open(dir.path()).unwrap();
        assert_eq!(again.unfinished().unwrap(), [epoch("a", EpochState::SourceCommitting)]);
        assert!(!dir.path().join("torn.new").exists());
        again.remove("a").unwrap();
        again.remove("a").unwrap();
        assert!(again.unfinished().unwrap().is_empty());
    }
}

//! What is remembered of each pod, so that it can be taken down when configuration and namespace are gone.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A record cannot be kept, or not be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The disk.
    #[error("{verb} {}", path.display())]
    File {
        /// What was done.
        verb: &'static str,
        /// Of the record.
        path: PathBuf,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// It was changed by others.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Of the record.
        path: PathBuf,
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
}

/// Written before the first ADD and after the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The configuration list that was used.
    pub list: Value,
    pub netns: PathBuf,
    /// CNI_ARGS.
    pub args: String,
    /// What plugins may ask for by capability.
    pub capabilities: Map<String, Value>,
    /// Absent: set-up was not finished.
    pub result: Option<Value>,
}

/// A directory of records, one a pod.
#[derive(Debug)]
pub(super) struct Records(PathBuf);

impl Records {
    pub fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    /// Replaces the record of `id`, whole or not at all; its text is on the disk when this returns.
    pub fn write(&self, id: &str, record: &Record) -> Result<(), RecordError> {
        let path = self.path(id);
        let failed = |verb| {
            let path = path.clone();
            move |source| RecordError::File { verb, path, source }
        };
        fs::create_dir_all(&self.0).map_err(failed("make the directory of"))?;
        let text = serde_json::to_vec(record).expect("maps with text keys are JSON");
        let new = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&new);
        let written = file.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()));
        written.and_then(|()| fs::rename(&new, &path)).map_err(failed("write"))
    }

    /// `None`: there is none.
    pub fn read(&self, id: &str) -> Result<Option<Record>, RecordError> {
        let path = self.path(id);
        match fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(record) => Ok(Some(record)),
                Err(source) => Err(RecordError::Damaged { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RecordError::File { verb: "read", path, source }),
        }
    }

    pub fn remove(&self, id: &str) -> Result<(), RecordError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::File { verb: "remove", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Of all records.
    pub fn ids(&self) -> Vec<String> {
        let files = fs::read_dir(&self.0).into_iter().flatten().flatten();
        files.filter_map(|file| id_of(&file.path())).collect()
    }
}

fn id_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.strip_suffix(".json")?.to_owned())
}

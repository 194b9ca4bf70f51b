//! One daemon per state root and per run directory: a lock that the kernel drops with the process.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why a directory cannot be this daemon's.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error("{directory} is in use by another meridiand (process {pid}): give each its own --root and --run")]
    Held {
        /// Root or run directory.
        directory: PathBuf,
        /// As the other wrote it.
        pid: String,
    },
    /// It cannot be made or locked.
    #[error("claim directory {directory}")]
    Io {
        /// Root or run directory.
        directory: PathBuf,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
}

/// A directory that is this daemon's as long as the value lives.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "held for its lock")] File);

impl Claim {
    /// Makes `directory` (0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub fn take(directory: &Path) -> Result<Self, ClaimError> {
        let failed = |source| ClaimError::Io { directory: directory.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let path = directory.join("meridiand.lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(sys::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                return Err(ClaimError::Held { directory: directory.to_owned(), pid: pid.trim().to_owned() });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let claim = Claim::take(directory.path()).unwrap();
        let error = Claim::take(directory.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("another meridiand (process {})", std::process::id())), "{error}");
        drop(claim);
        Claim::take(directory.path()).unwrap();
    }
}

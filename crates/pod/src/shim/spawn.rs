//! Starting shims: one sealed copy of the program per daemon, one `posix_spawn` per pod.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api::id::PodId;
use sys::seqpacket::{Listener, SeqPacket};
use sys::{Errno, memfd, spawn};

/// Why no shim can be started at all.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The program is not where it was said to be.
    #[error("shim program {path}: cannot be read; set `shim` in the configuration or MERIDIAN_SHIM")]
    Program {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No sealed copy of it.
    #[error("shim program {path}: cannot be copied into a sealed memory file")]
    Copy {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// Why one shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its socket.
    #[error("socket {path} of the shim cannot be made")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Its log file.
    #[error("log {path} of the shim cannot be opened")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `posix_spawn`.
    #[error("the shim cannot be started")]
    Spawn(#[source] Errno),
}

/// The program all shims run: a sealed memory file, so that nothing on disk can change it and all share its pages.
#[derive(Debug)]
pub(crate) struct Launcher {
    program: OwnedFd,
    null: File,
}

/// A shim that was just started: a connection it will accept, and its process.
#[derive(Debug)]
pub(crate) struct Launched {
    pub socket: SeqPacket,
    pub pid: u32,
    pub pidfd: OwnedFd,
}

impl Launcher {
    /// Copies the program at `path`.
    pub(crate) fn new(path: &Path) -> Result<Self, LauncherError> {
        let failed = |source| LauncherError::Program { path: path.to_owned(), source };
        let mut program = File::open(path).map_err(failed)?;
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(failed)?;
        let program = memfd::sealed_copy("meridian-shim", &mut program)
            .map_err(|source| LauncherError::Copy { path: path.to_owned(), source })?;
        Ok(Self { program, null })
    }

    /// Starts the shim of `pod`, listening on `socket`, with its standard error in `log`.
    ///
    /// The connection is made before the shim runs: it waits in the listener's backlog, so that the first request
    /// can be sent without waiting for the program to come up.
    pub(crate) fn launch(&self, pod: &PodId, socket: &Path, log: &Path) -> Result<Launched, SpawnError> {
        let failed = |source| SpawnError::Socket { path: socket.to_owned(), source };
        let listener = Listener::bind(socket).map_err(failed)?;
        let connection = SeqPacket::connect(socket).map_err(failed)?;
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(log)
            .map_err(|source| SpawnError::Log { path: log.to_owned(), source })?;
        // /proc/self would be the child's, whose copy of the descriptor is closed before execve.
        let program = format!("/proc/{}/fd/{}", std::process::id(), self.program.as_raw_fd());
        let strings = |items: &[&str]| spawn::c_strings(items).map_err(SpawnError::Spawn);
        let program = strings(&[&program])?.remove(0);
        let args = strings(&["meridian-shim", pod.as_str()])?;
        let fds = [(self.null.as_fd(), 0), (self.null.as_fd(), 1), (log.as_fd(), 2), (listener.as_fd(), 3)];
        let spawned = spawn::spawn(&program, &args, &[], &fds).map_err(SpawnError::Spawn)?;
        Ok(Launched {
            socket: connection,
            pid: spawned.pid.as_raw_nonzero().get().cast_unsigned(),
            pidfd: spawned.pidfd,
        })
    }
}

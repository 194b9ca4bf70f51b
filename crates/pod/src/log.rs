//! A container's CRI log: opened here, written by the shim.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use sys::Errno;
use sys::root::Root;

use crate::container::Container;
use crate::error::ContainerError;
use crate::pod::Pod;

/// Hands the shim a new file under the log's name.
pub(crate) async fn reopen(pod: &Pod, container: &Container) -> Result<(), ContainerError> {
    let (id, path) = (container.id(), &container.metadata.log_path);
    let client = pod.client().ok_or_else(|| ContainerError::NotRunning { id: id.clone() })?;
    let existed = path.exists();
    let opened = open(&pod.config.log_directory, &container.metadata.config.log_path);
    let Some(log) = opened.map_err(|source| ContainerError::Log { path: path.clone(), source })? else {
        return Ok(());
    };
    let reopened = client.reopen_log(id.as_str(), log.as_fd()).await;
    reopened.map_err(|source| {
        if !existed {
            let _ = std::fs::remove_file(path);
        }
        ContainerError::Shim { id: id.clone(), source }
    })
}

/// Opens the log `path` inside `directory`, made where missing; nothing outside it, no symlink, no FIFO that blocks
/// (CVE-2025-0750). `None` when the container has no log.
pub(crate) fn open(directory: &str, path: &str) -> Result<Option<OwnedFd>, Errno> {
    if directory.is_empty() || path.is_empty() {
        return Ok(None);
    }
    let (parent, name) = split(Path::new(path)).ok_or(Errno::INVAL)?;
    let mut made = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut made, 0o755);
    made.recursive(true).create(directory).map_err(|e| sys::errno_of(&e))?;
    let root = openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let dir = Root::new(root.as_fd()).mkdir_all(parent)?;
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let log = openat(&dir, name, flags, Mode::from_raw_mode(0o640))?;
    let status = fstat(&log)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(Some(log))
}

/// Directory and name of a relative path without `..`.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let plain = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    Some((path.parent()?, path.file_name()?)).filter(|_| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_regular_files_inside_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("made/pod");
        let logs = logs.to_str().unwrap();
        assert!(open(logs, "c/0.log").unwrap().is_some());
        assert!(Path::new(logs).join("c/0.log").is_file());
        assert!(open(logs, "").unwrap().is_none());
        std::os::unix::fs::symlink(dir.path().join("outside"), Path::new(logs).join("link")).unwrap();
        rustix::fs::mknodat(CWD, Path::new(logs).join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        for bad in ["../x", "/etc/x", "link", "fifo", "a/../../x", "c"] {
            assert!(open(logs, bad).is_err(), "{bad}");
        }
        assert!(!dir.path().join("outside").exists());
    }
}

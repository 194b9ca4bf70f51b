//! The cgroup of a pod: one directory in each hierarchy, made, killed and removed here.
//!
//! Limits and the containers' own directories below are the executor's. Killing goes through cgroup2's
//! `cgroup.kill`, which needs no help from the shim and cannot miss a process that forks.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::Errno;
use sys::cgroup::Layout;

/// v1 controllers that limit or count something for us; the others' processes stay where the daemon is.
const V1_USED: [&str; 6] = ["cpu", "cpuacct", "cpuset", "hugetlb", "memory", "pids"];
/// cgroup2 controllers to pass down.
const V2_USED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// The hierarchies of this node.
#[derive(Debug)]
pub(crate) struct Cgroups {
    layout: Layout,
}

/// A pod's directory in one hierarchy, for one controller ("" for cgroup2).
#[derive(Debug)]
pub(crate) struct Directory {
    pub controllers: Vec<String>,
    pub fd: OwnedFd,
}

impl Cgroups {
    pub(crate) fn detect() -> Result<Self, Errno> {
        Layout::detect().map(|layout| Self { layout })
    }

    /// Makes the directories of `path`.
    pub(crate) fn create(&self, path: &str) -> Result<Vec<Directory>, (PathBuf, Errno)> {
        let mut made = Vec::new();
        for (root, controllers) in self.hierarchies() {
            let dir = below(root, path);
            let failed = |e: &io::Error| (dir.clone(), sys::errno_of(e));
            make(root, path, &controllers).map_err(|e| failed(&e))?;
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = openat(CWD, &dir, flags, Mode::empty()).map_err(|e| (dir.clone(), e))?;
            made.push(Directory { controllers, fd });
        }
        Ok(made)
    }

    /// The directories of `path`, one in each hierarchy.
    pub(crate) fn directories(&self, path: &str) -> Vec<PathBuf> {
        self.hierarchies().map(|(root, _)| below(root, path)).collect()
    }

    /// Kills every process in the cgroup and below. Nothing to do when it does not exist.
    pub(crate) fn kill(&self, path: &str) -> io::Result<()> {
        let Some(unified) = &self.layout.unified else { return Err(ErrorKind::Unsupported.into()) };
        match fs::write(below(unified, path).join("cgroup.kill"), "1") {
            Err(e) if is_gone(&e) => Ok(()),
            other => other,
        }
    }

    /// Whether processes are left in the cgroup or below.
    pub(crate) fn is_populated(&self, path: &str) -> bool {
        let Some(unified) = &self.layout.unified else { return false };
        let events = fs::read_to_string(below(unified, path).join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Lets everything in the cgroup and below run.
    pub(crate) fn thaw(&self, path: &str) {
        if let Some(unified) = &self.layout.unified {
            let dir = below(unified, path);
            for child in children(&dir) {
                let _ = fs::write(child.join("cgroup.freeze"), "0");
            }
            let _ = fs::write(dir.join("cgroup.freeze"), "0");
        }
    }

    /// Removes the directories of `path` and those below. Tries all; returns what stayed, and why.
    pub(crate) fn remove(&self, path: &str) -> Vec<String> {
        let mut left = Vec::new();
        for (root, _) in self.hierarchies() {
            let dir = below(root, path);
            if let Err(error) = remove_tree(&dir, 0) {
                left.push(format!("cgroup {}: {error}", dir.display()));
            }
        }
        left
    }

    /// Directory of `path` in the hierarchy that `controller` is on.
    pub(crate) fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let root = if controller.is_empty() || self.layout.on_unified(controller) {
            self.layout.unified.as_deref()
        } else {
            self.layout.v1_of(controller)
        };
        root.map(|root| below(root, path))
    }

    /// Whether `controller` is on cgroup2.
    pub(crate) fn on_unified(&self, controller: &str) -> bool {
        self.layout.on_unified(controller)
    }

    /// The hierarchies in use, cgroup2 first.
    fn hierarchies(&self) -> impl Iterator<Item = (&Path, Vec<String>)> {
        let unified = self.layout.unified.as_deref().map(|root| (root, vec![String::new()]));
        let v1 = self.layout.v1.iter().filter_map(|hierarchy| {
            let used = |c: &&String| V1_USED.contains(&c.as_str());
            let controllers: Vec<_> = hierarchy.controllers.iter().filter(used).cloned().collect();
            (!controllers.is_empty()).then_some((hierarchy.path.as_path(), controllers))
        });
        unified.into_iter().chain(v1)
    }
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Makes each directory on the way that is missing, ready to hold processes.
fn make(root: &Path, path: &str, controllers: &[String]) -> io::Result<()> {
    let mut dir = root.to_owned();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let parent = dir.clone();
        dir.push(name);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        if controllers.iter().any(|c| c == "cpuset") {
            inherit_cpuset(&parent, &dir)?;
        }
        if controllers.iter().any(String::is_empty) {
            pass_controllers(&parent);
        }
    }
    if controllers.iter().any(String::is_empty) {
        pass_controllers(&dir);
    }
    Ok(())
}

/// A new v1 cpuset is empty and takes no process (cgroup-v1/cpusets.rst).
fn inherit_cpuset(parent: &Path, dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        fs::write(dir.join(file), fs::read_to_string(parent.join(file))?.trim_end())?;
    }
    Ok(())
}

/// Best effort: a controller that cannot be passed down shows when a limit needs it.
fn pass_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace().filter(|c| V2_USED.contains(c)) {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// rmdir from the leaves up; a cgroup is never deeper than a nested container manager makes it.
fn remove_tree(dir: &Path, depth: u32) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if is_gone(&e) => return Ok(()),
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) && depth < 32 => {}
        other => return other,
    }
    for child in children(dir) {
        remove_tree(&child, depth + 1)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if is_gone(&e) => Ok(()),
        other => other,
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

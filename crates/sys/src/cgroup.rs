//! Which cgroup hierarchies this host has, and where.
//!
//! Unified: one cgroup2 mount. Hybrid (and plain v1): controllers each in a hierarchy of their own, usually with a
//! cgroup2 mount beside them that has the tree, freezing and killing but no controllers.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::fstatfs;

use crate::{Result, errno_of};

/// The hierarchies mounted in this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Mount point of cgroup2.
    pub unified: Option<PathBuf>,
    /// Controllers of the unified hierarchy's root, such as `memory`.
    pub unified_controllers: Vec<String>,
    /// The v1 hierarchies, by mount point.
    pub v1: Vec<Hierarchy>,
}

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, such as `["cpu", "cpuacct"]`; `["name=systemd"]` for a named one without any.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub path: PathBuf,
}

impl Layout {
    /// Reads `/proc/self/mountinfo`.
    pub fn detect() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| errno_of(&e))?;
        let mut layout = Self::parse(&text);
        if let Some(unified) = &layout.unified {
            let controllers = std::fs::read_to_string(unified.join("cgroup.controllers"));
            layout.unified_controllers =
                controllers.map_err(|e| errno_of(&e))?.split_whitespace().map(str::to_owned).collect();
        }
        Ok(layout)
    }

    /// Whether a controller is governed by cgroup2.
    #[must_use]
    pub fn on_unified(&self, controller: &str) -> bool {
        self.unified_controllers.iter().any(|c| c == controller)
    }

    /// The v1 hierarchy of a controller.
    #[must_use]
    pub fn v1_of(&self, controller: &str) -> Option<&Path> {
        let found = self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        found.map(|h| h.path.as_path())
    }

    fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            // "36 35 98:0 /root /mount/point options [optional...] - type source super,options": proc(5)
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(path) = left.split(' ').nth(4).map(unescape) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) if layout.unified.is_none() => layout.unified = Some(path),
                (Some("cgroup"), Some(options)) => {
                    let controllers = v1_controllers(options);
                    if !controllers.is_empty() && !layout.v1.iter().any(|h| h.controllers == controllers) {
                        layout.v1.push(Hierarchy { controllers, path });
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

/// Whether a directory is on cgroup2.
pub fn is_cgroup2(dir: impl AsFd) -> Result<bool> {
    Ok(fstatfs(dir)?.f_type == libc::CGROUP2_SUPER_MAGIC)
}

fn v1_controllers(options: &str) -> Vec<String> {
    let neither = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods"];
    let listed = options.split(',').filter(|o| !neither.contains(o) && !o.starts_with("release_agent="));
    listed.map(str::to_owned).collect()
}

/// Octal escapes of mountinfo: space, tab, newline, backslash.
fn unescape(field: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, is)| text.replace(escape, is)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid() {
        let layout = Layout::parse(
            "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             31 25 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
             32 25 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n\
             33 25 0:29 / /with\\040space rw - tmpfs tmpfs rw\n",
        );
        assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(layout.v1_of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.v1_of("name=systemd"), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert_eq!(layout.v1_of("memory"), None);
    }

    #[test]
    fn this_host() {
        let layout = Layout::detect().unwrap();
        assert!(layout.unified.is_some() || !layout.v1.is_empty());
    }
}

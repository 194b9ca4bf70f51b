//! A container's root filesystem put in place for CRIU, which restores the mount namespace by itself and only wants
//! to know where the parts are that it did not dump: the root, and every mount that came from outside.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use api::shim::v1::mount::Source;
use api::shim::v1::{ContainerPlan, Mount};
use namespaces::channel::Step;
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::mount::attach;
use sys::root::Root;

use super::mount::checked_destination;
use crate::Failure;
use crate::descriptors::Descriptors;
use crate::error::CreateError;

/// Where the parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Mount point of the root filesystem, CRIU's `root`.
    pub root: PathBuf,
    /// One for each mount that is external to CRIU.
    pub external: Vec<External>,
}

/// One external mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name, the same at dump and restore: the destination.
    pub key: String,
    /// Where it is mounted now.
    pub path: PathBuf,
}

/// The mounts of a plan that come from outside, by destination: volumes, and nodes bound for devices. CRIU dumps and
/// restores the others (proc, sysfs, tmpfs, devpts, mqueue, cgroup) with their contents.
#[must_use]
pub fn external_keys(plan: &ContainerPlan) -> Vec<String> {
    let volumes = plan.mounts.iter().filter(|m| is_external(m)).map(|m| m.destination.clone());
    volumes.chain(plan.devices.iter().filter(|d| d.node_fd.is_some()).map(|d| d.path.clone())).collect()
}

/// Mounts root and external mounts below `directory`, an empty one on a private mount of the caller's mount
/// namespace. Missing mount targets are made in the root, as at creation.
pub fn stage(plan: &ContainerPlan, fds: &mut Descriptors, directory: &Path) -> Result<Staged, CreateError> {
    let base = openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open staging directory", directory.to_string_lossy())?;
    let base = Root::new(base.as_fd());
    let root = fds.take("rootfs_fd", plan.rootfs_fd)?;
    mount_at(base, "root", &root, false)?;
    let inside = Root::new(root.as_fd());
    for mount in &plan.mounts {
        let path = checked_destination("mounts.destination", &mount.destination)?;
        let made = if is_external(mount) && mount.file {
            inside.create_file(&path)
        } else {
            inside.mkdir_all(&path)
        };
        made.step("make mount target", &mount.destination)?;
    }
    let mut external = Vec::new();
    let volumes = plan.mounts.iter().filter_map(|m| match &m.source {
        Some(Source::TreeFd(index)) => Some((&m.destination, "mounts.tree_fd", *index, m.file)),
        _ => None,
    });
    let nodes = plan.devices.iter().filter_map(|d| Some((&d.path, "devices.node_fd", d.node_fd?, true)));
    for (number, (key, field, index, file)) in volumes.chain(nodes).enumerate() {
        let name = number.to_string();
        mount_at(base, &name, &fds.take(field, index)?, file)?;
        external.push(External { key: key.clone(), path: directory.join(name) });
    }
    Ok(Staged { root: directory.join("root"), external })
}

fn mount_at(base: Root<'_>, name: &str, tree: impl AsFd, file: bool) -> Result<(), Failure> {
    let target = if file { base.create_file(name) } else { base.mkdir_all(name) };
    attach(tree, target.step("stage", name)?).step("stage", name)
}

fn is_external(mount: &Mount) -> bool {
    matches!(mount.source, Some(Source::TreeFd(_)))
}

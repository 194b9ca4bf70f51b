//! A container's root filesystem put in place for CRIU, which restores the mount namespace by itself and only wants
//! to know where the parts are that it did not dump: the root, and every external mount.
//!
//! Native to CRIU, which makes them again: proc, sysfs, devpts, mqueue, tmpfs (with contents), and the read-only binds
//! of their own parts. External: volumes, the tmpfs on `/dev`, masks, bound devices, cgroup2. Both sides name an
//! external mount by its destination.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use api::shim::v1::mount::Source;
use api::shim::v1::{ContainerPlan, Mount as PlanMount};
use namespaces::channel::{Channel, Step};
use namespaces::{Kinds, NamespaceKind as Kind};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use sys::clone::{Options, fork};
use sys::mount::{Flags, attach, clone_tree};
use sys::pidfd;
use sys::root::Root;

use super::mount::{Mount, checked_destination, new_filesystem};
use super::{dev, device, mask};
use crate::cgroup::Cgroup;
use crate::descriptors::Descriptors;
use crate::error::CreateError;
use crate::{Failure, Sandbox};

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

/// Destinations of the mounts that are external to CRIU. Some masked path may not exist on this kernel, and so not be
/// a mount.
#[must_use]
pub fn external_keys(plan: &ContainerPlan) -> Vec<String> {
    let mounts = plan.mounts.iter().filter(|m| is_external(m)).map(|m| m.destination.clone());
    let nodes = plan.devices.iter().filter(|d| d.node_fd.is_some() && !dev::is_reserved(Path::new(&d.path)));
    let nodes = nodes.map(|d| d.path.clone());
    mounts.chain(nodes).chain(plan.masked_paths.iter().cloned()).collect()
}

/// Mounts root and external mounts below `directory`, an empty one on a private mount of the caller's mount
/// namespace, which shows the host's `/proc` and `/sys`. Missing mount targets are made in the root, as at creation.
///
/// `cgroup` is the container's, made before.
pub fn stage(
    sandbox: &Sandbox,
    plan: &ContainerPlan,
    fds: &mut Descriptors,
    cgroup: &Cgroup,
    directory: &Path,
) -> Result<Staged, CreateError> {
    let base = openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .step("open staging directory", directory.to_string_lossy())?;
    let mut stage = Stage { base, directory, trees: Vec::new(), external: Vec::new(), null: None };
    let root = fds.take("rootfs_fd", plan.rootfs_fd)?;
    stage.place("root", &root, false)?;
    stage.trees.push(("/".into(), root));
    let mut devices = device::prepare(&plan.devices, fds)?;
    for mount in &plan.mounts {
        stage.mount(sandbox, mount, fds, cgroup, &mut devices)?;
    }
    if plan.process.as_ref().is_some_and(|process| process.tty) {
        stage.make_target(Path::new("/dev/console"), true)?;
    }
    for device in devices {
        match device.into_node() {
            Ok((path, node)) => stage.add(&path, node, true)?,
            Err(device) => device.make_in(Root::new(stage.root()))?,
        }
    }
    for path in &plan.masked_paths {
        stage.mask(&checked_destination("masked_paths", path)?)?;
    }
    Ok(Staged { root: directory.join("root"), external: stage.external })
}

struct Stage<'a> {
    base: OwnedFd,
    directory: &'a Path,
    /// Trees in which later targets may lie, by destination, in the order of mounting.
    trees: Vec<(PathBuf, OwnedFd)>,
    external: Vec<External>,
    /// A mounted filesystem with the null device that masks files.
    null: Option<OwnedFd>,
}

impl Stage<'_> {
    fn mount(
        &mut self,
        sandbox: &Sandbox,
        mount: &PlanMount,
        fds: &mut Descriptors,
        cgroup: &Cgroup,
        devices: &mut Vec<device::Device>,
    ) -> Result<(), CreateError> {
        let mut checked = Mount::prepare(mount, fds)?;
        let path = checked.destination().to_owned();
        self.make_target(&path, mount.file)?;
        let tree = match &mount.source {
            Some(Source::Filesystem(fs)) if fs.r#type == "cgroup2" => {
                let flags = Flags::from_bits_retain(u32::try_from(fs.attributes).unwrap_or(u32::MAX));
                Some(cgroup_view(cgroup, &fs.options, flags)?)
            }
            _ if checked.is_dev() => {
                checked.become_dev(sandbox, devices)?;
                checked.into_fd()
            }
            _ => checked.into_fd(),
        };
        match tree {
            Some(tree) => Ok(self.add(&path, tree, mount.file)?),
            None => Ok(()),
        }
    }

    /// Makes what a mount at `path` will cover, in the tree that is mounted there then.
    fn make_target(&self, path: &Path, file: bool) -> Result<(), Failure> {
        let holds = |(at, tree): &(PathBuf, OwnedFd)| {
            Some((path.strip_prefix(at).ok()?.to_owned(), tree.as_fd().try_clone_to_owned()))
        };
        let Some((below, tree)) = self.trees.iter().rev().find_map(holds) else { return Ok(()) };
        let tree = tree.step("duplicate", path.to_string_lossy())?;
        let tree = Root::new(tree.as_fd());
        let made = if file { tree.create_file(&below) } else { tree.mkdir_all(&below) };
        made.map(drop).step("make mount target", path.to_string_lossy())
    }

    fn add(&mut self, path: &Path, tree: OwnedFd, file: bool) -> Result<(), Failure> {
        let name = self.external.len().to_string();
        self.place(&name, &tree, file)?;
        self.external
            .push(External { key: path.to_string_lossy().into_owned(), path: self.directory.join(name) });
        if !file {
            self.trees.push((path.to_owned(), tree));
        }
        Ok(())
    }

    fn place(&self, name: &str, tree: &OwnedFd, file: bool) -> Result<(), Failure> {
        let base = Root::new(self.base.as_fd());
        let target = if file { base.create_file(name) } else { base.mkdir_all(name) };
        attach(tree, target.step("stage", name)?).step("stage", name)
    }

    fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        self.trees[0].1.as_fd()
    }

    /// As [`mask::hide`] would have done it here: by what the path is on this host.
    fn mask(&mut self, path: &Path) -> Result<(), Failure> {
        let object = path.to_string_lossy();
        let of_kernel = path.starts_with("/proc") || path.starts_with("/sys");
        let host = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step("open", "/")?;
        let root = Root::new(if of_kernel { host.as_fd() } else { self.root() });
        let Ok(found) = root.locate(path) else { return Ok(()) };
        let directory =
            FileType::from_raw_mode(fstat(&found).step("stat", &object)?.st_mode) == FileType::Directory;
        let tree = if directory { mask::empty().step("mask", &object)? } else { self.null_device()? };
        self.add(path, tree, !directory)
    }

    /// A detached mount whose root is a null device. Only what is attached can be cloned before Linux 6.15.
    fn null_device(&mut self) -> Result<OwnedFd, Failure> {
        if self.null.is_none() {
            let tmpfs = dev::tmpfs_with_null().step("mount tmpfs", "null")?;
            self.place("null", &tmpfs, false)?;
            self.null = Some(tmpfs);
        }
        let tmpfs = self.null.as_ref().expect("made just above");
        clone_tree(tmpfs, "null", false).step("clone", "null")
    }
}

/// A cgroup2 mount that shows the container's cgroup as its root.
fn cgroup_view(cgroup: &Cgroup, options: &[String], flags: Flags) -> Result<OwnedFd, CreateError> {
    let (ours, theirs) = Channel::pair().step("socketpair", "")?;
    let options_in = Options { new: Kinds::from(Kind::Cgroup), cgroup: Some(cgroup.as_fd()), sibling: false };
    let child = fork(&options_in, || {
        let view = new_filesystem("cgroup2", options, flags).step("mount cgroup2", "/sys/fs/cgroup");
        match view.and_then(|view| theirs.ready(&[view.as_fd()]).step("send", "cgroup2")) {
            Ok(()) => 0,
            Err(failure) => {
                theirs.failed(&failure);
                1
            }
        }
    });
    let child = child.step("clone3", "cgroup helper")?;
    drop(theirs);
    let view = ours.wait_ready();
    let _ = pidfd::wait(&child.pidfd);
    view?.pop().ok_or_else(|| Failure::new("mount cgroup2", "/sys/fs/cgroup", sys::Errno::BADF).into())
}

fn is_external(mount: &PlanMount) -> bool {
    match &mount.source {
        Some(Source::TreeFd(_)) => true,
        Some(Source::Filesystem(fs)) => {
            fs.r#type == "cgroup2" || (fs.r#type == "tmpfs" && mount.destination == "/dev")
        }
        None => false,
    }
}

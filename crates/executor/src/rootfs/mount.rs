//! Mounts of a plan.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use api::shim::v1 as proto;
use api::shim::v1::mount::Source as PlanSource;
use namespaces::channel::Step;
use rustix::fs::{Mode, OFlags};
use sys::Errno;
use sys::mount::{Filesystem, Flags, attach};
use sys::root::Root;

use super::dev;
use super::device::Device;
use crate::descriptors::Descriptors;
use crate::error::{CreateError, plan};
use crate::{Failure, Sandbox};

/// Types that a plan may ask for; each isolates itself by the namespaces of who mounts it.
const TYPES: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2", "cgroup"];

/// One mount, checked.
#[derive(Debug)]
pub struct Mount {
    destination: PathBuf,
    source: Source,
    /// The target to make is a file.
    file: bool,
}

#[derive(Debug)]
enum Source {
    /// A detached mount.
    Tree(OwnedFd),
    /// The same, but of a filesystem with a meaning: its target must be a real directory.
    Own(OwnedFd),
    /// To be made by the child, in its namespaces.
    New { kind: String, options: Vec<String>, flags: Flags },
}

pub fn prepare(mounts: &[proto::Mount], fds: &mut Descriptors) -> Result<Vec<Mount>, CreateError> {
    mounts.iter().map(|mount| Mount::prepare(mount, fds)).collect()
}

impl Mount {
    pub fn prepare(mount: &proto::Mount, fds: &mut Descriptors) -> Result<Self, CreateError> {
        let destination = checked_destination("mounts.destination", &mount.destination)?;
        let source = match &mount.source {
            Some(PlanSource::TreeFd(index)) => Source::Tree(fds.take("mounts.tree_fd", *index)?),
            Some(PlanSource::Filesystem(fs)) if TYPES.contains(&fs.r#type.as_str()) => Source::New {
                kind: fs.r#type.clone(),
                options: fs.options.clone(),
                flags: Flags::from_bits_retain(u32::try_from(fs.attributes).unwrap_or(u32::MAX)),
            },
            Some(PlanSource::Filesystem(fs)) => {
                return Err(plan(
                    "mounts.filesystem.type",
                    fs.r#type.as_str(),
                    "must be a filesystem without a device",
                ));
            }
            None => {
                return Err(plan(
                    "mounts.source",
                    mount.destination.as_str(),
                    "must be a tree or a filesystem",
                ));
            }
        };
        Ok(Self { destination, source, file: mount.file })
    }

    /// Whether it is the tmpfs on `/dev`, which the parent fills.
    pub fn is_dev(&self) -> bool {
        self.destination == Path::new("/dev")
            && matches!(&self.source, Source::New { kind, .. } if kind == "tmpfs")
    }

    /// Makes and fills the tmpfs here and now, with the host's right to make device nodes, and gives its `null`.
    pub fn become_dev(
        &mut self,
        sandbox: &Sandbox,
        devices: &mut Vec<Device>,
    ) -> Result<OwnedFd, CreateError> {
        let Source::New { options, flags, .. } = &self.source else {
            return Err(plan("mounts", "/dev", "must be a tmpfs"));
        };
        let tmpfs = new_filesystem("tmpfs", options, *flags).step("mount tmpfs", "/dev")?;
        let null = dev::fill(&tmpfs, sandbox, devices)?;
        self.source = Source::Own(tmpfs);
        Ok(null)
    }

    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Its detached mount, if it exists already.
    pub fn into_fd(self) -> Option<OwnedFd> {
        match self.source {
            Source::Tree(fd) | Source::Own(fd) => Some(fd),
            Source::New { .. } => None,
        }
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.source {
            Source::Tree(fd) | Source::Own(fd) => Some(fd.as_fd()),
            Source::New { .. } => None,
        }
    }

    /// Mounts it inside `root`.
    pub fn attach_in(&self, root: Root<'_>) -> Result<(), Failure> {
        let place = self.destination.to_string_lossy();
        match &self.source {
            Source::Tree(tree) => {
                let target = if self.file {
                    root.create_file(&self.destination)
                } else {
                    root.mkdir_all(&self.destination)
                };
                attach(tree, target.step("mount volume", &place)?).step("mount volume", &place)
            }
            Source::Own(tmpfs) => {
                let target = real_directory(root, &self.destination).step("mount tmpfs", &place)?;
                attach(tmpfs, target).step("mount tmpfs", &place)
            }
            Source::New { kind, options, flags } => {
                let step = format!("mount {kind}");
                // tmpfs alone may lie behind a symlink (/var/run): what is in it has no meaning to the kernel.
                let target = match kind.as_str() {
                    "tmpfs" => root.mkdir_all(&self.destination),
                    _ => real_directory(root, &self.destination),
                };
                let target = target.step(&step, &place)?;
                let made = new_filesystem(kind, options, *flags).step(&step, &place)?;
                attach(made, target).step(&step, &place)
            }
        }
    }
}

/// A directory that no symlink leads to: a procfs under another name would make masks and labels miss
/// (CVE-2019-19921, CVE-2023-27561).
fn real_directory(root: Root<'_>, path: &Path) -> sys::Result<OwnedFd> {
    let open = || root.open_without_symlinks(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            root.mkdir_all(path)?;
            open()
        }
        other => other,
    }
}

pub fn new_filesystem(kind: &str, options: &[String], flags: Flags) -> sys::Result<OwnedFd> {
    let context = Filesystem::open(kind)?;
    for option in options {
        match option.split_once('=') {
            Some((key, value)) => context.set(key, value)?,
            None => context.set_flag(option)?,
        };
    }
    context.mount(flags)
}

/// An absolute path of plain names.
pub fn checked_destination(field: &'static str, path: &str) -> Result<PathBuf, CreateError> {
    let components = Path::new(path).components();
    let plain = components.clone().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !path.starts_with('/') || !plain || path.contains('\0') || components.count() < 2 {
        return Err(plan(field, path, "must be an absolute path below / without '..'"));
    }
    // Components alone: no "//", "/./" or trailing slash is left for a comparison to miss.
    Ok(Path::new(path).components().collect())
}

//! A container's root filesystem: the overlay that the daemon made, and everything mounted in it.
//!
//! Prepared in the parent ([`Rootfs::prepare`]): descriptors taken, paths checked, `/dev` filled. Assembled in the
//! child ([`Rootfs::assemble`]), whose mount namespace is new and whose root is still the shim's.

pub(crate) mod dev;
mod device;
mod mask;
mod mount;
pub(crate) mod stage;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::ContainerPlan;
use namespaces::channel::Step;
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::mount::{Attributes, Flags, Propagation, attach, attach_at, pivot, set_attributes};
use sys::pty::Pty;
use sys::root::Root;

use crate::descriptors::Descriptors;
use crate::error::CreateError;
use crate::{Failure, Sandbox};

use device::Device;
use mask::Hidden;
use mount::Mount;

/// Everything to be mounted, by descriptor.
#[derive(Debug)]
pub(crate) struct Rootfs {
    root: OwnedFd,
    read_only: bool,
    mounts: Vec<Mount>,
    devices: Vec<Device>,
    hidden: Vec<Hidden>,
    /// `/dev/null` of the container's own `/dev`, or of nowhere when it has none.
    null: OwnedFd,
    /// A sysfs of the shim's, lent to a mount namespace that a user namespace owns.
    lent_sysfs: Option<OwnedFd>,
}

impl Rootfs {
    pub(crate) fn prepare(
        sandbox: &Sandbox,
        plan: &ContainerPlan,
        fds: &mut Descriptors,
    ) -> Result<Self, CreateError> {
        let root = fds.take("rootfs_fd", plan.rootfs_fd)?;
        let mut devices = device::prepare(&plan.devices, fds)?;
        let mut mounts = mount::prepare(&plan.mounts, fds)?;
        let null = match mounts.iter_mut().find(|m| m.is_dev()) {
            Some(dev) => dev.become_dev(sandbox, &mut devices)?,
            None => dev::null().step("make a null device", "")?,
        };
        Ok(Self {
            root,
            read_only: plan.readonly_rootfs,
            mounts,
            devices,
            hidden: mask::prepare(&plan.masked_paths, &plan.readonly_paths)?,
            null,
            lent_sysfs: lend_sysfs(sandbox)?,
        })
    }

    /// Mounts everything onto the root. The caller is alone in its mount namespace.
    pub(crate) fn assemble(&self) -> Result<(), Failure> {
        let old_root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step("open", "/")?;
        // First of all: nothing done below may travel to the namespace that this one was copied from.
        let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
        set_attributes(&old_root, true, &private).step("make private", "/")?;
        if let Some(sysfs) = &self.lent_sysfs {
            attach_at(sysfs, "/proc").step("lend sysfs", "/proc")?;
        }
        attach(&self.root, &old_root).step("mount", "root filesystem")?;
        let root = Root::new(self.root.as_fd());
        for mount in &self.mounts {
            mount.attach_in(root)?;
        }
        for device in &self.devices {
            device.make_in(root)?;
        }
        mask::hide(root, &self.hidden, self.null.as_fd())
    }

    /// A terminal of the container's own devpts, which also becomes its `/dev/console`.
    pub(crate) fn terminal(&self, owner: u32) -> Result<Pty, Failure> {
        let root = Root::new(self.root.as_fd());
        let devpts = root
            .open_without_symlinks("/dev/pts", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
            .step("open", "/dev/pts")?;
        let pty = sys::pty::open(&devpts).step("open a terminal of", "/dev/pts")?;
        let owner = Some(rustix::fs::Uid::from_raw(owner));
        rustix::fs::fchown(&pty.slave, owner, None).step("chown", "terminal")?;
        let console = root.create_file("/dev/console").step("make", "/dev/console")?;
        let bound = sys::mount::clone_tree(&pty.slave, "", false).step("clone", "terminal")?;
        attach(&bound, &console).step("mount terminal", "/dev/console")?;
        Ok(pty)
    }

    /// Makes this the only root that the process can see.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        pivot(&self.root).step("pivot_root", "root filesystem")
    }

    /// After everything that had to be made in it was made.
    pub(crate) fn seal(&self) -> Result<(), Failure> {
        if !self.read_only {
            return Ok(());
        }
        let read_only = Attributes { set: Flags::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set_attributes(&self.root, false, &read_only).step("make read-only", "root filesystem")
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Every descriptor that the child needs.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let mounts = self.mounts.iter().filter_map(Mount::fd);
        let devices = self.devices.iter().filter_map(Device::fd);
        let single = [Some(&self.root), Some(&self.null), self.lent_sysfs.as_ref()];
        single.into_iter().flatten().map(AsFd::as_fd).chain(mounts).chain(devices)
    }
}

/// The kernel lets a user namespace mount a sysfs only where its mount namespace shows one already ("mount too
/// revealing"); the shim's shows a procfs but no sysfs.
fn lend_sysfs(sandbox: &Sandbox) -> Result<Option<OwnedFd>, Failure> {
    if sandbox.id_maps.is_none() {
        return Ok(None);
    }
    let flags = Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV | Flags::MOUNT_ATTR_NOEXEC;
    let sysfs = sys::mount::Filesystem::open("sysfs").and_then(|fs| fs.mount(flags));
    sysfs.step("mount sysfs", "for the user namespace").map(Some)
}

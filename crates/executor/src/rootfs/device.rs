//! Devices of a plan beyond the default ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use api::shim::v1 as proto;
use namespaces::channel::Step;
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat};
use sys::mount::attach;
use sys::root::Root;

use super::dev;
use super::mount::checked_destination;
use crate::descriptors::Descriptors;
use crate::error::{CreateError, plan};
use crate::{Failure, Sandbox};

/// One device, checked.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: Mode,
    uid: u32,
    gid: u32,
    /// The host's node, to bind where none can be made.
    node: Option<OwnedFd>,
}

/// Checks the devices of a plan. Those that every `/dev` holds anyway are left out: a privileged pod lists all of the
/// host's.
pub fn prepare(devices: &[proto::Device], fds: &mut Descriptors) -> Result<Vec<Device>, CreateError> {
    let mut prepared = Vec::with_capacity(devices.len());
    for device in devices {
        let checked = Device::prepare(device, fds)?;
        if !dev::is_reserved(&checked.path) {
            prepared.push(checked);
        }
    }
    Ok(prepared)
}

impl Device {
    fn prepare(device: &proto::Device, fds: &mut Descriptors) -> Result<Self, CreateError> {
        let kind = match device.r#type.as_str() {
            "c" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            other => return Err(plan("devices.type", other, "must be c or b")),
        };
        // Bounds of the kernel's dev_t: 12 and 20 bits.
        if device.major > 0xfff || device.minor > 0xf_ffff {
            let value = format!("{}:{}", device.major, device.minor);
            return Err(plan("devices.major", value, "must be within 0..=4095 : 0..=1048575"));
        }
        Ok(Self {
            path: checked_destination("devices.path", &device.path)?,
            kind,
            number: makedev(device.major, device.minor),
            mode: Mode::from_raw_mode(device.mode & 0o777),
            uid: device.uid,
            gid: device.gid,
            node: device.node_fd.map(|index| fds.take("devices.node_fd", index)).transpose()?,
        })
    }

    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.node.as_ref().map(AsFd::as_fd)
    }

    /// The node that is to be bound, with its path; else itself again.
    pub fn into_node(self) -> Result<(PathBuf, OwnedFd), Self> {
        match self.node {
            Some(node) => Ok((self.path, node)),
            None => Err(self),
        }
    }

    /// Makes or binds it inside `root`.
    pub fn make_in(&self, root: Root<'_>) -> Result<(), Failure> {
        let place = self.path.to_string_lossy();
        match &self.node {
            Some(node) => {
                let target = root.create_file(&self.path).step("mount device", &place)?;
                attach(node, target).step("mount device", &place)
            }
            None => self.make_node(root, &self.path, (self.uid, self.gid)).step("make device", &place),
        }
    }

    fn make_node(&self, root: Root<'_>, path: &Path, (uid, gid): (u32, u32)) -> sys::Result<()> {
        let (parent, name) = root.parent_of(path)?;
        // Fails where the image has something by that name: a node is never written over it.
        mknodat(&parent, name, self.kind, self.mode, self.number)?;
        chownat(
            &parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        // Against a umask that is not 0.
        chmodat(&parent, name, self.mode, AtFlags::empty())
    }
}

/// Makes those that belong below `/dev` on its detached tmpfs, and leaves the others in the list.
pub fn make_below_dev(
    tmpfs: BorrowedFd<'_>,
    sandbox: &Sandbox,
    devices: &mut Vec<Device>,
) -> Result<(), Failure> {
    let mut rest = Vec::new();
    for device in devices.drain(..) {
        match device.path.strip_prefix("/dev") {
            Ok(below) if device.node.is_none() => {
                let owner = (sandbox.host_uid(device.uid), sandbox.host_gid(device.gid));
                let made = device.make_node(Root::new(tmpfs), below, owner);
                made.step("make device", device.path.to_string_lossy())?;
            }
            _ => rest.push(device),
        }
    }
    *devices = rest;
    Ok(())
}

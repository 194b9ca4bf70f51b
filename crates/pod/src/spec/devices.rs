//! Device nodes of a container, and what its device filter lets through.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use api::cri::v1 as cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{CWD, FileType, Mode, OFlags, major, minor, openat};
use sys::mount::clone_tree;

use super::SpecError;

/// Most nodes taken from one host directory.
const LIMIT: usize = 4096;

/// A node to make, or in a pod with a user namespace, where mknod(2) is refused, to bind.
#[derive(Debug)]
pub(crate) struct Node {
    pub device: LinuxDevice,
    /// `rwm` letters.
    pub access: String,
    /// Detached clone of the host's node.
    pub bind: Option<OwnedFd>,
}

/// Nodes every container has (runtime-spec, "Default Devices"); the executor makes them itself where it can.
const DEFAULT: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The nodes that the request names, those of the whole node if privileged, and the default ones where they must be
/// bound.
pub(crate) fn nodes(
    requested: &[cri::Device],
    privileged: bool,
    user_namespace: bool,
) -> Result<Vec<Node>, SpecError> {
    let mut nodes = Vec::new();
    if user_namespace {
        for name in DEFAULT {
            let path = Path::new("/dev").join(name);
            collect(&path, &path, "rwm", true, &mut nodes)?;
        }
    }
    if privileged {
        collect_host(user_namespace, &mut nodes)?;
    }
    for device in requested {
        let (host, inside) = (Path::new(&device.host_path), Path::new(&device.container_path));
        let before = nodes.len();
        collect(host, inside, &device.permissions, user_namespace, &mut nodes)?;
        if nodes.len() == before {
            return Err(SpecError::NoDevice { path: host.to_owned() });
        }
    }
    Ok(nodes)
}

/// Rules for the device filter beyond the default ones.
pub(crate) fn rules(nodes: &[Node]) -> Vec<LinuxDeviceCgroup> {
    let rule = |node: &Node| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(node.device.typ()));
        rule.set_major(Some(node.device.major()));
        rule.set_minor(Some(node.device.minor()));
        rule.set_access(Some(node.access.clone()));
        rule
    };
    nodes.iter().map(rule).collect()
}

/// `host` if it is a node, else every node below it.
fn collect(
    host: &Path,
    inside: &Path,
    access: &str,
    bind: bool,
    nodes: &mut Vec<Node>,
) -> Result<(), SpecError> {
    let failed = |source| SpecError::Device { path: host.to_owned(), source };
    let fd = openat(CWD, host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let status = rustix::fs::fstat(&fd).map_err(failed)?;
    let typ = match FileType::from_raw_mode(status.st_mode) {
        FileType::CharacterDevice => LinuxDeviceType::C,
        FileType::BlockDevice => LinuxDeviceType::B,
        FileType::Directory => {
            return children(host)?.into_iter().try_for_each(|name| {
                collect_quietly(&host.join(&name), &inside.join(&name), access, bind, nodes)
            });
        }
        _ => return Err(SpecError::NoDevice { path: host.to_owned() }),
    };
    if nodes.len() >= LIMIT {
        return Err(SpecError::TooManyDevices { path: host.to_owned() });
    }
    let mut device = LinuxDevice::default();
    device.set_path(inside.to_owned());
    device.set_typ(typ);
    device.set_major(i64::from(major(status.st_rdev)));
    device.set_minor(i64::from(minor(status.st_rdev)));
    device.set_file_mode(Some(status.st_mode & 0o7777));
    device.set_uid(Some(status.st_uid));
    device.set_gid(Some(status.st_gid));
    let bind = if bind { Some(clone_tree(&fd, "", false).map_err(failed)?) } else { None };
    nodes.push(Node { device, access: access.to_owned(), bind });
    Ok(())
}

/// As [`collect`], but what is no node, or went away, is passed over.
fn collect_quietly(
    host: &Path,
    inside: &Path,
    access: &str,
    bind: bool,
    nodes: &mut Vec<Node>,
) -> Result<(), SpecError> {
    if std::fs::symlink_metadata(host).is_ok_and(|m| m.is_symlink()) {
        return Ok(()); // /dev/stdin and the like: each container has its own
    }
    match collect(host, inside, access, bind, nodes) {
        Err(SpecError::NoDevice { .. } | SpecError::Device { .. }) => Ok(()),
        other => other,
    }
}

/// Everything in /dev but what is each container's own.
fn collect_host(bind: bool, nodes: &mut Vec<Node>) -> Result<(), SpecError> {
    const OWN: [&str; 9] = ["pts", "shm", "mqueue", "fd", "hugepages", "console", "ptmx", "log", "core"];
    let dev = Path::new("/dev");
    for name in children(dev)? {
        let default = DEFAULT.iter().any(|known| name.as_os_str() == *known);
        if !default && !OWN.iter().any(|own| name.as_os_str() == *own) {
            collect_quietly(&dev.join(&name), &dev.join(&name), "rwm", bind, nodes)?;
        }
    }
    Ok(())
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, SpecError> {
    let failed = |e: std::io::Error| SpecError::Device { path: dir.to_owned(), source: sys::errno_of(&e) };
    let entries = std::fs::read_dir(dir).map_err(failed)?;
    let mut names: Vec<_> = entries.take(LIMIT).flatten().map(|e| PathBuf::from(e.file_name())).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str) -> cri::Device {
        cri::Device { container_path: "/dev/x".into(), host_path: host.into(), permissions: "rw".into() }
    }

    #[test]
    fn numbers_come_from_the_node_and_access_from_the_request() {
        let found = nodes(&[device("/dev/null")], false, false).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].device.major(), found[0].device.minor()), (1, 3));
        assert_eq!(found[0].device.path(), Path::new("/dev/x"));
        assert_eq!(rules(&found)[0].access().as_deref(), Some("rw"));
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert!(matches!(nodes(&[device("/etc/passwd")], false, false), Err(SpecError::NoDevice { .. })));
        assert!(matches!(nodes(&[device("/no/such")], false, false), Err(SpecError::Device { .. })));
        let empty = tempfile::tempdir().unwrap();
        let path = empty.path().to_str().unwrap();
        assert!(matches!(nodes(&[device(path)], false, false), Err(SpecError::NoDevice { .. })));
    }
}

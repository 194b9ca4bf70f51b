//! Mounts of a container: the standard filesystems, the pod's own files, the request's volumes.
//!
//! Sources are cloned here, in the host's mount namespace, into detached trees that already carry their flags and
//! propagation; the executor only attaches them. A path of the host is opened once, and everything after is done to
//! that descriptor, so that swapping a component changes nothing (CVE-2021-25741).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use api::cri::v1::{self as cri, MountPropagation};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};
use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use sys::mount::{Attributes, Flags, Propagation, clone_tree, set_attributes};

use super::{SpecError, image_volume};

/// A mount in order of attachment, with its detached tree if it is a bind.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As the specification shows it.
    pub mount: Mount,
    /// What to attach; `None`: an instance of the filesystem is made by the executor.
    pub tree: Option<OwnedFd>,
    /// The source is not a directory.
    pub file: bool,
    /// The pod's /dev/shm.
    pub pod_shm: bool,
}

/// Files and directories the daemon keeps for a pod.
#[derive(Debug, Clone)]
pub(crate) struct PodFiles {
    /// `RUN/pods/<id>`.
    pub dir: PathBuf,
    /// The node's `/dev/shm` instead of the pod's own.
    pub node_shm: bool,
    /// The node's hostname file instead of the pod's own.
    pub node_hostname: bool,
}

impl PodFiles {
    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        if self.node_hostname { "/etc/hostname".into() } else { self.dir.join("hostname") }
    }

    pub(crate) fn shm(&self) -> PathBuf {
        if self.node_shm { "/dev/shm".into() } else { self.dir.join("shm") }
    }
}

/// The pod's user namespace, to show volumes through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodUsers<'a> {
    pub namespace: BorrowedFd<'a>,
    pub uids: &'a [cri::IdMapping],
    pub gids: &'a [cri::IdMapping],
}

/// What decides about mounts beside the request's own list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub files: &'a PodFiles,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub users: Option<PodUsers<'a>>,
    /// The pod's network namespace belongs to another user namespace (host network): sysfs cannot be made.
    pub node_network: bool,
    /// Where volumes that are images come from.
    pub image_volumes: Option<image_volume::Source<'a>>,
}

/// Everything to mount, in order: parents before children, standard mounts only where the request has none.
pub(crate) fn all(volumes: &[cri::Mount], context: Context<'_>) -> Result<Vec<Entry>, SpecError> {
    let taken = |path: &str| volumes.iter().any(|v| normal(&v.container_path) == Path::new(path));
    let mut entries = Vec::new();
    for (path, kind, options) in filesystems(context.privileged) {
        if taken(path) {
            continue;
        }
        if path == "/sys" && context.users.is_some() && context.node_network {
            // sysfs(5) needs the network namespace to belong to the pod: take the node's, read-only.
            entries.push(bind(Path::new("/sys"), path, &["rbind", "nosuid", "noexec", "nodev", "ro"])?);
            continue;
        }
        entries.push(Entry {
            mount: mount(path, kind, kind, &options),
            tree: None,
            file: false,
            pod_shm: false,
        });
    }
    let ro = if context.readonly_rootfs { "ro" } else { "rw" };
    for (path, source) in [
        ("/etc/hosts", context.files.hosts()),
        ("/etc/hostname", context.files.hostname()),
        ("/etc/resolv.conf", context.files.resolv_conf()),
    ] {
        if !taken(path) && source.exists() {
            entries.push(bind(&source, path, &["bind", ro])?);
        }
    }
    if !taken("/dev/shm") {
        let own = !context.files.node_shm;
        let shm = bind(&context.files.shm(), "/dev/shm", &["bind", "rw", "nosuid", "nodev", "noexec"])?;
        entries.push(Entry { pod_shm: own, ..shm });
    }
    let mut sorted: Vec<_> = volumes.iter().collect();
    sorted.sort_by_key(|v| normal(&v.container_path).components().count());
    for volume in sorted {
        entries.push(match context.image_volumes.filter(|_| image_volume::is_image(volume)) {
            Some(source) => source.open(volume)?,
            None => open_volume(volume, context.users)?,
        });
    }
    Ok(entries)
}

/// (destination, type, options) of what every container has, parents first.
fn filesystems(privileged: bool) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let ro = if privileged { "rw" } else { "ro" };
    vec![
        ("/proc", "proc", vec!["nosuid", "noexec", "nodev"]),
        ("/dev", "tmpfs", vec!["nosuid", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/mqueue", "mqueue", vec!["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", vec!["nosuid", "noexec", "nodev", ro]),
        ("/sys/fs/cgroup", "cgroup2", vec!["nosuid", "noexec", "nodev", "relatime", ro]),
    ]
}

/// A volume of the request: opened, cloned, with its flags set.
fn open_volume(volume: &cri::Mount, users: Option<PodUsers<'_>>) -> Result<Entry, SpecError> {
    let propagation = MountPropagation::try_from(volume.propagation).unwrap_or_default();
    let (tree, file) = clone_source(Path::new(&volume.host_path), propagation)?;
    let failed = |source| SpecError::Volume { path: volume.host_path.clone().into(), source };
    let set = |recursive, change: &Attributes<'_>| set_attributes(&tree, recursive, change).map_err(failed);
    let kind = match propagation {
        MountPropagation::PropagationPrivate => Some(Propagation::Private),
        MountPropagation::PropagationHostToContainer => Some(Propagation::Slave),
        // The clone of a shared mount is its peer already.
        MountPropagation::PropagationBidirectional => None,
    };
    let options = option_flags(&volume.mount_options);
    set(true, &Attributes { set: options, propagation: kind, ..Attributes::default() })?;
    if !volume.uid_mappings.is_empty() {
        // The kubelet maps a volume as it maps the pod (KEP-127); the kernel takes a map from a user namespace, and
        // there is no other to take it from.
        let same =
            |users: &PodUsers<'_>| users.uids == volume.uid_mappings && users.gids == volume.gid_mappings;
        let users = users.filter(same);
        let users = users.ok_or_else(|| SpecError::IdMap { path: volume.host_path.clone().into() })?;
        set(false, &Attributes { id_map: Some(users.namespace), ..Attributes::default() })?;
    }
    if volume.readonly {
        let read_only = Attributes { set: Flags::MOUNT_ATTR_RDONLY, ..Attributes::default() };
        set(volume.recursive_read_only, &read_only)?;
    }
    Ok(Entry { mount: describe(volume, propagation), tree: Some(tree), file, pod_shm: false })
}

/// A detached clone of `path` with everything mounted below it, and whether it is something else than a directory.
fn clone_source(path: &Path, propagation: MountPropagation) -> Result<(OwnedFd, bool), SpecError> {
    let failed = |source| SpecError::Volume { path: path.to_owned(), source };
    let source = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&source).map_err(failed)?.st_mode);
    let needed = match propagation {
        MountPropagation::PropagationPrivate => None,
        MountPropagation::PropagationHostToContainer => Some(&["shared:", "master:"][..]),
        MountPropagation::PropagationBidirectional => Some(&["shared:"][..]),
    };
    if let Some(tags) = needed
        && !has_tag(source.as_fd(), tags).map_err(|e| failed(sys::errno_of(&e)))?
    {
        return Err(SpecError::Propagation { path: path.to_owned(), wanted: propagation.as_str_name() });
    }
    let tree = clone_tree(&source, "", true).map_err(failed)?;
    Ok((tree, kind != FileType::Directory))
}

/// Whether the mount that `fd` is on carries one of these propagation tags (proc_pid_mountinfo(5)).
fn has_tag(fd: BorrowedFd<'_>, tags: &[&str]) -> std::io::Result<bool> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = fdinfo.lines().find_map(|l| l.strip_prefix("mnt_id:")).map(str::trim).unwrap_or_default();
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let line = mountinfo.lines().find(|l| l.split(' ').next() == Some(id)).unwrap_or_default();
    let optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    Ok(optional.into_iter().any(|field| tags.iter().any(|tag| field.starts_with(tag))))
}

/// A mount of our own making.
fn bind(source: &Path, destination: &str, options: &[&str]) -> Result<Entry, SpecError> {
    let (tree, file) = clone_source(source, MountPropagation::PropagationPrivate)?;
    let failed = |error| SpecError::Volume { path: source.to_owned(), source: error };
    let names: Vec<_> = options.iter().map(ToString::to_string).collect();
    let change = Attributes {
        set: option_flags(&names),
        propagation: Some(Propagation::Private),
        ..Attributes::default()
    };
    set_attributes(&tree, true, &change).map_err(failed)?;
    let source = source.to_string_lossy();
    Ok(Entry { mount: mount(destination, "bind", &source, options), tree: Some(tree), file, pod_shm: false })
}

fn describe(volume: &cri::Mount, propagation: MountPropagation) -> Mount {
    let mut options = vec!["rbind"];
    options.push(match propagation {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    });
    options.push(match (volume.readonly, volume.recursive_read_only) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    });
    options.extend(volume.mount_options.iter().map(String::as_str));
    let mut described = mount(&volume.container_path, "bind", &volume.host_path, &options);
    if !volume.uid_mappings.is_empty() {
        described.set_uid_mappings(Some(volume.uid_mappings.iter().map(id_mapping).collect()));
        described.set_gid_mappings(Some(volume.gid_mappings.iter().map(id_mapping).collect()));
    }
    described
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

pub(crate) fn id_mapping(mapping: &cri::IdMapping) -> LinuxIdMapping {
    LinuxIdMappingBuilder::default()
        .container_id(mapping.container_id)
        .host_id(mapping.host_id)
        .size(mapping.length)
        .build()
        .expect("every field has a value")
}

/// Mount flags among OCI mount options.
pub(crate) fn option_flags(options: &[String]) -> Flags {
    options.iter().fold(Flags::empty(), |flags, option| {
        flags
            | match option.as_str() {
                "ro" => Flags::MOUNT_ATTR_RDONLY,
                "nosuid" => Flags::MOUNT_ATTR_NOSUID,
                "nodev" => Flags::MOUNT_ATTR_NODEV,
                "noexec" => Flags::MOUNT_ATTR_NOEXEC,
                "noatime" => Flags::MOUNT_ATTR_NOATIME,
                "strictatime" => Flags::MOUNT_ATTR_STRICTATIME,
                _ => Flags::empty(),
            }
    })
}

/// OCI mount options that are neither flags nor propagation: the filesystem's own.
pub(crate) fn filesystem_options(options: &[String]) -> Vec<String> {
    let common =
        ["rw", "ro", "nosuid", "nodev", "noexec", "noatime", "relatime", "strictatime", "newinstance"];
    options.iter().filter(|o| !common.contains(&o.as_str())).cloned().collect()
}

fn normal(path: &str) -> PathBuf {
    Path::new(path).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_or_the_filesystems_own() {
        let options: Vec<_> =
            ["nosuid", "strictatime", "mode=755", "ro"].iter().map(ToString::to_string).collect();
        let flags = option_flags(&options);
        assert!(
            flags.contains(
                Flags::MOUNT_ATTR_RDONLY | Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_STRICTATIME
            )
        );
        assert_eq!(filesystem_options(&options), ["mode=755"]);
    }

    #[test]
    fn a_volume_is_described_as_asked() {
        let volume = cri::Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            readonly: true,
            recursive_read_only: true,
            mount_options: vec!["noexec".into()],
            ..Default::default()
        };
        let mount = describe(&volume, MountPropagation::PropagationPrivate);
        assert_eq!(
            mount.options().as_deref(),
            Some(&["rbind", "rprivate", "rro", "noexec"].map(String::from)[..])
        );
    }

    #[test]
    fn a_missing_source_is_named() {
        let volume = cri::Mount {
            container_path: "/x".into(),
            host_path: "/no/such/place".into(),
            ..Default::default()
        };
        let error = open_volume(&volume, None).unwrap_err();
        assert!(error.to_string().contains("/no/such/place"), "{error}");
    }
}

//! A container's root filesystem: an overlay of an image's layers and a directory of its own, as a detached mount.
//!
//! - Layers are given to overlayfs by descriptor and the mount is detached from birth where the kernel does that (6.13,
//!   with user namespaces 6.15); older ones mount below the container's directory for a moment.
//! - Always `volatile`: an upper directory never outlives a crash of the host, and without it every unmount writes
//!   back the whole file system (10.4 ms against 0.08).
//! - Features that make the upper directory refer to other files of the lower ones (`redirect_dir`, `metacopy`,
//!   `index`) are off: a layer cannot abuse them, and the upper directory alone is the container's difference.
//! - Pods with a user namespace: layers are seen through idmapped clones, the upper directory belongs to the host id
//!   of the container's root and holds shifted ids. An idmapped *upper* would silently be read-only, so that the
//!   finished mount is asked whether it can be written.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, StatVfsMountFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use sys::mount::{Attributes, Filesystem, Flags, Propagation};

use crate::catalogue::{Catalogue, Image};
use crate::content::StoreError;
use crate::layers::{self, LayerStore};

/// What keeps the upper directory from referring to files of the lower ones.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// Why a root filesystem could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The image was removed and swept since it was looked up.
    #[error("image {image} is not here any more: pull it again")]
    Gone {
        /// The image.
        image: crate::ImageId,
    },
    /// The container's directories.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer cannot be seen through the pod's user namespace.
    #[error("cannot map the ids of layer {}: the file system below does not support idmapped mounts", layer.display())]
    IdMap {
        /// The layer's directory.
        layer: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// overlayfs refused.
    #[error("cannot {step} the overlay of container {key}: {messages:?}")]
    Overlay {
        /// The container.
        key: String,
        /// What was being done.
        step: &'static str,
        /// The kernel's messages.
        messages: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It is there, but cannot be written.
    #[error(
        "the overlay of container {key} is read-only: its upper directory cannot be used by this mapping"
    )]
    ReadOnly {
        /// The container.
        key: String,
    },
}

/// The ids of a pod with a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct IdMap<'a> {
    /// The namespace, with its maps written.
    pub namespace: BorrowedFd<'a>,
    /// Host user id of its id 0.
    pub root_uid: u32,
    /// Host group id of its id 0.
    pub root_gid: u32,
}

/// A container's root filesystem.
#[derive(Debug)]
pub struct Rootfs {
    /// The overlay, a detached mount; it lives as long as this descriptor and what is attached of it.
    pub mount: OwnedFd,
    /// The directory that takes what the container writes.
    pub upper: PathBuf,
}

/// Makes the root filesystem of container `key` below `directory`, in which `upper` and `work` are made. Files that
/// `upper` already holds are part of it.
pub(crate) fn make(
    store: &LayerStore,
    catalogue: &Catalogue,
    image: &Image,
    key: &str,
    directory: &Path,
    map: Option<IdMap<'_>>,
) -> Result<Rootfs, RootfsError> {
    let lowers = lowers(store, catalogue, image)?;
    let lowers = lowers.iter().map(|lower| open_lower(lower, map)).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = directories(directory, &lowers[0], map)?;
    let (opened, mapped) = (layers::open(&upper)?, map.is_some());
    let overlay = Overlay { key, lowers: &lowers, mapped, upper: opened, work: layers::open(&work)? };
    let mount = overlay.mount(&directory.join("mounts"))?;
    let state = rustix::fs::fstatvfs(&mount).map_err(|source| overlay.error("examine", None, source))?;
    if state.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(RootfsError::ReadOnly { key: key.to_owned() });
    }
    Ok(Rootfs { mount, upper })
}

/// The directories of the image's layers, top first, down to one that lets nothing show through.
fn lowers(store: &LayerStore, catalogue: &Catalogue, image: &Image) -> Result<Vec<PathBuf>, RootfsError> {
    let mut lowers = Vec::new();
    for chain in image.layers.iter().rev() {
        let layer =
            catalogue.layers.get(chain).ok_or_else(|| RootfsError::Gone { image: image.id.clone() })?;
        lowers.push(store.directory(layer.directory));
        if layer.hides_everything {
            break;
        }
    }
    if lowers.is_empty() {
        lowers.push(store.empty());
    }
    Ok(lowers)
}

fn open_lower(path: &Path, map: Option<IdMap<'_>>) -> Result<OwnedFd, RootfsError> {
    let plain = layers::open(path)?;
    let Some(map) = map else { return Ok(plain) };
    let attributes = Attributes { id_map: Some(map.namespace), ..Attributes::default() };
    sys::mount::clone_tree(&plain, "", false)
        .and_then(|clone| sys::mount::set_attributes(&clone, false, &attributes).map(|()| clone))
        .map_err(|source| RootfsError::IdMap { layer: path.to_owned(), source: source.into() })
}

/// Makes `upper`, unless it is there, and a fresh `work`. A new `upper` looks as the image's root does: overlayfs shows
/// its owner and mode as those of `/`.
fn directories(
    directory: &Path,
    top: &OwnedFd,
    map: Option<IdMap<'_>>,
) -> Result<(PathBuf, PathBuf), RootfsError> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    if !upper.exists() {
        fs::create_dir_all(&upper).map_err(StoreError::on("make", &upper))?;
        layers::copy_attributes(top, &layers::open(&upper)?)
            .map_err(StoreError::on("set attributes of", &upper))?;
    }
    // What is left of an earlier mount would make a volatile one refuse (overlayfs.rst, "Volatile mount").
    if work.exists() {
        fs::remove_dir_all(&work).map_err(StoreError::on("clean", &work))?;
    }
    fs::create_dir(&work).map_err(StoreError::on("make", &work))?;
    let (uid, gid) = map.map_or((0, 0), |map| (map.root_uid, map.root_gid));
    rustix::fs::fchown(layers::open(&work)?, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(StoreError::on("chown", &work))?;
    Ok((upper, work))
}

struct Overlay<'a> {
    key: &'a str,
    /// Top first.
    lowers: &'a [OwnedFd],
    /// The layers are detached clones.
    mapped: bool,
    upper: OwnedFd,
    work: OwnedFd,
}

impl Overlay<'_> {
    fn mount(&self, scratch: &Path) -> Result<OwnedFd, RootfsError> {
        match self.by_descriptor() {
            Err(RootfsError::Overlay { source, .. }) if is_too_old(&source) => self.by_path(scratch),
            mount => mount,
        }
    }

    /// Detached from birth; Linux 6.13, with idmapped layers 6.15.
    fn by_descriptor(&self) -> Result<OwnedFd, RootfsError> {
        let overlay = Filesystem::open("overlay").map_err(|source| self.error("open", None, source))?;
        let configure = || {
            for lower in self.lowers {
                overlay.set_fd("lowerdir+", lower)?;
            }
            overlay.set_fd("upperdir", &self.upper)?.set_fd("workdir", &self.work)?;
            overlay.set("source", "overlay")?;
            for (key, value) in OPTIONS {
                overlay.set(key, value)?;
            }
            overlay.set_flag("volatile").map(|_| ())
        };
        configure().map_err(|source| self.error("configure", Some(&overlay), source))?;
        overlay.mount(Flags::empty()).map_err(|source| self.error("mount", Some(&overlay), source))
    }

    /// For older kernels: mounted by mount(2) below `scratch`, where no one else may go, cloned, detached. Layers must
    /// be attached to be taken then, and all names fit into one page, which `/proc/self/fd/N` of 200 layers do.
    fn by_path(&self, scratch: &Path) -> Result<OwnedFd, RootfsError> {
        let mut attached = Attached(Vec::new());
        for (number, lower) in self.lowers.iter().enumerate().filter(|_| self.mapped) {
            attached.place(scratch, &number.to_string(), |path| sys::mount::attach_at(lower, path))?;
        }
        let lowers: Vec<_> = self.lowers.iter().map(name).collect();
        let mut data = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            lowers.join(":"),
            name(&self.upper),
            name(&self.work)
        );
        for (key, value) in OPTIONS {
            data.push_str(&format!(",{key}={value}"));
        }
        let data = CString::new(data).expect("options hold no NUL");
        let merged = attached.place(scratch, "merged", |path| {
            rustix::mount::mount("overlay", path, "overlay", MountFlags::empty(), Some(data.as_c_str()))
        })?;
        // Where the scratch directory is on a shared mount, so is what is mounted there, and pivot_root takes no such.
        let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
        sys::mount::clone_tree(CWD, &merged, false)
            .and_then(|clone| sys::mount::set_attributes(&clone, false, &private).map(|()| clone))
            .map_err(|source| self.error("clone", None, source))
    }

    fn error(&self, step: &'static str, overlay: Option<&Filesystem>, source: Errno) -> RootfsError {
        let messages = overlay.map(Filesystem::messages).unwrap_or_default();
        RootfsError::Overlay { key: self.key.to_owned(), step, messages, source: source.into() }
    }
}

/// Before Linux 6.13 overlayfs takes no descriptors (EINVAL, before 6.5 EOPNOTSUPP), and fsconfig(2) none that are
/// `O_PATH`, as clones are (EBADF).
fn is_too_old(answer: &io::Error) -> bool {
    let answers = [Errno::INVAL, Errno::BADF, Errno::OPNOTSUPP];
    answers.iter().any(|errno| answer.raw_os_error() == Some(errno.raw_os_error()))
}

/// Mounts for as long as they are needed to make another; top last.
struct Attached(Vec<PathBuf>);

impl Attached {
    /// Makes directory `name` below `scratch` and mounts on it.
    fn place(
        &mut self,
        scratch: &Path,
        name: &str,
        mount: impl FnOnce(&Path) -> rustix::io::Result<()>,
    ) -> Result<PathBuf, StoreError> {
        let path = scratch.join(name);
        fs::create_dir_all(&path).map_err(StoreError::on("make", &path))?;
        mount(&path).map_err(StoreError::on("mount on", &path))?;
        self.0.push(path.clone());
        Ok(path)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            if let Err(error) = sys::mount::detach(path) {
                tracing::warn!(path = %path.display(), %error, "mount is left behind");
            }
        }
        if let Some(scratch) = self.0.first().and_then(|path| path.parent()) {
            let _ = fs::remove_dir_all(scratch);
        }
    }
}

fn name(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_get_the_same_overlay() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let paths = ["top", "bottom", "upper", "work"].map(|name| scratch.path().join(name));
        for path in &paths {
            fs::create_dir(path).unwrap();
        }
        fs::write(paths[0].join("both"), "top").unwrap();
        fs::write(paths[1].join("both"), "bottom").unwrap();
        let clone = |path| sys::mount::clone_tree(CWD, path, false).unwrap();
        for mapped in [false, true] {
            let open = |path| if mapped { clone(path) } else { layers::open(path).unwrap() };
            let lowers = [open(&paths[0]), open(&paths[1])];
            let (upper, work) = (layers::open(&paths[2]).unwrap(), layers::open(&paths[3]).unwrap());
            let overlay = Overlay { key: "c", lowers: &lowers, mapped, upper, work };
            let mount = overlay.by_path(&scratch.path().join("mounts")).unwrap();
            let merged = PathBuf::from(name(&mount));
            assert_eq!(fs::read_to_string(merged.join("both")).unwrap(), "top");
            fs::write(merged.join(format!("new {mapped}")), "").unwrap();
            assert!(paths[2].join(format!("new {mapped}")).exists());
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!mounts.contains(scratch.path().to_str().unwrap()), "nothing stays attached");
            assert!(!scratch.path().join("mounts").exists());
            drop(mount);
            fs::remove_dir_all(paths[3].join("work")).unwrap();
        }
    }
}

//! overlayfs over the directories of layers, as a detached mount.
//!
//! - Layers are given by descriptor and the mount is detached from birth where the kernel does that (6.13, with user
//!   namespaces 6.15); older ones mount below a directory of ours for a moment.
//! - Always `volatile`: an upper directory never outlives a crash of the host, and without it every unmount writes
//!   back the whole file system (10.4 ms against 0.08).
//! - Features that make the upper directory refer to other files of the lower ones (`redirect_dir`, `metacopy`,
//!   `index`) are off: a layer cannot abuse them, and the upper directory alone is the container's difference.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use sys::mount::{Attributes, Filesystem, Flags, Propagation};

use crate::content::StoreError;
use crate::rootfs::RootfsError;

/// What keeps the upper directory from referring to files of the lower ones.
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")];

/// An overlay to be.
pub(crate) struct Overlay<'a> {
    /// Container it is for, in errors.
    pub(crate) key: &'a str,
    /// Top first; two at least where there is no `upper`.
    pub(crate) lowers: &'a [OwnedFd],
    /// The layers are detached clones.
    pub(crate) mapped: bool,
    /// Without it the overlay is read-only.
    pub(crate) upper: Option<Upper>,
}

/// Where an overlay writes.
pub(crate) struct Upper {
    pub(crate) upper: OwnedFd,
    pub(crate) work: OwnedFd,
}

impl Overlay<'_> {
    /// Makes it; `scratch` is for kernels that need a place to mount on.
    pub(crate) fn mount(&self, scratch: &Path) -> Result<OwnedFd, RootfsError> {
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
            overlay.set("source", "overlay")?;
            for (key, value) in OPTIONS {
                overlay.set(key, value)?;
            }
            match &self.upper {
                Some(Upper { upper, work }) => overlay
                    .set_fd("upperdir", upper)?
                    .set_fd("workdir", work)?
                    .set_flag("volatile")
                    .map(|_| ()),
                None => Ok(()),
            }
        };
        configure().map_err(|source| self.error("configure", Some(&overlay), source))?;
        let flags = if self.upper.is_some() { Flags::empty() } else { Flags::MOUNT_ATTR_RDONLY };
        overlay.mount(flags).map_err(|source| self.error("mount", Some(&overlay), source))
    }

    /// For older kernels: mounted by mount(2) below `scratch`, where no one else may go, cloned, detached. Layers must
    /// be attached to be taken then, and all names fit into one page, which `/proc/self/fd/N` of 200 layers do.
    fn by_path(&self, scratch: &Path) -> Result<OwnedFd, RootfsError> {
        let mut attached = Attached::default();
        for (number, lower) in self.lowers.iter().enumerate().filter(|_| self.mapped) {
            attached.place(scratch, &number.to_string(), |path| sys::mount::attach_at(lower, path))?;
        }
        let data = CString::new(self.options()).expect("options hold no NUL");
        let flags = if self.upper.is_some() { MountFlags::empty() } else { MountFlags::RDONLY };
        let merged = attached.place(scratch, "merged", |path| {
            rustix::mount::mount("overlay", path, "overlay", flags, Some(data.as_c_str()))
        })?;
        // Where the scratch directory is on a shared mount, so is what is mounted there, and pivot_root takes no such.
        let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
        sys::mount::clone_tree(CWD, &merged, false)
            .and_then(|clone| sys::mount::set_attributes(&clone, false, &private).map(|()| clone))
            .map_err(|source| self.error("clone", None, source))
    }

    /// As mount(2) takes them.
    fn options(&self) -> String {
        let lowers: Vec<_> = self.lowers.iter().map(name).collect();
        let mut options = format!("lowerdir={}", lowers.join(":"));
        if let Some(Upper { upper, work }) = &self.upper {
            options.push_str(&format!(",upperdir={},workdir={},volatile", name(upper), name(work)));
        }
        for (key, value) in OPTIONS {
            options.push_str(&format!(",{key}={value}"));
        }
        options
    }

    pub(crate) fn error(
        &self,
        step: &'static str,
        overlay: Option<&Filesystem>,
        source: Errno,
    ) -> RootfsError {
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
#[derive(Default)]
pub(crate) struct Attached(Vec<PathBuf>);

impl Attached {
    /// Makes directory `name` below `scratch` and mounts on it.
    pub(crate) fn place(
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
    use crate::layers;

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
            let upper = Some(Upper { upper, work });
            let overlay = Overlay { key: "c", lowers: &lowers, mapped, upper };
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

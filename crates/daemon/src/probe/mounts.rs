//! The mount API and overlay, on the file system of the state root.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use sys::clone::{Options, fork};
use sys::mount::{Attributes, Filesystem, Flags, clone_tree, set_attributes};
use sys::namespace::Kind;
use sys::{Errno, Signal};

use super::{Bench, Missing, failed};

pub fn api(_: &Bench<'_>) -> Result<String, Missing> {
    let tmpfs = Filesystem::open("tmpfs").map_err(failed("fsopen"))?;
    let mount = tmpfs.mount(Flags::MOUNT_ATTR_NOSUID).map_err(failed("fsmount"))?;
    sys::root::Root::new(mount.as_fd()).mkdir_all("a/b").map_err(failed("openat2"))?;
    Ok("made a detached tmpfs".to_owned())
}

/// The layers of one overlay.
struct Layers {
    lower: PathBuf,
    upper: PathBuf,
    work: PathBuf,
}

impl Layers {
    fn make(bench: &Bench<'_>, name: &str) -> Result<Self, Missing> {
        let directory = bench.directory.join(name);
        let [lower, upper, work] = ["lower", "upper", "work"].map(|layer| directory.join(layer));
        for path in [&lower, &upper, &work] {
            fs::create_dir_all(path).map_err(|source| file(path, source))?;
        }
        Ok(Self { lower, upper, work })
    }

    fn overlay(&self) -> Result<Filesystem, Missing> {
        let overlay = Filesystem::open("overlay").map_err(failed("fsopen"))?;
        let set = |key, path: &PathBuf| overlay.set(key, path.as_path()).map(|_| ());
        set("lowerdir", &self.lower).map_err(failed("lowerdir"))?;
        set("upperdir", &self.upper).map_err(failed("upperdir"))?;
        set("workdir", &self.work).map_err(failed("workdir"))?;
        Ok(overlay)
    }
}

fn file(path: &std::path::Path, source: std::io::Error) -> Missing {
    Missing::File { path: path.display().to_string(), source }
}

fn open(path: &std::path::Path) -> Result<OwnedFd, Missing> {
    File::open(path).map(OwnedFd::from).map_err(|source| file(path, source))
}

/// Always volatile, as containers' are: unmounting another kind writes back the whole file system below.
pub fn overlay(bench: &Bench<'_>) -> Result<String, Missing> {
    let overlay = Layers::make(bench, "overlay")?.overlay()?;
    overlay.set_flag("volatile").map_err(failed("option volatile"))?;
    overlay.mount(Flags::empty()).map_err(failed("mount a volatile overlay"))?;
    Ok("mounted a volatile one on the state root".to_owned())
}

pub fn overlay_by_fd(bench: &Bench<'_>) -> Result<String, Missing> {
    let layers = Layers::make(bench, "fd")?;
    let overlay = Filesystem::open("overlay").map_err(failed("fsopen"))?;
    for (key, path) in [("lowerdir+", &layers.lower), ("upperdir", &layers.upper), ("workdir", &layers.work)]
    {
        overlay.set_fd(key, open(path)?).map_err(failed("layer by descriptor"))?;
    }
    overlay.set_flag("volatile").map_err(failed("option volatile"))?;
    overlay.mount(Flags::empty()).map_err(failed("mount layers by descriptor"))?;
    Ok("mounted one".to_owned())
}

pub fn idmapped(bench: &Bench<'_>) -> Result<String, Missing> {
    let userns = mapped_user_namespace()?;
    let clone = clone_tree(open(bench.directory)?, "", false).map_err(failed("open_tree"))?;
    let change = Attributes { id_map: Some(userns.as_fd()), ..Attributes::default() };
    set_attributes(&clone, false, &change).map_err(failed("mount_setattr with an id map"))?;
    Ok("mapped a clone of the state root".to_owned())
}

pub fn recursive_read_only(bench: &Bench<'_>) -> Result<String, Missing> {
    let clone = clone_tree(open(bench.directory)?, "", true).map_err(failed("open_tree"))?;
    let change = Attributes { set: Flags::MOUNT_ATTR_RDONLY, ..Attributes::default() };
    set_attributes(&clone, true, &change).map_err(failed("mount_setattr, recursive"))?;
    Ok("set on a clone of the state root".to_owned())
}

/// A user namespace that maps 65536 ids. It lives on in its descriptor; the child that made it ends.
fn mapped_user_namespace() -> Result<OwnedFd, Missing> {
    let forever = || loop {
        std::thread::park();
    };
    let options = Options { new: Kind::User.into(), ..Options::default() };
    let child = fork(&options, forever).map_err(failed("clone3 with user"))?;
    let map = |name: &str| {
        let path = format!("/proc/{}/{name}", child.pid.as_raw_nonzero());
        fs::write(&path, "0 100000 65536\n").map_err(|source| Missing::File { path, source })
    };
    let made = map("uid_map")
        .and_then(|()| map("gid_map"))
        .and_then(|()| sys::namespace::of(child.pid, Kind::User).map_err(failed("open the user namespace")));
    sys::pidfd::kill(&child.pidfd, Signal::KILL).map_err(failed("pidfd_send_signal"))?;
    match sys::pidfd::wait(&child.pidfd) {
        Ok(_) | Err(Errno::CHILD) => made,
        Err(errno) => Err(Missing::Call { call: "waitid", errno }),
    }
}

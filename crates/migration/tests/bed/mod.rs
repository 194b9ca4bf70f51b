//! A container built by hand, just enough of one for CRIU: namespaces of a pod, a cgroup, a root file system with this
//! very test program in it, external mounts, anonymous pipes as stdio.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use migration::criu::Criu;
use namespaces::{Kinds, NamespaceKind as Kind, Request, make};
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat};
use sys::cgroup::Layout;
use sys::clone::{self, Child};
use sys::mount::{self, Attributes, Filesystem, Flags, Propagation};
use sys::namespace::{own, setns};
use sys::process::{self, Stream};
use sys::timens::Offsets;

/// Destinations of its external mounts.
pub const EXTERNAL: [&str; 2] = ["/dev", "/dev/shm"];

/// How CRIU starts on this machine, if it is there.
pub fn criu_command() -> Option<Vec<String>> {
    if Path::new("/usr/sbin/criu").exists() {
        return Some(vec!["/usr/sbin/criu".into()]);
    }
    let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = home("MERIDIAN_CACHE")
        .or_else(|| home("XDG_CACHE_HOME").map(|p| p.join("meridian")))
        .or_else(|| home("HOME").map(|p| p.join(".cache/meridian")))?;
    serde_json::from_slice(&fs::read(cache.join("criu/command.json")).ok()?).ok()
}

/// A directory of the test's own with everything in it, and a tmpfs for CRIU's `/run`.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub criu: Criu,
    cgroup: PathBuf,
    owner: u32,
}

impl Node {
    pub fn new(command: Vec<String>) -> Self {
        // Not /tmp: `enter` hides that.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let run = dir.path().join("criu");
        fs::create_dir(&run).unwrap();
        mount::attach_at(Filesystem::open("tmpfs").unwrap().mount(Flags::empty()).unwrap(), &run).unwrap();
        let unified = Layout::detect().unwrap().unified.unwrap();
        let cgroup = unified.join(format!("meridian-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self { dir, criu: Criu { command, run }, cgroup, owner: std::process::id() }
    }

    pub fn cgroup(&self, name: &str) -> PathBuf {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return; // a forked child that panicked
        }
        let containers: Vec<PathBuf> =
            fs::read_dir(&self.cgroup).unwrap().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        for container in &containers {
            fs::write(container.join("cgroup.kill"), "1").unwrap();
        }
        let until = Instant::now() + Duration::from_secs(5);
        for path in containers.iter().chain([&self.cgroup]) {
            while fs::remove_dir(path).is_err() {
                while let Ok(Some(_)) = sys::pidfd::try_wait_any() {}
                assert!(Instant::now() < until, "{} stays", path.display());
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        mount::detach(&self.criu.run).unwrap();
    }
}

/// The pod's own namespaces.
pub fn pod_namespaces(offsets: Offsets) -> Vec<(Kind, OwnedFd)> {
    let kinds: Kinds = [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time].into_iter().collect();
    make(&Request { kinds, offsets, hostname: "pod", ..Request::default() }).unwrap()
}

pub fn borrow(namespaces: &[(Kind, OwnedFd)]) -> Vec<(Kind, BorrowedFd<'_>)> {
    namespaces.iter().map(|(kind, fd)| (*kind, fd.as_fd())).collect()
}

/// Both ends of a container's standard streams.
pub struct Pipes {
    pub inner: [OwnedFd; 3],
    pub stdout: File,
    _others: [OwnedFd; 2],
}

impl Pipes {
    pub fn new() -> Self {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((stdin_read, stdin), (stdout, stdout_write), (stderr, stderr_write)) = (pipe(), pipe(), pipe());
        let inner = [stdin_read, stdout_write, stderr_write];
        Self { inner, stdout: stdout.into(), _others: [stdin, stderr] }
    }
}

pub struct Container {
    pub process: Child,
    pub cgroup: PathBuf,
    pub pipes: Pipes,
    pub namespaces: Vec<(Kind, OwnedFd)>,
}

impl Container {
    /// Runs `/payload ARGS` (this program) in its own pid, mount and cgroup namespaces.
    pub fn start(node: &Node, name: &str, args: &[&str]) -> Self {
        let root = root_filesystem(node);
        let namespaces = pod_namespaces(Offsets::default());
        let cgroup = node.cgroup(name);
        let pipes = Pipes::new();
        let new = [Kind::Pid, Kind::Mount, Kind::Cgroup].into_iter().collect();
        let dir = open_dir(&cgroup);
        let options = clone::Options { new, cgroup: Some(dir.as_fd()), sibling: false };
        let argv: Vec<&str> = ["/payload"].into_iter().chain(args.iter().copied()).collect();
        let image = process::Image::new(&argv, &[]).unwrap();
        let shm = node.dir.path().join("shm");
        let process = clone::fork(&options, || {
            for (kind, fd) in &namespaces {
                setns(fd, *kind).unwrap();
            }
            let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
            mount::set_attributes(open_dir(Path::new("/")), true, &private).unwrap();
            mount::attach_at(mount::clone_tree(CWD, &root, false).unwrap(), &root).unwrap();
            mount::attach_at(proc(), root.join("proc")).unwrap();
            mount::attach_at(dev(), root.join("dev")).unwrap();
            mount::attach_at(mount::clone_tree(CWD, &shm, false).unwrap(), root.join("dev/shm")).unwrap();
            mount::pivot(open_dir(&root)).unwrap();
            for (fd, stream) in pipes.inner.iter().zip([Stream::In, Stream::Out, Stream::Err]) {
                process::place(fd, stream).unwrap();
            }
            process::new_session().unwrap();
            process::close_on_exec_from(3).unwrap();
            let _errno = image.exec(&CString::new("/payload").unwrap());
            127
        })
        .unwrap();
        Self { process, cgroup, pipes, namespaces }
    }

    pub fn kill(&self) {
        fs::write(self.cgroup.join("cgroup.kill"), "1").unwrap();
        sys::pidfd::wait(&self.process.pidfd).unwrap();
    }
}

/// What executor stages for CRIU: the root and every external mount, in `stage`.
pub fn stage(node: &Node, stage: &Path) -> (PathBuf, Vec<(String, PathBuf)>) {
    let at = |name: &str| {
        let path = stage.join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let (root, devices, shm) = (at("root"), at("dev"), at("shm"));
    mount::attach_at(mount::clone_tree(CWD, root_filesystem(node), false).unwrap(), &root).unwrap();
    mount::attach_at(dev(), &devices).unwrap();
    mount::attach_at(mount::clone_tree(CWD, node.dir.path().join("shm"), false).unwrap(), &shm).unwrap();
    (root, vec![("/dev".into(), devices), ("/dev/shm".into(), shm)])
}

/// This program and the libraries it is linked with, at their own paths.
fn root_filesystem(node: &Node) -> PathBuf {
    let root = node.dir.path().join("root");
    if root.exists() {
        return root;
    }
    for dir in ["root/proc", "root/dev", "shm"] {
        fs::create_dir_all(node.dir.path().join(dir)).unwrap();
    }
    fs::copy("/proc/self/exe", root.join("payload")).unwrap();
    fs::set_permissions(root.join("payload"), fs::Permissions::from_mode(0o755)).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut libraries: Vec<&str> =
        maps.lines().filter_map(|l| l.split_whitespace().nth(5)).filter(|p| p.contains(".so")).collect();
    libraries.push("/lib64/ld-linux-x86-64.so.2");
    for library in libraries {
        let target = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, &target).unwrap();
    }
    root
}

fn proc() -> OwnedFd {
    Filesystem::open("proc").unwrap().mount(Flags::MOUNT_ATTR_NOSUID).unwrap()
}

fn dev() -> OwnedFd {
    let dev = Filesystem::open("tmpfs").unwrap().mount(Flags::MOUNT_ATTR_NOSUID).unwrap();
    let mode = Mode::from_raw_mode(0o666);
    mknodat(&dev, "null", FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
    rustix::fs::mkdirat(&dev, "shm", Mode::from_raw_mode(0o755)).unwrap();
    dev
}

pub fn open_dir(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub fn host_mounts() -> OwnedFd {
    own(Kind::Mount).unwrap()
}

/// Freezes or thaws, and waits for it.
pub fn freeze(cgroup: &Path, on: bool) {
    fs::write(cgroup.join("cgroup.freeze"), if on { "1" } else { "0" }).unwrap();
    let wanted = if on { "frozen 1" } else { "frozen 0" };
    while !fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains(wanted) {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Everything that comes within `time`.
pub fn read_for(pipe: &mut File, time: Duration) -> String {
    let until = Instant::now() + time;
    rustix::io::ioctl_fionbio(&*pipe, true).unwrap();
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while Instant::now() < until {
        match pipe.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => text.push_str(std::str::from_utf8(&bytes[..n]).unwrap()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    text
}

/// Runs `work` in a forked helper, as the shim does, and gives what it returns.
pub fn in_helper(work: impl FnOnce() -> String) -> String {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let child = clone::fork(&clone::Options::default(), || {
        let text = work();
        rustix::io::write(&write, text.as_bytes()).unwrap();
        0
    })
    .unwrap();
    drop(write);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    sys::pidfd::wait(child.pidfd).unwrap();
    text
}

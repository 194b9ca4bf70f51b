//! A pod without a daemon: the real shim binary, cgroups, a busybox root filesystem, and the daemon's end of the
//! socket.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a bed that cannot be made fails its test")]

pub mod client;
pub mod plan;

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use api::shim::v1::{self as proto, request::Call, response};
use sys::{
    mount::{self, Filesystem, Flags},
    pidfd,
    seqpacket::Listener,
    spawn::{self, Spawned},
};

pub use client::Client;

static BEDS: AtomicU32 = AtomicU32::new(0);

/// Kinds of namespaces and the like that a sandbox may have.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub pod_pid: bool,
    /// Command line that starts CRIU.
    pub criu: Vec<String>,
}

pub struct Bed {
    pub dir: PathBuf,
    pub shim: Spawned,
    pub client: Client,
    /// The pod's directory in every hierarchy, the unified one first.
    cgroups: Vec<(String, PathBuf)>,
    containers: u32,
}

/// Where the tools of hack/install are.
fn cache() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("MERIDIAN_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("meridian")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/meridian")))
}

/// The command line of CRIU; none, with the reason printed, where it is missing.
pub fn criu() -> Option<Vec<String>> {
    let path = cache()?.join("criu/command.json");
    let Ok(text) = fs::read(&path) else {
        println!("skipped: no CRIU at {}; run hack/install", path.display());
        return None;
    };
    Some(serde_json::from_slice(&text).unwrap())
}

/// A static busybox; none, with the reason printed, where tests cannot run.
fn busybox() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    let path = cache()?.join("tools/usr/bin/busybox");
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no busybox at {}; run hack/install", path.display());
    None
}

fn shim_path() -> PathBuf {
    std::env::var_os("MERIDIAN_SHIM")
        .map_or_else(|| env!("CARGO_BIN_EXE_meridian-shim").into(), PathBuf::from)
}

impl Bed {
    /// A running shim with a sandbox in it.
    pub fn new() -> Option<Self> {
        let mut bed = Self::bare()?;
        bed.create_sandbox(Wish::default());
        Some(bed)
    }

    /// A running shim.
    pub fn bare() -> Option<Self> {
        let busybox = busybox()?;
        let number = BEDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("meridian-shim-test-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir_all(dir.join("rootfs/bin")).unwrap();
        install(&busybox, &dir.join("rootfs"));
        let cgroups = make_cgroups(&name);
        let socket = dir.join("socket");
        let shim = start(&dir, &socket, &name);
        let client = Client::connect(&socket);
        Some(Self { dir, shim, client, cgroups, containers: 0 })
    }

    pub fn create_sandbox(&mut self, wish: Wish) -> Vec<(String, OwnedFd)> {
        let dirs: Vec<OwnedFd> = self.cgroups.iter().map(|(_, path)| directory(path)).collect();
        let cgroups = self.cgroups.iter().zip(0..);
        let request = proto::CreateSandboxRequest {
            pod_id: "0".repeat(64),
            net: true,
            ipc: true,
            uts: true,
            time: true,
            pod_pid: wish.pod_pid,
            hostname: "bed".into(),
            criu: wish.criu,
            criu_run: self.dir.join("criu").to_string_lossy().into_owned(),
            cgroups: cgroups
                .map(|((controller, _), dir_fd)| proto::CgroupFd { controller: controller.clone(), dir_fd })
                .collect(),
            ..Default::default()
        };
        let fds: Vec<BorrowedFd<'_>> = dirs.iter().map(AsFd::as_fd).collect();
        match self.client.call(Call::CreateSandbox(request), &fds) {
            Ok((response::Result::CreateSandbox(made), fds)) => {
                made.namespaces.into_iter().map(|ns| ns.kind).zip(fds).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// The daemon dies and comes back: its connection ends and a new one is made.
    pub fn reconnect(&mut self) {
        self.client = Client::connect(&self.dir.join("socket"));
    }

    /// An overlay of its own on the busybox root filesystem.
    pub fn rootfs(&mut self) -> OwnedFd {
        self.containers += 1;
        let place = self.dir.join(format!("overlay{}", self.containers));
        for name in ["upper", "work"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        let overlay = Filesystem::open("overlay").unwrap();
        for (key, path) in [
            ("lowerdir", self.dir.join("rootfs")),
            ("upperdir", place.join("upper")),
            ("workdir", place.join("work")),
        ] {
            overlay.set(key, path.as_path()).unwrap();
        }
        overlay.set_flag("volatile").unwrap();
        overlay.mount(Flags::empty()).unwrap()
    }

    pub fn pid(&self) -> i32 {
        self.shim.pid.as_raw_nonzero().get()
    }

    /// The pod's directory in the unified hierarchy.
    pub fn unified(&self) -> &Path {
        &self.cgroups[0].1
    }

    /// Where in the rest of the file system a container's log is.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// What the shim wrote to its standard error.
    pub fn complaints(&self) -> String {
        fs::read_to_string(self.dir.join("shim.log")).unwrap_or_default()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = pidfd::kill(&self.shim.pidfd, sys::Signal::KILL);
        let _ = pidfd::wait(&self.shim.pidfd);
        // What the daemon does for a dead shim: the containers end with their pod.
        let _ = fs::write(self.unified().join("cgroup.kill"), "1");
        for (_, path) in &self.cgroups {
            wait_for("the cgroup to empty", || remove_cgroup(path));
        }
        let complaints = self.complaints();
        if !complaints.is_empty() {
            eprintln!("shim: {complaints}");
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Polls until `done`, 10 s at most.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited 10 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Fields of one of a process's /proc files, by name, in kB or whatever the file says.
pub fn proc_field(pid: i32, file: &str, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

pub fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into()
}

fn install(busybox: &Path, root: &Path) {
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "sync", "ls", "id", "kill", "dd", "yes", "tail", "seq", "head", "tr",
        "stty", "ps", "usleep", "touch",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

fn make_cgroups(name: &str) -> Vec<(String, PathBuf)> {
    let layout = sys::cgroup::Layout::detect().unwrap();
    let unified = layout.unified.expect("a unified hierarchy");
    let mut cgroups = vec![(String::new(), unified.join(name))];
    for hierarchy in layout.v1 {
        for controller in &hierarchy.controllers {
            if !controller.contains('=') {
                cgroups.push((controller.clone(), hierarchy.path.join(name)));
            }
        }
    }
    for (_, path) in &cgroups {
        fs::create_dir_all(path).unwrap();
    }
    cgroups
}

/// Says whether the cgroup and those below it are gone now.
fn remove_cgroup(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

fn start(dir: &Path, socket: &Path, name: &str) -> Spawned {
    let listener = Listener::bind(socket).unwrap();
    let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let log = fs::File::create(dir.join("shim.log")).unwrap();
    let path = std::ffi::CString::new(shim_path().to_str().unwrap()).unwrap();
    let args = spawn::c_strings(["meridian-shim", name]).unwrap();
    let fds = [(null.as_fd(), 0), (null.as_fd(), 1), (log.as_fd(), 2), (listener.as_fd(), 3)];
    spawn::spawn(&path, &args, &[], &fds).unwrap()
}

/// A small tmpfs of its own, for a disk that fills up. Unmounted when dropped.
pub struct Tmpfs(pub PathBuf);

impl Tmpfs {
    pub fn new(path: PathBuf, bytes: usize) -> Self {
        fs::create_dir_all(&path).unwrap();
        let tmpfs = Filesystem::open("tmpfs").unwrap();
        tmpfs.set("size", bytes.to_string()).unwrap();
        mount::attach_at(tmpfs.mount(Flags::empty()).unwrap(), path.as_path()).unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = mount::detach(self.0.as_path());
    }
}

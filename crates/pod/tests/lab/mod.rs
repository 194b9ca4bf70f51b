//! A node inside one test: directories, a network and a mount namespace of its own, the real shim, a real image.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
};
use image::{ImageConfig, Images};
use network::{Network, NetworkConfig};
use pod::{Pods, PodsConfig};

const INSIDE: &str = "POD_TEST_INSIDE";

/// Runs `test` again in namespaces of its own and checks that it passed; true inside of them.
///
/// Prints why and returns false where the test cannot run.
pub fn enter(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped {test}: needs root");
        return false;
    }
    for (path, what) in [(shim(), "the shim (MERIDIAN_SHIM)"), (layout(), "the test images (hack/images)")] {
        if !path.exists() {
            eprintln!("skipped {test}: {what} is not at {}", path.display());
            return false;
        }
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed inside its namespaces");
    false
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let base = || std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
    std::env::var_os("MERIDIAN_CACHE").map_or_else(|| base().join("meridian"), PathBuf::from)
}

fn layout() -> PathBuf {
    cache().join("images/busybox/1")
}

/// The shim: MERIDIAN_SHIM, or the one built beside this test.
fn shim() -> PathBuf {
    let beside = || {
        let exe = std::env::current_exe().unwrap();
        exe.parent().and_then(Path::parent).unwrap().join("meridian-shim")
    };
    std::env::var_os("MERIDIAN_SHIM").map_or_else(beside, PathBuf::from)
}

/// Command line of CRIU, empty when it is not installed.
#[allow(dead_code, reason = "each test program uses its part")]
pub fn criu() -> Vec<String> {
    let text = std::fs::read_to_string(cache().join("criu/command.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// A node.
pub struct Lab {
    pub dir: Place,
    pub root: PathBuf,
    pub images: Images,
    pub network: Network,
    pub image: String,
}

/// A directory of the lab's own, or the caller's.
pub enum Place {
    Own(tempfile::TempDir),
    Given(PathBuf),
}

impl Place {
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

#[allow(dead_code, reason = "each test program uses its part")]
impl Lab {
    pub async fn new() -> Self {
        Self::in_place(Place::Own(tempfile::tempdir().unwrap())).await
    }

    /// A node that an earlier process may have left behind.
    pub async fn at(path: &Path) -> Self {
        Self::in_place(Place::Given(path.to_owned())).await
    }

    async fn in_place(dir: Place) -> Self {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let root = dir.path().to_owned();
        // The images are this test's alone: the daemon it starts has its own store of them.
        let store = root.join(format!("images-{}", std::process::id()));
        let images = Images::open(ImageConfig { root: store, ..Default::default() }).unwrap();
        let archive = dir.path().join("image.tar");
        let tar =
            Command::new("tar").arg("-C").arg(layout()).arg("-cf").arg(&archive).arg(".").status().unwrap();
        assert!(tar.success());
        images.import(std::fs::File::open(&archive).unwrap()).await.unwrap();
        let image = images.list()[0].id.to_string();
        let network = Network::start(&NetworkConfig::default()).unwrap();
        Self { dir, root, images, network, image }
    }

    pub fn config(&self) -> PodsConfig {
        PodsConfig {
            root: self.dir.path().join("root"),
            run: self.dir.path().join("run"),
            cgroup_root: self.cgroup(),
            shim: shim(),
            criu: criu(),
            cni: None,
        }
    }

    /// One for the lab, whoever's process it is in.
    fn cgroup(&self) -> String {
        format!("/pod-test{}", self.root.display().to_string().replace(['/', '.'], "-"))
    }

    pub fn wipe_run(&self) {
        let run = self.root.join("run");
        for mount in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().rev() {
            let path = mount.split(' ').nth(4).unwrap();
            if Path::new(path).starts_with(&run) {
                sys::mount::detach(path).unwrap();
            }
        }
        std::fs::remove_dir_all(run).unwrap();
    }

    pub async fn pods(&self) -> Pods {
        Pods::open(self.config(), self.images.clone(), self.network.clone()).await.unwrap()
    }

    pub fn sandbox(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: "uid".to_owned(),
                namespace: "test".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.dir.path().join("logs").join(name).to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig::default()),
            ..Default::default()
        }
    }

    pub fn container(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext::default()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn log(&self, pod: &str, container: &str) -> String {
        let path = self.dir.path().join("logs").join(pod).join(format!("{container}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// What is left under RUN, in the cgroups and among the processes once every pod was removed.
    pub fn leftovers(&self) -> Vec<String> {
        let run = self.dir.path().join("run");
        let mut left = Vec::new();
        for dir in
            [run.join("pods"), run.join("shim"), run.join("ns"), self.dir.path().join("root/containers")]
        {
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| entry.path().display().to_string()));
        }
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mountinfo.lines().filter(|l| l.contains(" nsfs ") || l.contains("/shm rw"));
        left.extend(ours.filter(|l| l.contains(run.to_str().unwrap())).map(str::to_owned));
        let cgroup = format!("/sys/fs/cgroup/unified{}", self.cgroup());
        for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path().display().to_string());
            }
        }
        left
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = sys::mount::detach(self.dir.path().join("run/ns").as_path());
        let name = self.cgroup().trim_start_matches('/').to_owned();
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(hierarchy.path().join(&name));
        }
    }
}

#[allow(dead_code, reason = "each test program uses its part")]
/// Inode of a process's namespace.
pub fn namespace(pid: u32, kind: &str) -> u64 {
    let file = std::fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
    sys::namespace::inode(file.as_fd()).unwrap()
}

#[allow(dead_code, reason = "each test program uses its part")]
/// Waits until `done` says so, at most a minute: other tests may have the machine.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what}: not within a minute");
}

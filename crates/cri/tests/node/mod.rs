//! A meridiand of its own for a test.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{self, Child, ChildStderr, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use k8s_cri::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

/// The name of the one image.
const IMAGE: &str = "example.test/busybox:1";

pub struct Node {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    directory: TempDir,
    cgroup: String,
    programs: PathBuf,
    daemon: Child,
    _log: BufReader<ChildStderr>,
}

/// Starts a daemon, or says why it cannot.
pub async fn node() -> Option<Node> {
    let Some(programs) =
        env::var_os("MERIDIAN_BIN").map(PathBuf::from).filter(|p| p.join("meridiand").exists())
    else {
        println!("skipped: MERIDIAN_BIN names no directory with meridiand: make build, then make test-root");
        return None;
    };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: pods need root");
        return None;
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let cgroup = format!("meridian-k8s-cri-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config.toml");
    fs::write(&config, format!("[cgroup]\nroot = \"/{cgroup}\"\n")).unwrap();
    let socket = directory.path().join("socket");
    let (daemon, log) = start(&programs, directory.path(), &config, &socket);
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let (runtime, images) = (RuntimeServiceClient::new(channel.clone()), ImageServiceClient::new(channel));
    Some(Node { runtime, images, directory, cgroup, programs, daemon, _log: log })
}

/// In a network namespace of its own, so that nodes of several tests have the same bridge and addresses.
fn start(programs: &Path, directory: &Path, config: &Path, socket: &Path) -> (Child, BufReader<ChildStderr>) {
    let mut command = Command::new("unshare");
    // The streaming server listens on the loopback interface, which is down in a new namespace.
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    command.args(["--net", "sh", "-c", script]).arg(programs.join("meridiand")).arg("--config").arg(config);
    command.arg("--root").arg(directory.join("root")).arg("--run").arg(directory.join("run"));
    command.arg("--socket").arg(socket).stderr(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("meridiand ready on ") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "the daemon ended before it was ready");
        eprint!("{line}");
    }
    (daemon, log)
}

impl Node {
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Imports an image that holds busybox alone; none where this machine has no static busybox.
    pub async fn image(&self) -> Option<String> {
        let cache = env::var_os("MERIDIAN_CACHE").map(PathBuf::from);
        let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cache/meridian"));
        let busybox = cache.or(home).map(|c| c.join("tools/usr/bin/busybox")).filter(|path| path.exists());
        let Some(busybox) = busybox else {
            println!("skipped: no static busybox: run hack/install");
            return None;
        };
        let archive = self.path("image.tar");
        fs::write(&archive, docker_save(&fs::read(busybox).unwrap())).unwrap();
        let socket = self.path("socket");
        let mut import = Command::new(self.programs.join("meridian"));
        let output =
            import.arg("--socket").arg(socket).arg("image").arg("import").arg(archive).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), IMAGE);
        Some(IMAGE.to_owned())
    }

    /// Removes all pods and ends the daemon, which must then leave no cgroup behind.
    pub async fn end(mut self) {
        let list = self.runtime.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await.unwrap();
        for pod in list.into_inner().items {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.runtime.remove_pod_sandbox(request).await.unwrap();
        }
        for directory in cgroups(&self.cgroup) {
            let left: Vec<_> =
                fs::read_dir(&directory).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Of a test that failed, something may be left.
        let mut rm = Command::new(self.programs.join("meridian"));
        rm.arg("--socket").arg(self.path("socket")).args(["rm", "--all", "--force"]);
        rm.stdout(Stdio::null()).status().ok();
        self.daemon.kill().ok();
        self.daemon.wait().ok();
        for directory in cgroups(&self.cgroup) {
            fs::remove_dir(directory).ok();
        }
        for mount in ["run/ns", "run"] {
            Command::new("umount")
                .arg("--lazy")
                .arg("--quiet")
                .arg(self.directory.path().join(mount))
                .status()
                .ok();
        }
    }
}

/// The directories of a cgroup in all hierarchies.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]).map(|h| h.join(name));
    all.filter(|path| path.is_dir()).collect()
}

/// What `docker save` would write for an image of one layer.
fn docker_save(busybox: &[u8]) -> Vec<u8> {
    let layer = archive(&[("bin/busybox", busybox, 0o755)]);
    let diff_id = format!("sha256:{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&layer)));
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/busybox", "sh"] },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let manifest = serde_json::json!([{
        "Config": "config.json",
        "RepoTags": [IMAGE],
        "Layers": ["layer.tar"],
    }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    archive(&[
        ("config.json", config.as_bytes(), 0o644),
        ("layer.tar", &layer, 0o644),
        ("manifest.json", manifest.as_bytes(), 0o644),
    ])
}

fn archive(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

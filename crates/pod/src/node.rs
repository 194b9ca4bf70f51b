//! What all pods of a daemon share: where things are, and the services they use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::id::{ContainerId, PodId};
use image::Images;
use migration::transport::Estimate;
use namespaces::Pins;
use network::Network;
use network::cni::{Cni, CniConfig};
use sys::mount::{Attributes, Filesystem, Flags, Propagation};

use crate::captures::Captured;
use crate::cgroup::Cgroups;
use crate::error::OpenError;
use crate::events::Events;
use crate::pod_cidr::PodCidr;
use crate::shim::Launcher;
use crate::spec::mounts::PodFiles;
use crate::spec::seccomp::Filters;
use crate::spec::security::{self, Set};
use crate::stats::Samples;
use crate::store::{Contents, Store};

/// Where a daemon keeps its pods and what it starts them with.
#[derive(Debug, Clone)]
pub struct PodsConfig {
    /// State that survives a reboot, such as `/var/lib/meridian`.
    pub root: PathBuf,
    /// State that does not, such as `/run/meridian`.
    pub run: PathBuf,
    /// Cgroup above pods whose request names no parent, such as `/meridian`.
    pub cgroup_root: String,
    /// The shim program.
    pub shim: PathBuf,
    /// Command line that starts CRIU, empty: pods cannot be checkpointed on this node.
    pub criu: Vec<String>,
    /// How pods are connected by CNI plugins; absent: by the embedded bridge.
    pub cni: Option<CniConfig>,
}

/// The shared services.
#[derive(Debug)]
pub(crate) struct Node {
    pub config: PodsConfig,
    pub images: Images,
    pub network: Network,
    /// As the kubelet told it last.
    pub pod_cidr: Mutex<Option<PodCidr>>,
    /// Used for new pods only if so configured; takes down those that it once connected in any case.
    pub cni: Arc<Cni>,
    pub launcher: Launcher,
    pub store: Store,
    pub pins: Pins,
    pub cgroups: Cgroups,
    pub filters: Filters,
    pub own_capabilities: Set,
    pub samples: Samples,
    pub events: Events,
    /// Checkpoints, for whoever counts them.
    pub captures: Captured,
    /// What the restores of checkpoints took.
    pub restores: Estimate,
}

impl Node {
    /// Makes the directories and opens the store; returns what it holds.
    pub(crate) fn open(
        config: PodsConfig,
        images: Images,
        network: Network,
    ) -> Result<(Self, Contents), OpenError> {
        for (dir, mode) in [
            (config.root.clone(), 0o700),
            (config.root.join("containers"), 0o700),
            (config.root.join("restored"), 0o700),
            (config.run.clone(), 0o711),
            (config.run.join("pods"), 0o711),
            (config.run.join("shim"), 0o700),
        ] {
            make_dir(&dir, mode).map_err(|source| OpenError::Directory { path: dir.clone(), source })?;
        }
        if !config.criu.is_empty() {
            let dir = config.run.join("criu");
            criu_tmpfs(&dir).map_err(|source| OpenError::Directory { path: dir, source })?;
        }
        let (store, contents) = Store::open(&config.root.join("pods.redb"))?;
        let node = Self {
            launcher: Launcher::new(&config.shim)?,
            pins: Pins::open(&config.run.join("ns")).map_err(OpenError::Pins)?,
            cgroups: Cgroups::detect().map_err(OpenError::Cgroup)?,
            store,
            images,
            network,
            pod_cidr: Mutex::new(PodCidr::kept(&config.root)),
            cni: Arc::new(Cni::new(config.cni.clone().unwrap_or_default(), config.root.join("cni"))),
            filters: Filters::default(),
            own_capabilities: security::own(),
            samples: Samples::default(),
            events: Events::default(),
            captures: Captured::default(),
            restores: Estimate::default(),
            config,
        };
        Ok((node, contents))
    }

    /// Frees, some time soon, images that were removed while a container used them.
    pub(crate) fn collect_images(&self) {
        let images = self.images.clone();
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = images.collect() {
                tracing::warn!(%error, "images without use stay on the disk until the next removal");
            }
        }));
    }

    /// `RUN/pods/<id>`: files of a pod that end with it.
    pub(crate) fn pod_dir(&self, id: &PodId) -> PathBuf {
        self.config.run.join("pods").join(id.as_str())
    }

    /// `RUN/shim/<id>`: the socket of its shim.
    pub(crate) fn shim_socket(&self, id: &PodId) -> PathBuf {
        self.config.run.join("shim").join(id.as_str())
    }

    /// `ROOT/containers/<id>`: the writable layer of a container.
    pub(crate) fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.config.root.join("containers").join(id.as_str())
    }

    /// `RUN/criu`: a tmpfs where CRIU remembers what the kernel can do. Empty when this node has no CRIU.
    pub(crate) fn criu_run(&self) -> String {
        if self.config.criu.is_empty() {
            return String::new();
        }
        self.config.run.join("criu").to_string_lossy().into_owned()
    }

    /// `ROOT/restored/<id>`: private copies of a checkpoint's images, until the containers are started.
    pub(crate) fn restored_dir(&self, id: &PodId) -> PathBuf {
        self.config.root.join("restored").join(id.as_str())
    }

    /// The files of a pod that its containers see.
    pub(crate) fn pod_files(&self, id: &PodId, node_shm: bool, node_hostname: bool) -> PodFiles {
        PodFiles { dir: self.pod_dir(id), node_shm, node_hostname }
    }
}

/// Makes CRIU's directory, on a tmpfs: only there does it keep what it found out about the kernel, 40 ms a call.
fn criu_tmpfs(dir: &Path) -> io::Result<()> {
    make_dir(dir, 0o700)?;
    if rustix::fs::statfs(dir)?.f_type == rustix::fs::FsWord::from(TMPFS_MAGIC) {
        return Ok(());
    }
    let tmpfs = Filesystem::open("tmpfs")?;
    tmpfs.set("source", "criu")?.set("mode", "700")?.set("size", "1m")?;
    let tmpfs = tmpfs.mount(Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV)?;
    sys::mount::attach_at(&tmpfs, dir)?;
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    Ok(sys::mount::set_attributes(&tmpfs, false, &private)?)
}

/// statfs(2).
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Makes `dir` and gives it `mode`, whatever the umask.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Now, ns since the epoch.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

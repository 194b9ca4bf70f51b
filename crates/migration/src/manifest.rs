//! `meridian.json`: what a checkpoint directory holds and what it needs.
//!
//! ```text
//! DIR/meridian.json                 this manifest
//! DIR/pod.options                   version and directory of archives, for checkpointctl's library
//! DIR/pod/devshm-checkpoint.tar     contents of the pod's /dev/shm, if any
//! DIR/NAME.tar                      one archive a container, see module archive
//! ```
//!
//! There is one format version; another one is refused (Firecracker built field-level versioning of its snapshots
//! and removed it as cost without use). Unknown fields are refused too. Every other file's size and SHA-256 is in
//! [`Manifest::files`], and every file in the directory is there.
//!
//! Not inside: volumes, images (only their digests), and anything that the restore request must say itself
//! (security, mounts, devices): the configurations are kept to be *compared* with the request.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::{ClockReading, Policy};

/// The format written and read.
pub const VERSION: u32 = 1;
/// File name of the manifest.
pub const MANIFEST: &str = "meridian.json";
/// Largest manifest that is read, in bytes.
pub const MANIFEST_LIMIT: u64 = 16 << 20;

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// ns since the epoch.
    pub created_at: i64,
    /// The pod's clocks at the cut.
    pub clocks: ClockReading,
    /// What they do about the time in between.
    pub clock_policy: Policy,
    /// What a node must have.
    pub needs: Needs,
    /// The sandbox.
    pub pod: Pod,
    /// Its containers, in the order in which they were created.
    pub containers: Vec<Container>,
    /// Every file but the manifest, by its path below the directory.
    pub files: BTreeMap<String, FileDigest>,
}

/// What a node must have to restore it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// As `uname -m`.
    pub architecture: String,
    /// As `uname -r`, for messages.
    pub kernel: String,
    /// CPU features that the processes may use: those of `/proc/cpuinfo`.
    pub cpu: BTreeSet<String>,
}

/// The sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its id on the node where it was.
    pub id: String,
    /// `runtime.v1.PodSandboxConfig`.
    pub config: Encoded,
    /// Runtime handler.
    pub handler: String,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its CRI name.
    pub name: String,
    /// Its id on the node where it was.
    pub id: String,
    /// `runtime.v1.ContainerConfig`.
    pub config: Encoded,
    /// Its image.
    pub image: Image,
    /// What its descriptors 0, 1 and 2 were.
    pub descriptors: Vec<String>,
}

/// An image, by what it is and by what it was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// As in the configuration.
    pub reference: String,
    /// Digest of its configuration, `sha256:...`: the same files.
    pub id: String,
}

/// A file that belongs to the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// A protobuf message, base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded(pub Vec<u8>);

/// A manifest that is not one of ours.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Written by a later Meridian, or by none.
    #[error("{MANIFEST}: format version {0} is not supported, only version {VERSION}")]
    Version(i64),
    /// Not JSON, or not these fields.
    #[error("{MANIFEST}: {0}")]
    Syntax(#[from] serde_json::Error),
    /// A field that contradicts another.
    #[error("{MANIFEST}: {0}")]
    Contents(String),
}

/// This node lacks something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnmetNeed {
    /// Other machine code.
    #[error("the checkpoint needs architecture {needed}, this node is {have}")]
    Architecture {
        /// The checkpoint's.
        needed: String,
        /// Ours.
        have: String,
    },
    /// The processes may have found these features and use them.
    #[error("the checkpoint needs CPU features that this node lacks: {0}")]
    Cpu(String),
}

impl Manifest {
    /// Parses and checks.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: i64,
        }
        let Version { version } = serde_json::from_slice(bytes)?;
        if version != i64::from(VERSION) {
            return Err(ManifestError::Version(version));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check().map_err(ManifestError::Contents)?;
        Ok(manifest)
    }

    /// As it is written.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("strings, numbers and maps with string keys")
    }

    fn check(&self) -> Result<(), String> {
        if self.containers.is_empty() {
            return Err("containers: must not be empty".into());
        }
        let mut names = BTreeSet::new();
        for container in &self.containers {
            if !is_file_name(&container.name) {
                return Err(format!("containers: name {:?} is not a file name", container.name));
            }
            if !names.insert(&container.name) {
                return Err(format!("containers: name {:?} is there twice", container.name));
            }
            if container.descriptors.len() > 3 {
                return Err(format!("containers: {} has more than 3 descriptors", container.name));
            }
            let archive = archive_name(&container.name);
            if !self.files.contains_key(&archive) {
                return Err(format!("files: {archive} is missing"));
            }
        }
        let known = |file: &str| {
            file == POD_OPTIONS || file == SHM || names.iter().any(|name| file == archive_name(name))
        };
        match self.files.keys().find(|file| !known(file)) {
            Some(file) => Err(format!("files: {file:?} is no file of a checkpoint")),
            None => Ok(()),
        }
    }
}

/// `pod.options`.
pub const POD_OPTIONS: &str = "pod.options";
/// Directory of what belongs to the pod and not to a container.
pub const POD_DIR: &str = "pod";
/// Contents of `/dev/shm`.
pub const SHM: &str = "pod/devshm-checkpoint.tar";

/// File name of a container's archive.
#[must_use]
pub fn archive_name(container: &str) -> String {
    format!("{container}.tar")
}

/// Whether a container name can name a file of its own.
#[must_use]
pub fn is_file_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=200).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
}

impl Needs {
    /// What processes of this node may depend on.
    #[must_use]
    pub fn of_this_node() -> Self {
        let uname = rustix::system::uname();
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
        let flags = flags.and_then(|line| line.split_once(':')).map_or("", |(_, flags)| flags);
        Self {
            architecture: uname.machine().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu: flags.split_whitespace().map(str::to_owned).collect(),
        }
    }

    /// Whether `node` has it all. The kernel's release is not compared: CRIU knows better what differs.
    pub fn met_by(&self, node: &Self) -> Result<(), UnmetNeed> {
        if self.architecture != node.architecture {
            let (needed, have) = (self.architecture.clone(), node.architecture.clone());
            return Err(UnmetNeed::Architecture { needed, have });
        }
        let lacking: Vec<&str> = self.cpu.difference(&node.cpu).map(String::as_str).collect();
        if lacking.is_empty() { Ok(()) } else { Err(UnmetNeed::Cpu(lacking.join(", "))) }
    }
}

impl Serialize for Encoded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let digest = FileDigest { size: 3, sha256: "0".repeat(64) };
        Manifest {
            version: VERSION,
            created_at: 5,
            clocks: ClockReading { monotonic: 1, boottime: 2, realtime: 3 },
            clock_policy: Policy::Freeze,
            needs: Needs {
                architecture: "x86_64".into(),
                kernel: "6.18".into(),
                cpu: ["avx2".to_owned(), "sse2".to_owned()].into(),
            },
            pod: Pod { id: "p".into(), config: Encoded(vec![1, 2]), handler: "meridian".into() },
            containers: vec![Container {
                name: "app".into(),
                id: "c".into(),
                config: Encoded(vec![3]),
                image: Image { reference: "busybox:1".into(), id: "sha256:ab".into() },
                descriptors: vec!["pipe:[1]".into()],
            }],
            files: [(archive_name("app"), digest)].into(),
        }
    }

    /// The format, letter by letter. A change here is a new version.
    /// docs/checkpoint-format.md shows the golden manifest and names every file of an archive.
    #[test]
    fn the_page_about_the_format_is_true() {
        let page = include_str!("../../../docs/checkpoint-format.md");
        assert!(page.contains(include_str!("manifest.golden.json").trim_end()));
        for name in crate::archive::FILES.iter().chain(&[crate::archive::IMAGES, MANIFEST, POD_OPTIONS, SHM])
        {
            assert!(page.contains(&format!("`{name}")), "{name} is not described");
        }
    }

    #[test]
    fn golden() {
        let golden = include_str!("manifest.golden.json");
        assert_eq!(String::from_utf8(sample().to_json()).unwrap(), golden.trim_end());
        assert_eq!(Manifest::parse(golden.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn other_versions_and_contents_are_refused_by_name() {
        let text = String::from_utf8(sample().to_json()).unwrap();
        let cases = [
            ("\"version\": 1", "\"version\": 999", "version 999"),
            ("\"version\": 1", "\"version\": -1", "version -1"),
            ("\"version\": 1,", "", "missing field `version`"),
            ("\"created_at\"", "\"extra\": 1, \"created_at\"", "unknown field `extra`"),
            ("\"freeze\"", "\"melt\"", "unknown variant `melt`"),
            ("AQI=", "A", "config"),
            ("\"name\": \"app\"", "\"name\": \"../app\"", "\"../app\" is not a file name"),
            ("\"app.tar\"", "\"other.tar\"", "app.tar is missing"),
            ("\"app.tar\"", "\"../x\": {\"size\":1,\"sha256\":\"\"}, \"app.tar\"", "\"../x\" is no file"),
            ("{", "[", "expected"),
        ];
        for (from, to, message) in cases {
            let error = Manifest::parse(text.replacen(from, to, 1).as_bytes()).expect_err(to).to_string();
            assert!(error.starts_with("meridian.json: "), "{error}");
            if message != "config" {
                assert!(error.contains(message), "{to}: {error}");
            }
        }
    }

    #[test]
    fn needs_are_compared() {
        let needs = sample().needs;
        assert_eq!(needs.met_by(&needs), Ok(()));
        let more = Needs { cpu: ["avx2".into(), "sse2".into(), "avx512f".into()].into(), ..needs.clone() };
        assert_eq!(needs.met_by(&more), Ok(()));
        assert_eq!(more.met_by(&needs), Err(UnmetNeed::Cpu("avx512f".into())));
        let arm = Needs { architecture: "aarch64".into(), ..needs.clone() };
        assert!(matches!(arm.met_by(&needs), Err(UnmetNeed::Architecture { .. })));
        assert!(!Needs::of_this_node().architecture.is_empty());
    }
}

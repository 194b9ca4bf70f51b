//! The configuration file: what is written becomes what is checked, once.
//!
//! TOML, all keys optional, unknown keys refused by name. `serde` checks what concerns one value (types, subnets,
//! names); [`Config::load`] checks the rest.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use network::NetworkConfig;
use network::cni::CniConfig;
use serde::Deserialize;
use streaming::{StreamingConfig, TlsConfig};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Read when no other file is named; may be absent.
pub const DEFAULT_FILE: &str = "/etc/meridian/config.toml";

/// Every key with its default and what it means; the file that is installed as an example.
pub const EXAMPLE: &str = include_str!("../../../hack/config.toml");

const LEVELS: &str = "error, warn, info, debug or trace; per crate as in \"info,pod=debug\"";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {file}")]
    Read {
        /// Its path.
        file: PathBuf,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// Syntax, an unknown key, or a value of the wrong type; the source shows line and key.
    #[error("configuration {file}: {source}")]
    Parse {
        /// Its path.
        file: PathBuf,
        /// From the parser.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot work.
    #[error("configuration {file}: {key} is {value:?}, but must be {rule}")]
    Value {
        /// Its path.
        file: PathBuf,
        /// The key, with its section.
        key: &'static str,
        /// As written.
        value: String,
        /// What would be right.
        rule: &'static str,
    },
}

/// Everything an operator can choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The pod network.
    pub network: NetworkConfig,
    /// Pods on a network of CNI plugins; absent: on the embedded one.
    pub cni: Option<CniConfig>,
    /// Checkpoint and restore.
    pub criu: Criu,
    /// Where images come from.
    pub image: Image,
    /// Moves between nodes; absent: they are refused.
    pub peer: Option<Peer>,
    /// Where pods' cgroups are.
    pub cgroup: Cgroup,
    /// Figures for Prometheus; absent: nothing listens.
    pub metrics: Option<Metrics>,
    /// Spans for a collector of OpenTelemetry; absent: nothing is made or sent.
    pub tracing: Option<Tracing>,
    /// What is logged; absent: `info`.
    pub log: Option<String>,
    /// The server of exec, attach and port-forward.
    pub streaming: Streaming,
    /// The shim's executable; absent: `meridian-shim` beside the daemon's.
    pub shim: Option<PathBuf>,
}

/// Section `[criu]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Criu {
    /// Program and first arguments.
    pub command: Vec<String>,
}

impl Default for Criu {
    fn default() -> Self {
        Self { command: vec!["/usr/sbin/criu".to_owned()] }
    }
}

/// Section `[image]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Image {
    /// Asked before the registry that a reference names, in order.
    pub mirror: Vec<Mirror>,
    /// Registries, as HOST or HOST:PORT, that are asked over plain HTTP. Loopback ones always are.
    pub insecure: Vec<String>,
    /// Directories that say how registries are reached, in the layout of containerd's `certs.d`.
    pub hosts: Vec<PathBuf>,
    /// Names of images that the kubelet must not collect as garbage.
    pub pinned: Vec<String>,
}

/// One `[[image.mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Registry of the reference, as HOST or HOST:PORT.
    pub host: String,
    /// URL of what is asked instead.
    pub endpoint: String,
}

/// Section `[peer]`; all keys are needed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Where other nodes' daemons connect.
    pub listen: SocketAddr,
    /// This node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authority that signed all nodes' certificates, PEM.
    pub ca: PathBuf,
}

/// Section `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where `/metrics` is served over plain HTTP to whoever can connect.
    pub listen: SocketAddr,
}

/// Section `[tracing]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// Where the collector takes OTLP over gRPC: `http://HOST:PORT`.
    pub endpoint: String,
    /// Share of the traces that begin here, 0 to 1; for those of the kubelet it has decided itself.
    #[serde(default = "all")]
    pub sampling: f64,
}

impl Tracing {
    fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        // A collector beside the daemon, as the kubelet's: no TLS.
        if !is_endpoint(&self.endpoint) || !self.endpoint.starts_with("http://") {
            return Err(("tracing.endpoint", self.endpoint.clone(), "a URL as http://127.0.0.1:4317"));
        }
        if !(0.0..=1.0).contains(&self.sampling) {
            return Err(("tracing.sampling", self.sampling.to_string(), "from 0 to 1"));
        }
        Ok(())
    }
}

/// A sampling rate is finite: [`Config::load`] sees to it.
impl Eq for Tracing {}

fn all() -> f64 {
    1.0
}

/// Section `[cgroup]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cgroup {
    /// Parent of the pods whose request names none; from the hierarchy's root.
    pub root: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { root: "/meridian".to_owned() }
    }
}

/// Section `[streaming]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// Where clients that have got a URL connect; port 0: any free one.
    pub listen: SocketAddr,
    /// Certificate for TLS, PEM; needs the key, too.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// A connection over which nothing passes for so many seconds is closed.
    pub idle_seconds: u32,
}

impl Default for Streaming {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { listen, certificate: None, key: None, idle_seconds: 4 * 60 * 60 }
    }
}

impl Streaming {
    /// As crate `streaming` takes it.
    #[must_use]
    pub fn lowered(&self) -> StreamingConfig {
        let files = self.certificate.clone().zip(self.key.clone());
        StreamingConfig {
            listen: self.listen,
            tls: files.map(|(certificate, key)| TlsConfig { certificate, key }),
            idle: Duration::from_secs(self.idle_seconds.into()),
        }
    }
}

impl Config {
    /// Reads `file`, or the default one if that exists.
    ///
    /// # Errors
    /// See [`ConfigError`]; each names the file and, where it can, the key.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { file: path.to_owned(), source }),
        }
    }

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { file: file.to_owned(), source: Box::new(source) })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err((key, value, rule)) => Err(ConfigError::Value { file: file.to_owned(), key, value, rule }),
        }
    }

    /// What is logged, if the file says so.
    pub fn log_targets(&self) -> Option<Targets> {
        self.log.as_ref().and_then(|log| log.parse().ok())
    }

    /// The keys and sections that differ and are read at start only.
    pub fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        let same = [
            ("network", self.network == new.network),
            ("cni", self.cni == new.cni),
            ("criu", self.criu == new.criu),
            ("image.pinned", self.image.pinned == new.image.pinned),
            ("peer", self.peer == new.peer),
            ("cgroup", self.cgroup == new.cgroup),
            ("image.hosts", self.image.hosts == new.image.hosts),
            ("metrics", self.metrics == new.metrics),
            ("tracing", self.tracing == new.tracing),
            ("streaming", self.streaming == new.streaming),
            ("shim", self.shim == new.shim),
        ];
        same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
    }

    fn check(&self) -> Result<(), (&'static str, String, &'static str)> {
        if self.criu.command.first().is_none_or(String::is_empty) {
            let value = format!("{:?}", self.criu.command);
            return Err((
                "criu.command",
                value,
                "a program and its first arguments, as [\"/usr/sbin/criu\"]",
            ));
        }
        if !is_cgroup_path(&self.cgroup.root) {
            return Err((
                "cgroup.root",
                self.cgroup.root.clone(),
                "an absolute path without '.' and '..', as /meridian",
            ));
        }
        for mirror in &self.image.mirror {
            if !is_registry(&mirror.host) {
                return Err(("image.mirror.host", mirror.host.clone(), "HOST or HOST:PORT"));
            }
            if !is_endpoint(&mirror.endpoint) {
                return Err(("image.mirror.endpoint", mirror.endpoint.clone(), "a URL as http://HOST:PORT"));
            }
        }
        if let Some(registry) = self.image.insecure.iter().find(|registry| !is_registry(registry)) {
            return Err(("image.insecure", registry.clone(), "HOST or HOST:PORT"));
        }
        if let Some(log) = self.log.as_ref().filter(|log| !is_log(log)) {
            return Err(("log", log.clone(), LEVELS));
        }
        if self.streaming.certificate.is_some() != self.streaming.key.is_some() {
            let value = format!("{:?}", self.streaming.key);
            return Err(("streaming.key", value, "set together with streaming.certificate"));
        }
        if self.streaming.idle_seconds == 0 {
            return Err(("streaming.idle_seconds", "0".to_owned(), "at least 1"));
        }
        if let Some(tracing) = &self.tracing {
            tracing.check()?;
        }
        if let Some(shim) = self.shim.as_ref().filter(|shim| !shim.is_absolute()) {
            return Err(("shim", shim.display().to_string(), "an absolute path"));
        }
        Ok(())
    }
}

fn is_cgroup_path(path: &str) -> bool {
    let Some(below) = path.strip_prefix('/') else { return false };
    below.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(['\0', '\n']))
}

/// A word alone must be a level: it would be taken for a crate whose name nobody has, and silence all.
fn is_log(log: &str) -> bool {
    let words_are_levels =
        log.split(',').all(|part| part.contains('=') || part.parse::<LevelFilter>().is_ok());
    words_are_levels && log.parse::<Targets>().is_ok()
}

fn is_registry(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
}

fn is_endpoint(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https"))
            && url.authority().is_some()
            && url.query().is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANUAL: &str = include_str!("../../../docs/operations.md");

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("c.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.network.bridge.as_str(), "meridian0");
        assert_eq!(config.cgroup.root, "/meridian");
        assert!(config.peer.is_none() && config.network.masquerade);
    }

    #[test]
    fn the_example_shows_the_defaults_and_valid_comments() {
        let shown = parse(EXAMPLE).unwrap();
        let default = Config::default();
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));
        let everything: String = EXAMPLE
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|rest| rest.contains(" = ") || rest.starts_with('['))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let everything = parse(&everything).unwrap();
        assert!(
            everything.peer.is_some()
                && everything.metrics.is_some()
                && everything.cni.is_some()
                && everything.tracing.is_some()
                && everything.image.mirror.len() == 1
                && everything.shim.is_some()
        );
    }

    /// docs/operations.md lists the example's keys and no others.
    #[test]
    fn every_key_is_documented() {
        let mut section = String::new();
        let mut keys = Vec::new();
        for line in EXAMPLE.lines().map(|line| line.trim_start_matches("# ")) {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_matches(['[', ']']).to_owned() + ".";
            } else if let Some((key, _)) = line.split_once(" = ")
                && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            {
                keys.push(format!("`{section}{key}`"));
            }
        }
        let (_, table) = MANUAL.split_once("## Configuration").unwrap();
        let missing: Vec<_> = keys.iter().filter(|key| !table.contains(key.as_str())).collect();
        assert!(keys.len() > 20 && missing.is_empty(), "not in docs/operations.md: {missing:?}");
        let named = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
        for key in named.flat_map(|cell| cell.split(", ")).map(|key| format!("`{}`", key.trim_matches('`'))) {
            assert!(keys.contains(&key), "docs/operations.md documents {key}, which is no key");
        }
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            shim = "/opt/shim"
            [network]
            bridge = "a0"
            subnet4 = "10.1.0.0/24"
            subnet6 = ""
            mtu = 1400
            masquerade = false
            [criu]
            command = ["/lib/ld.so", "/opt/criu"]
            [image]
            insecure = ["127.0.0.1:5000"]
            [[image.mirror]]
            host = "registry.example"
            endpoint = "http://127.0.0.1:5000"
            [peer]
            listen = "0.0.0.0:7070"
            certificate = "node.crt"
            key = "node.key"
            ca = "ca.crt"
            [cgroup]
            root = "/kubepods"
            "#,
        )
        .unwrap();
        assert_eq!((config.network.mtu, config.network.subnet6), (1400, None));
        assert_eq!(config.criu.command.len(), 2);
        assert_eq!(config.image.mirror[0].endpoint, "http://127.0.0.1:5000");
        assert_eq!(config.peer.unwrap().listen.port(), 7070);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("colour = 1", "unknown field `colour`"),
            ("[network]\nbrigde = \"x\"", "unknown field `brigde`"),
            ("[network]\nsubnet4 = \"10.0.0.1/8\"", "10.0.0.1/8 names one address in a subnet"),
            ("[network]\nbridge = \"a/b\"", "\"a/b\" is not a bridge name"),
            ("[network]\nmtu = -1", "mtu = -1"),
            ("[network]\nmtu = \"big\"", "expected u32"),
            ("[peer]\nlisten = \"0.0.0.0:1\"", "missing field `certificate`"),
            ("[peer]\nlisten = \"here\"", "socket address"),
            ("[criu]\ncommand = []", "criu.command is \"[]\", but must be a program"),
            ("[cgroup]\nroot = \"/a/../b\"", "cgroup.root is \"/a/../b\", but must be an absolute path"),
            (
                "[image]\ninsecure = [\"http://x\"]",
                "image.insecure is \"http://x\", but must be HOST or HOST:PORT",
            ),
            (
                "[[image.mirror]]\nhost = \"x\"\nendpoint = \"y\"",
                "image.mirror.endpoint is \"y\", but must be a URL",
            ),
            ("log = \"pod=loud\"", "log is \"pod=loud\", but must be error, warn"),
            ("log = \"loud\"", "log is \"loud\", but must be error, warn"),
            ("[streaming]\nkey = \"k\"", "streaming.key is \"Some(\\\"k\\\")\", but must be set together"),
            ("[streaming]\nidle_seconds = 0", "streaming.idle_seconds is \"0\", but must be at least 1"),
            (
                "[tracing]\nendpoint = \"https://c:4317\"",
                "tracing.endpoint is \"https://c:4317\", but must be a URL as",
            ),
            (
                "[tracing]\nendpoint = \"http://c:4317\"\nsampling = nan",
                "tracing.sampling is \"NaN\", but must be from 0 to 1",
            ),
            ("shim = \"shim\"", "shim is \"shim\", but must be an absolute path"),
            ("[network", "c.toml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("configuration c.toml: ") && error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/c.toml"))).unwrap_err().to_string();
        assert_eq!(error, "read configuration /nonexistent/c.toml");
    }

    #[test]
    fn a_change_that_waits_for_the_next_start_is_named() {
        let old = parse("[network]\nmtu = 1400\n[image]\ninsecure = [\"a\"]").unwrap();
        let new = parse("log = \"debug\"\n[network]\nmtu = 1500\n[cgroup]\nroot = \"/x\"").unwrap();
        assert_eq!(old.fixed_changes(&new), ["network", "cgroup"]);
        assert!(new.fixed_changes(&new).is_empty());
    }
}

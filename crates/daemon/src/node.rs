//! Opens what the daemon serves: images, network, pods; and words what the node can do for CRI's Status.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use api::meridian::v1::Feature;
use cri::{Abilities, Problem};
use image::{ImageConfig, Images, Mirror};
use network::{Network, NetworkConfig};
use pod::{PodCidr, Pods, PodsConfig};
use serde_json::json;

use crate::config::Config;
use crate::flags::Flags;

/// Why the daemon has nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("find the shim beside the daemon's own program; set shim in the configuration")]
    Shim(#[source] io::Error),
    #[error("open images")]
    Images(#[from] image::OpenError),
    #[error("start the pod network")]
    Network(#[from] network::StartError),
    #[error("open pods")]
    Pods(#[from] pod::OpenError),
}

/// The node's services.
#[derive(Debug, Clone)]
pub struct Node {
    pub images: Images,
    pub pods: Pods,
    pub network: Network,
}

impl Node {
    /// Opens all, pods last: recovering them needs the others.
    pub async fn open(flags: &Flags, config: &Config, features: &[Feature]) -> Result<Self, OpenError> {
        let images = Images::open(image_config(flags, config))?;
        let network = Network::start(&network_config(flags, config))?;
        let pods = Pods::open(pods_config(flags, config, features)?, images.clone(), network.clone()).await?;
        Ok(Self { images, pods, network })
    }
}

fn image_config(flags: &Flags, config: &Config) -> ImageConfig {
    let mirrors = mirrors(config);
    let (insecure, pinned) = (config.image.insecure.clone(), config.image.pinned.clone());
    let (root, hosts) = (flags.root.clone(), config.image.hosts.clone());
    ImageConfig { root, mirrors, insecure, hosts, pinned, ..ImageConfig::default() }
}

/// The configured subnets, or those that the kubelet told since.
fn network_config(flags: &Flags, config: &Config) -> NetworkConfig {
    let told = PodCidr::kept(&flags.root).filter(|_| config.cni.is_none());
    told.map_or_else(|| config.network.clone(), |cidr| cidr.apply(&config.network))
}

/// What is asked before the registries themselves.
pub fn mirrors(config: &Config) -> Vec<Mirror> {
    let mirrors = config.image.mirror.iter();
    mirrors.map(|m| Mirror { host: m.host.clone(), endpoint: m.endpoint.clone() }).collect()
}

fn pods_config(flags: &Flags, config: &Config, features: &[Feature]) -> Result<PodsConfig, OpenError> {
    let criu = if has(features, "criu") { config.criu.command.clone() } else { Vec::new() };
    Ok(PodsConfig {
        root: flags.root.clone(),
        run: flags.run.clone(),
        cgroup_root: config.cgroup.root.clone(),
        shim: shim(flags, config).map_err(OpenError::Shim)?,
        criu,
        cni: config.cni.clone(),
    })
}

/// What the environment says, else the configuration, else the one that was installed with this daemon.
pub fn shim(flags: &Flags, config: &Config) -> io::Result<PathBuf> {
    if let Some(shim) = flags.shim.as_ref().or(config.shim.as_ref()) {
        return Ok(shim.clone());
    }
    let daemon = std::env::current_exe()?;
    Ok(daemon.parent().unwrap_or(Path::new("/")).join("meridian-shim"))
}

fn has(features: &[Feature], name: &str) -> bool {
    features.iter().any(|feature| feature.name == name && feature.available)
}

/// What CRI's Status tells.
pub fn abilities(flags: &Flags, config: &Config, features: &[Feature]) -> Abilities {
    let missing: Vec<_> = features.iter().filter(|feature| feature.required && !feature.available).collect();
    let runtime_problem = (!missing.is_empty()).then(|| Problem {
        reason: "FeatureMissing".to_owned(),
        message: missing.iter().map(|f| format!("{}: {}", f.name, f.detail)).collect::<Vec<_>>().join("; "),
    });
    Abilities {
        runtime_problem,
        network_problem: None,
        recursive_read_only_mounts: has(features, "recursive-read-only"),
        user_namespaces: has(features, "user-namespaces") && has(features, "idmapped-mounts"),
        info: HashMap::from([
            ("config".to_owned(), configuration(flags, config).to_string()),
            ("probe".to_owned(), probe(features).to_string()),
        ]),
    }
}

/// Keys as scripts know them from other runtimes, then our own.
fn configuration(flags: &Flags, config: &Config) -> serde_json::Value {
    json!({
        "stateDir": flags.run,
        "rootDir": flags.root,
        "sandboxImage": "",
        "cgroupRoot": config.cgroup.root,
        "criu": config.criu.command,
        "network": {
            "bridge": config.network.bridge.as_str(),
            "subnet4": config.network.subnet4.to_string(),
            "subnet6": config.network.subnet6.map(|subnet| subnet.to_string()),
            "mtu": config.network.mtu,
            "masquerade": config.network.masquerade,
        },
        "peer": config.peer.as_ref().map(|peer| peer.listen.to_string()),
    })
}

fn probe(features: &[Feature]) -> serde_json::Value {
    let row = |f: &Feature| {
        (f.name.clone(), json!({ "available": f.available, "required": f.required, "detail": f.detail }))
    };
    serde_json::Value::Object(features.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(name: &str, available: bool, required: bool) -> Feature {
        Feature { name: name.to_owned(), available, required, detail: "tried; cure".to_owned() }
    }

    fn flags() -> Flags {
        clap::Parser::parse_from(["meridiand", "--run", "/r"])
    }

    #[test]
    fn a_missing_required_feature_makes_the_runtime_unready() {
        let features = [feature("seccomp", false, true), feature("criu", false, false)];
        let abilities = abilities(&flags(), &Config::default(), &features);
        assert_eq!(abilities.runtime_problem.unwrap().message, "seccomp: tried; cure");
        let config: serde_json::Value = serde_json::from_str(&abilities.info["config"]).unwrap();
        assert_eq!(config["stateDir"], "/r");
    }

    #[test]
    fn user_namespaces_need_idmapped_mounts() {
        let both = [feature("user-namespaces", true, false), feature("idmapped-mounts", true, false)];
        assert!(abilities(&flags(), &Config::default(), &both).user_namespaces);
        assert!(!abilities(&flags(), &Config::default(), &both[..1]).user_namespaces);
    }

    #[test]
    fn the_shim_of_the_environment_wins() {
        let config = Config { shim: Some("/configured".into()), ..Config::default() };
        assert_eq!(shim(&flags(), &config).unwrap(), Path::new("/configured"));
        let flags = Flags { shim: Some("/environment".into()), ..flags() };
        assert_eq!(shim(&flags, &config).unwrap(), Path::new("/environment"));
        assert!(shim(&self::flags(), &Config::default()).unwrap().ends_with("meridian-shim"));
    }
}

//! The node's share of the pod network, as the kubelet tells it: kept in a file, because it is told only when it changes.
//!
//! The embedded bridge takes it in place of the configured subnets, plugins are given it as capability ipRanges; in both
//! cases for new pods.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, PoisonError};

use network::{InvalidSubnet, NetworkConfig, StartError, Subnet4, Subnet6, Subnets};

use crate::error::{Class, Classify};
use crate::pods::Pods;

/// In the daemon's root directory.
const FILE: &str = "pod-cidr";

/// One range of addresses of a family, or one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCidr {
    v4: Option<Subnet4>,
    v6: Option<Subnet6>,
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPodCidr {
    /// One of its parts.
    #[error(transparent)]
    Subnet(#[from] InvalidSubnet),
    /// A pod has one address of each family.
    #[error("{text} is the second of its family: a node has one range of IPv4 and one of IPv6 addresses")]
    Second {
        /// The part.
        text: String,
    },
}

impl FromStr for PodCidr {
    type Err = InvalidPodCidr;

    fn from_str(text: &str) -> Result<Self, InvalidPodCidr> {
        let mut cidr = Self { v4: None, v6: None };
        for part in text.split(',').map(str::trim) {
            let again = if part.contains(':') {
                cidr.v6.replace(part.parse()?).is_some()
            } else {
                cidr.v4.replace(part.parse()?).is_some()
            };
            if again {
                return Err(InvalidPodCidr::Second { text: part.to_owned() });
            }
        }
        Ok(cidr)
    }
}

impl fmt::Display for PodCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.ranges().join(","))
    }
}

/// Why new pods get no addresses of it.
#[derive(Debug, thiserror::Error)]
pub enum PodCidrError {
    /// The bridge gives every pod an IPv4 address.
    #[error(
        "{cidr} has no IPv4 range, which the embedded bridge needs: configure CNI plugins in section [cni]"
    )]
    Without4 {
        /// As told.
        cidr: PodCidr,
    },
    /// The bridge does not take it.
    #[error(transparent)]
    Network(StartError),
    /// It would be forgotten.
    #[error("keep the pod CIDR in {}", path.display())]
    Keep {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The daemon ends.
    #[error("the daemon is ending")]
    Interrupted,
}

impl Classify for PodCidrError {
    fn class(&self) -> Class {
        match self {
            Self::Without4 { .. } => Class::FailedPrecondition,
            Self::Network(error) if error.is_in_the_way() => Class::FailedPrecondition,
            _ => Class::Internal,
        }
    }
}

impl PodCidr {
    /// What was told last to a daemon with this root directory. A file that cannot be read is told of in the log: the
    /// kubelet tells its daemon again when it starts.
    #[must_use]
    pub fn kept(root: &Path) -> Option<Self> {
        let path = root.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the pod CIDR cannot be read");
                return None;
            }
        };
        let parsed = text.trim().parse();
        parsed
            .inspect_err(
                |error| tracing::warn!(path = %path.display(), %error, "the pod CIDR cannot be read"),
            )
            .ok()
    }

    /// The configuration with these subnets, where the bridge can use them.
    #[must_use]
    pub fn apply(self, config: &NetworkConfig) -> NetworkConfig {
        match self.subnets() {
            Some(Subnets { v4, v6 }) => NetworkConfig { subnet4: v4, subnet6: v6, ..config.clone() },
            None => config.clone(),
        }
    }

    fn subnets(self) -> Option<Subnets> {
        Some(Subnets { v4: self.v4?, v6: self.v6 })
    }

    /// As texts, IPv4 first.
    pub(crate) fn ranges(self) -> Vec<String> {
        self.v4.map(|v4| v4.to_string()).into_iter().chain(self.v6.map(|v6| v6.to_string())).collect()
    }

    /// Whole or not at all, and on the disk when this returns.
    fn keep(self, root: &Path) -> Result<(), PodCidrError> {
        let path = root.join(FILE);
        let new = path.with_extension("new");
        let written = File::create(&new).and_then(|mut file| {
            writeln!(file, "{self}")?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(root)?.sync_all()
        });
        written.map_err(|source| PodCidrError::Keep { path, source })
    }
}

impl Pods {
    /// New pods get addresses of `cidr`, also after a restart; those that are there keep theirs.
    ///
    /// # Errors
    /// See [`PodCidrError`]; a repetition goes on where this ended.
    pub async fn update_pod_cidr(&self, cidr: PodCidr) -> Result<(), PodCidrError> {
        let node = Arc::clone(&self.node);
        let update = move || {
            let mut current = node.pod_cidr.lock().unwrap_or_else(PoisonError::into_inner);
            if *current == Some(cidr) {
                return Ok(());
            }
            if node.config.cni.is_none() {
                let subnets = cidr.subnets().ok_or(PodCidrError::Without4 { cidr })?;
                node.network.renumber(subnets).map_err(PodCidrError::Network)?;
            }
            cidr.keep(&node.config.root)?;
            tracing::info!(%cidr, "new pods get addresses of another range");
            *current = Some(cidr);
            Ok(())
        };
        tokio::task::spawn_blocking(update).await.unwrap_or(Err(PodCidrError::Interrupted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_each_family() {
        for (text, shown) in [
            ("10.244.1.0/24", "10.244.1.0/24"),
            ("fd00:1::/64,10.244.1.0/24", "10.244.1.0/24,fd00:1::/64"),
            ("10.244.1.0/24, fd00:1::/64", "10.244.1.0/24,fd00:1::/64"),
            ("fd00:1::/64", "fd00:1::/64"),
        ] {
            assert_eq!(text.parse::<PodCidr>().unwrap().to_string(), shown);
        }
        for wrong in [
            "10.244.1.0",
            "10.244.1.1/24",
            "10.244.1.0/24,",
            "10.0.0.0/8,11.0.0.0/8",
            "fd00::/64,fd01::/64",
            "x",
            ",",
        ] {
            assert!(wrong.parse::<PodCidr>().is_err(), "{wrong}");
        }
    }
}

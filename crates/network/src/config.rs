//! What of the network an operator can choose.

use serde::{Deserialize, Deserializer};

use crate::subnet::{BridgeName, Subnet4, Subnet6, Subnets};

/// Section `[network]` of the daemon's configuration. All keys are optional.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Name of the bridge; two daemons in one network namespace need two.
    pub bridge: BridgeName,
    /// IPv4 addresses of bridge (the first) and pods.
    pub subnet4: Subnet4,
    /// IPv6 addresses; the empty text turns IPv6 off.
    #[serde(deserialize_with = "subnet6")]
    pub subnet6: Option<Subnet6>,
    /// Of the bridge and of every pod's interface, in bytes.
    pub mtu: u32,
    /// Whether pods reach other networks under the node's address. Without it, those networks need a route back.
    pub masquerade: bool,
}

impl NetworkConfig {
    pub(crate) fn subnets(&self) -> Subnets {
        Subnets { v4: self.subnet4, v6: self.subnet6 }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            bridge: "meridian0".parse().expect("a valid literal"),
            subnet4: "10.88.0.0/16".parse().expect("a valid literal"),
            subnet6: Some("fd00:88::/64".parse().expect("a valid literal")),
            mtu: 1500,
            masquerade: true,
        }
    }
}

fn subnet6<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Subnet6>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

//! Makes the node a router for its pods: forwarding sysctls and one nftables table, `meridian_<bridge>`.
//!
//! The table is replaced in one transaction at every start, so that a changed configuration leaves no old rule. Pods
//! add nothing to it; their host ports have a table of their own (module `ports`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::NetworkConfig;
use crate::nft::{self, NftError};
use crate::subnet::Gateway;

/// Why the node does not forward for pods.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A sysctl could not be read or written.
    #[error("set {path} to {value}")]
    Sysctl {
        /// Below /proc/sys.
        path: PathBuf,
        /// What it should be.
        value: &'static str,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The rules could not be loaded.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// `gateways`: of the subnets whose pods are served.
pub(crate) fn enable(config: &NetworkConfig, gateways: &[Gateway]) -> Result<(), ForwardError> {
    sysctl("net/ipv4/ip_forward", "1")?;
    if gateways.iter().any(|gateway| gateway.address.is_ipv6()) {
        keep_router_advertisements();
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    if config.masquerade { Ok(nft::load(&table(config), &rules(config, gateways))?) } else { Ok(()) }
}

/// Writes only what differs: where /proc/sys is read-only, the right value is enough.
pub(crate) fn sysctl(name: &str, value: &'static str) -> Result<(), ForwardError> {
    let path = Path::new("/proc/sys").join(name);
    let written = fs::read_to_string(&path).and_then(|now| match now.trim() {
        now if now == value => Ok(()),
        _ => fs::write(&path, value),
    });
    written.map_err(|source| ForwardError::Sysctl { path, value, source })
}

/// A node that forwards ignores router advertisements and would lose its own default route, unless accept_ra is 2:
/// kernel, networking/ip-sysctl, accept_ra. Best effort, as links come and go.
fn keep_router_advertisements() {
    let Ok(links) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return };
    for link in links.flatten() {
        let path = link.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            let _ = fs::write(path, "2");
        }
    }
}

fn table(config: &NetworkConfig) -> String {
    format!("inet meridian_{}", config.bridge)
}

/// Masquerades what leaves the bridge's subnets by another link; multicast keeps its source.
fn rules(config: &NetworkConfig, gateways: &[Gateway]) -> String {
    let (table, bridge) = (table(config), &config.bridge);
    let rule = |subnet: &Gateway| {
        let (family, multicast) =
            if subnet.address.is_ipv4() { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
        format!(
            "    {family} saddr {subnet} {family} daddr != {{ {subnet}, {multicast} }} oifname != \"{bridge}\" masquerade\n"
        )
    };
    let rules: String = gateways.iter().map(rule).collect();
    format!(
        "table {table}\n\
         delete table {table}\n\
         table {table} {{\n  \
         chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n\
         {rules}  \
         }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_belongs_to_the_bridge() {
        let mut config = NetworkConfig { bridge: "br-a".parse().unwrap(), ..NetworkConfig::default() };
        let text = rules(&config, &config.subnets().gateways());
        assert!(text.starts_with("table inet meridian_br-a\ndelete table inet meridian_br-a\n"), "{text}");
        assert!(text.contains("ip saddr 10.88.0.1/16 ip daddr != { 10.88.0.1/16, 224.0.0.0/4 }"), "{text}");
        assert!(text.contains("ip6 saddr fd00:88::1/64"), "{text}");
        config.subnet6 = None;
        assert!(!rules(&config, &config.subnets().gateways()).contains("ip6"));
    }
}

//! Host ports of a pod, from its request to `network`. A mapping without a host port says only what a container listens
//! on; pods on the node's network need none.

use api::cri::v1::{self as cri, PodSandboxConfig};
use network::{Lease, Network, PortError, PortMapping, Protocol};

/// What the request wants mapped. Numbers and addresses were checked when it came.
pub(crate) fn of(config: &PodSandboxConfig) -> Vec<PortMapping> {
    config.port_mappings.iter().filter_map(mapping).collect()
}

fn mapping(asked: &cri::PortMapping) -> Option<PortMapping> {
    let protocol = match asked.protocol() {
        cri::Protocol::Tcp => Protocol::Tcp,
        cri::Protocol::Udp => Protocol::Udp,
        cri::Protocol::Sctp => Protocol::Sctp,
    };
    Some(PortMapping {
        protocol,
        host_ip: asked.host_ip.parse().ok(),
        host_port: u16::try_from(asked.host_port).ok().filter(|port| *port > 0)?,
        container_port: u16::try_from(asked.container_port).ok()?,
    })
}

/// Maps a new pod's ports. Blocks.
pub(crate) fn map(network: &Network, lease: &Lease, config: &PodSandboxConfig) -> Result<(), PortError> {
    let mappings = of(config);
    if mappings.is_empty() { Ok(()) } else { network.map_ports(lease, &mappings) }
}

/// Ends what [`map`] began; says what stayed.
pub(crate) async fn unmap(network: &Network, lease: &Lease, config: &PodSandboxConfig) -> Option<String> {
    if of(config).is_empty() {
        return None;
    }
    let (network, lease) = (network.clone(), lease.clone());
    let unmapped = tokio::task::spawn_blocking(move || network.unmap_ports(&lease)).await;
    match unmapped {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("host ports: {error}")),
        Err(_) => Some("host ports: the daemon is ending".to_owned()),
    }
}

/// Says at recovery that a pod of the daemon's predecessor has its ports.
pub(crate) fn adopt(network: &Network, lease: &Lease, config: &PodSandboxConfig) {
    let mappings = of(config);
    if !mappings.is_empty() {
        network.adopt_ports(lease, &mappings);
    }
}

/// After recovery: no rule and no address is left of pods that are gone. Nobody waits for it.
pub(crate) fn settle(network: &Network) {
    let network = network.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = network.settle() {
            tracing::warn!(%error, "addresses of the bridge or host ports may be left of earlier pods");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_with_a_host_port_are_mapped() {
        let asked = |host_port, host_ip: &str| cri::PortMapping {
            protocol: cri::Protocol::Udp.into(),
            container_port: 53,
            host_port,
            host_ip: host_ip.into(),
        };
        let port_mappings = vec![asked(0, ""), asked(5353, "192.0.2.1"), asked(-1, ""), asked(54, "")];
        let found = of(&PodSandboxConfig { port_mappings, ..Default::default() });
        let shown: Vec<_> = found.iter().map(|m| (m.host_port, m.host_ip.is_some())).collect();
        assert_eq!(shown, [(5353, true), (54, false)]);
        assert!(found.iter().all(|m| m.protocol == Protocol::Udp && m.container_port == 53));
    }
}

//! Host ports: connections to an address of the node go on to a pod. One nftables table, `meridian_<bridge>_ports`, which is
//! replaced as a whole, in one transaction, whenever a pod with host ports comes or goes; without such a pod it is not there.
//!
//! ```text
//! from outside ──prerouting──▶ dnat to the pod           source kept
//! from the node ──output────▶ dnat to the pod           127.0.0.0/8 becomes the bridge's address
//! from a pod ──prerouting────▶ dnat to a pod             becomes the bridge's address: else the answer would go past the node
//! ```
//!
//! The kernel lets packets from 127.0.0.0/8 out to the bridge only with `route_localnet`, which would also let pods reach
//! what listens on the node's loopback (CVE-2020-8558): a rule drops that first. Nothing of the like exists for `::1`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage,
};

use crate::config::NetworkConfig;
use crate::forward::{ForwardError, sysctl};
use crate::lease::Lease;
use crate::netlink::{Refused, Request, Rtnetlink};
use crate::nft;
use crate::subnet::Gateway;

/// Transport protocols that have ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// One port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// Only connections to this address; none, or an unspecified one, for all of the node's.
    pub host_ip: Option<IpAddr>,
    /// 1 to 65535.
    pub host_port: u16,
    /// 1 to 65535.
    pub container_port: u16,
}

/// Why host ports could not be mapped. The mappings are as they were.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another pod has it.
    #[error("host port {port}/{} is mapped to {holder} already: stop that pod first", .protocol.name())]
    Taken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Address of the pod that has it.
        holder: Ipv4Addr,
    },
    /// The pod's link on the node.
    #[error("set hairpin mode of {link}")]
    TurnRound {
        /// The link.
        link: String,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The rules or the sysctl were refused.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

/// Lets the bridge send a frame out where it came in: with `bridge-nf-call-iptables`, a pod's connection to its own host
/// port is turned round inside the bridge and never routed.
pub(crate) fn turn_round(host: &mut Rtnetlink, lease: &Lease) -> Result<(), PortError> {
    let link = lease.host_veth();
    let failed = |source| PortError::TurnRound { link: link.clone(), source };
    let mut message = LinkMessage::default();
    message.header.index =
        host.link_index(&link).map_err(failed)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ])];
    let message = RouteNetlinkMessage::NewLink(message);
    host.batch(vec![Request { message, flags: 0, step: "" }]).map_err(|Refused { source, .. }| failed(source))
}

/// The mappings of all pods, by the address of each.
#[derive(Debug, Default)]
pub(crate) struct Ports(BTreeMap<Ipv4Addr, (Lease, Vec<PortMapping>)>);

impl Ports {
    /// Adds a pod's mappings to the list; [`Ports::load`] puts it into force.
    pub(crate) fn add(&mut self, lease: &Lease, mappings: &[PortMapping]) -> Result<(), PortError> {
        for wanted in mappings {
            if let Some(holder) = self.holder(lease, wanted) {
                let (port, protocol) = (wanted.host_port, wanted.protocol);
                return Err(PortError::Taken { port, protocol, holder });
            }
        }
        self.0.insert(lease.v4, (lease.clone(), mappings.to_vec()));
        Ok(())
    }

    /// Whether no other pod has the port.
    pub(crate) fn is_free(&self, lease: &Lease, wanted: &PortMapping) -> bool {
        self.holder(lease, wanted).is_none()
    }

    fn holder(&self, lease: &Lease, wanted: &PortMapping) -> Option<Ipv4Addr> {
        let others = self.0.values().filter(|(other, _)| other.v4 != lease.v4);
        let mut holding = others.filter(|(_, list)| list.iter().any(|held| overlap(held, wanted)));
        holding.next().map(|(holder, _)| holder.v4)
    }

    /// What the pod had, if anything.
    pub(crate) fn remove(&mut self, lease: &Lease) -> Option<Vec<PortMapping>> {
        self.0.remove(&lease.v4).map(|(_, mappings)| mappings)
    }

    /// Makes the kernel's table say what the list says.
    pub(crate) fn load(&self, config: &NetworkConfig, gateways: &[Gateway]) -> Result<(), ForwardError> {
        let loopback = format!("net/ipv4/conf/{}/route_localnet", config.bridge);
        if self.0.is_empty() {
            sysctl(&loopback, "0")?;
            return Ok(nft::load(&table(config), &absent(config))?);
        }
        nft::load(&table(config), &self.rules(config, gateways))?;
        sysctl(&loopback, "1") // after the rule that keeps pods out is in force
    }

    fn rules(&self, config: &NetworkConfig, gateways: &[Gateway]) -> String {
        let bridge = &config.bridge;
        let mut ports = String::new();
        for (lease, mappings) in self.0.values() {
            mappings.iter().for_each(|mapping| write_mapping(&mut ports, lease, mapping));
        }
        let between = |subnet: &Gateway| {
            let family = if subnet.address.is_ipv4() { "ip" } else { "ip6" };
            format!("    {family} saddr {subnet} oifname \"{bridge}\" ct status dnat masquerade\n")
        };
        let pods: String = gateways.iter().map(between).collect();
        format!(
            "{absent}\
             table {table} {{\n  \
             chain guard {{\n    \
             type filter hook prerouting priority raw; policy accept;\n    \
             iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n  \
             }}\n  \
             chain prerouting {{\n    \
             type nat hook prerouting priority dstnat; policy accept;\n    \
             fib daddr type local jump ports\n  \
             }}\n  \
             chain output {{\n    \
             type nat hook output priority -100; policy accept;\n    \
             ip6 daddr ::1 return\n    \
             fib daddr type local jump ports\n  \
             }}\n  \
             chain ports {{\n{ports}  }}\n  \
             chain postrouting {{\n    \
             type nat hook postrouting priority srcnat; policy accept;\n    \
             ip saddr 127.0.0.0/8 oifname \"{bridge}\" masquerade\n\
             {pods}  \
             }}\n\
             }}\n",
            absent = absent(config),
            table = table(config),
        )
    }
}

fn table(config: &NetworkConfig) -> String {
    format!("inet meridian_{}_ports", config.bridge)
}

/// Adding before deleting makes it no error that there is none.
fn absent(config: &NetworkConfig) -> String {
    let table = table(config);
    format!("table {table}\ndelete table {table}\n")
}

/// A rule for each of the pod's families that the host address allows.
fn write_mapping(rules: &mut String, lease: &Lease, mapping: &PortMapping) {
    let PortMapping { protocol, host_port, container_port, .. } = mapping;
    let only = mapping.host_ip.filter(|ip| !ip.is_unspecified());
    for to in lease.addresses() {
        if mapping.host_ip.is_some_and(|ip| ip.is_ipv4() != to.is_ipv4()) {
            continue;
        }
        let (family, to) = match to {
            IpAddr::V4(v4) => ("ip", v4.to_string()),
            IpAddr::V6(v6) => ("ip6", format!("[{v6}]")),
        };
        let nfproto = if family == "ip" { "ipv4" } else { "ipv6" };
        let address = only.map(|ip| format!("{family} daddr {ip} ")).unwrap_or_default();
        let protocol = protocol.name();
        let _ = writeln!(
            rules,
            "    meta nfproto {nfproto} {address}{protocol} dport {host_port} dnat {family} to {to}:{container_port}"
        );
    }
}

/// Whether a connection could match both.
fn overlap(a: &PortMapping, b: &PortMapping) -> bool {
    let same_address = match (a.host_ip, b.host_ip) {
        (Some(a), Some(b)) => {
            a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
        }
        _ => true,
    };
    a.protocol == b.protocol && a.host_port == b.host_port && same_address
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(last: u8) -> Lease {
        let v6 = Some(format!("fd00:88::{last}").parse().unwrap());
        Lease { v4: Ipv4Addr::new(10, 88, 0, last), v6 }
    }

    fn mapping(host_ip: Option<&str>, host_port: u16) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, host_ip, host_port, container_port: 80 }
    }

    #[test]
    fn a_mapping_has_a_rule_for_each_family_that_its_address_allows() {
        for (host_ip, lines) in [
            (
                None,
                vec![
                    "meta nfproto ipv4 tcp dport 8080 dnat ip to 10.88.0.2:80",
                    "meta nfproto ipv6 tcp dport 8080 dnat ip6 to [fd00:88::2]:80",
                ],
            ),
            (Some("0.0.0.0"), vec!["meta nfproto ipv4 tcp dport 8080 dnat ip to 10.88.0.2:80"]),
            (
                Some("192.0.2.1"),
                vec!["meta nfproto ipv4 ip daddr 192.0.2.1 tcp dport 8080 dnat ip to 10.88.0.2:80"],
            ),
            (
                Some("2001:db8::1"),
                vec!["meta nfproto ipv6 ip6 daddr 2001:db8::1 tcp dport 8080 dnat ip6 to [fd00:88::2]:80"],
            ),
        ] {
            let mut rules = String::new();
            write_mapping(&mut rules, &lease(2), &mapping(host_ip, 8080));
            assert_eq!(rules.lines().map(str::trim).collect::<Vec<_>>(), lines, "{host_ip:?}");
        }
    }

    #[test]
    fn a_port_leads_to_one_pod() {
        let mut ports = Ports::default();
        ports.add(&lease(2), &[mapping(None, 80), mapping(Some("192.0.2.1"), 81)]).unwrap();
        assert!(matches!(ports.add(&lease(3), &[mapping(None, 80)]), Err(PortError::Taken { port: 80, .. })));
        assert!(ports.add(&lease(3), &[mapping(Some("0.0.0.0"), 81)]).is_err());
        ports.add(&lease(3), &[mapping(Some("192.0.2.2"), 81)]).unwrap();
        ports.add(&lease(2), &[mapping(None, 80)]).unwrap(); // the same pod again
        assert_eq!(ports.remove(&lease(2)), Some(vec![mapping(None, 80)]));
        assert_eq!(ports.remove(&lease(2)), None);
        ports.add(&lease(4), &[mapping(None, 80)]).unwrap();
    }
}

//! The bridge: claimed by one daemon, made or adopted, with exactly the configured addresses.

use std::io;
use std::net::IpAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

use crate::attach::address;
use crate::config::NetworkConfig;
use crate::lease::Mac;
use crate::netlink::{Refused, Request, Rtnetlink};

/// Why the bridge cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// Another daemon in this network namespace uses it.
    #[error("bridge {bridge} is in use by another meridiand: give each its own network.bridge and subnets")]
    Claimed {
        /// As configured.
        bridge: String,
    },
    /// The name is taken by another kind of link.
    #[error("link {bridge} exists and is no bridge: remove it or configure another network.bridge")]
    NotABridge {
        /// As configured.
        bridge: String,
    },
    /// Pods would hide, or be hidden by, what is there already.
    #[error(
        "subnet {subnet} is in use: link {link} has address {address}/{prefix}; configure another network.{key}"
    )]
    Overlap {
        /// As configured.
        subnet: String,
        /// The configuration's key.
        key: &'static str,
        /// Index of the link.
        link: u32,
        /// Its address.
        address: IpAddr,
        /// Its prefix length.
        prefix: u8,
    },
    /// A step of making or configuring it.
    #[error("bridge {bridge}: {step}")]
    Step {
        /// As configured.
        bridge: String,
        /// What was done.
        step: &'static str,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug)]
pub(crate) struct Bridge {
    index: u32,
    /// An abstract socket address belongs to one network namespace, as the bridge does, and is freed with the process.
    _claim: UnixListener,
}

impl Bridge {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The bridge, and the socket it was configured with.
    pub(crate) fn ensure(config: &NetworkConfig) -> Result<(Self, Rtnetlink), BridgeError> {
        let failed =
            |step| move |source| BridgeError::Step { bridge: config.bridge.to_string(), step, source };
        let refused = |Refused { step, source }| failed(step)(source);
        let claim = claim(config)?;
        let mut host = Rtnetlink::open().map_err(failed("open a netlink socket"))?;
        let found = host.link(config.bridge.as_str()).map_err(failed("look it up"))?;
        let there = host.addresses().map_err(failed("list addresses"))?;
        let known = found.as_ref().map(|link| link.header.index);
        for address in there.iter().filter(|address| Some(address.header.index) != known) {
            check_overlap(config, address)?;
        }
        match found {
            Some(link) if !is_bridge(&link) => {
                return Err(BridgeError::NotABridge { bridge: config.bridge.to_string() });
            }
            Some(_) => {}
            None => host.batch(vec![create(config)]).map_err(refused)?,
        }
        let index = host.link_index(config.bridge.as_str()).map_err(failed("look it up"))?;
        let index = index.ok_or_else(|| failed("look it up")(io::ErrorKind::NotFound.into()))?;
        let stale =
            there.into_iter().filter(|address| address.header.index == index && is_stale(config, address));
        host.batch(configure(config, index, stale)).map_err(refused)?;
        Ok((Self { index, _claim: claim }, host))
    }
}

fn claim(config: &NetworkConfig) -> Result<UnixListener, BridgeError> {
    let bridge = config.bridge.to_string();
    let bound = SocketAddr::from_abstract_name(format!("meridian/bridge/{bridge}"))
        .and_then(|address| UnixListener::bind_addr(&address));
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BridgeError::Claimed { bridge },
        _ => BridgeError::Step { bridge, step: "claim it", source },
    })
}

/// Another link may have a wider subnet, in which the pods' is the more specific route, but not an address in it.
fn check_overlap(config: &NetworkConfig, message: &AddressMessage) -> Result<(), BridgeError> {
    let Some(address) = address_of(message) else { return Ok(()) };
    let (within, subnet, key) = match (address, config.subnet6) {
        (IpAddr::V4(v4), _) => {
            let subnet = config.subnet4;
            let within = subnet.contains(v4) && message.header.prefix_len >= subnet.prefix();
            (within, subnet.to_string(), "subnet4")
        }
        (IpAddr::V6(v6), Some(subnet)) => {
            let within = subnet.contains(v6) && message.header.prefix_len >= subnet.prefix();
            (within, subnet.to_string(), "subnet6")
        }
        (IpAddr::V6(_), None) => return Ok(()),
    };
    if within {
        let (link, prefix) = (message.header.index, message.header.prefix_len);
        return Err(BridgeError::Overlap { subnet, key, link, address, prefix });
    }
    Ok(())
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// An address of an earlier configuration.
fn is_stale(config: &NetworkConfig, message: &AddressMessage) -> bool {
    message.header.scope == AddressScope::Universe
        && !gateways(config).any(|(address, prefix)| {
            address_of(message) == Some(address) && message.header.prefix_len == prefix
        })
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
}

/// The bridge's addresses with their prefix lengths.
pub(crate) fn gateways(config: &NetworkConfig) -> impl Iterator<Item = (IpAddr, u8)> {
    let v6 = config.subnet6.map(|subnet| (IpAddr::V6(subnet.gateway()), subnet.prefix()));
    std::iter::once((IpAddr::V4(config.subnet4.gateway()), config.subnet4.prefix())).chain(v6)
}

fn create(config: &NetworkConfig) -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(config.bridge.to_string()));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    Request {
        message: RouteNetlinkMessage::NewLink(link),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        step: "create it",
    }
}

fn configure(
    config: &NetworkConfig,
    index: u32,
    stale: impl Iterator<Item = AddressMessage>,
) -> Vec<Request> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    // A bridge without a MAC of its own takes its lowest port's, and the pods' neighbour caches go stale.
    link.attributes.push(LinkAttribute::Address(Mac::of(config.subnet4.gateway()).octets().to_vec()));
    link.attributes.push(LinkAttribute::Mtu(config.mtu));
    let up =
        Request { message: RouteNetlinkMessage::SetLink(link), flags: 0, step: "set MAC and MTU, and up" };
    let removed = stale.map(|address| Request {
        message: RouteNetlinkMessage::DelAddress(address),
        flags: 0,
        step: "remove an address of an earlier configuration",
    });
    let added = gateways(config).map(|(gateway, prefix)| Request {
        message: RouteNetlinkMessage::NewAddress(address(index, gateway, prefix)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        step: "add its address",
    });
    std::iter::once(up).chain(removed).chain(added).collect()
}

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
use crate::subnet::{Gateway, Subnets};

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
    name: String,
    index: u32,
    /// An abstract socket address belongs to one network namespace, as the bridge does, and is freed with the process.
    _claim: UnixListener,
}

impl Bridge {
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The bridge, the addresses that it has of earlier subnets, and the socket it was configured with.
    pub(crate) fn ensure(config: &NetworkConfig) -> Result<(Self, Vec<Gateway>, Rtnetlink), BridgeError> {
        let failed =
            |step| move |source| BridgeError::Step { bridge: config.bridge.to_string(), step, source };
        let refused = |Refused { step, source }| failed(step)(source);
        let claim = claim(config)?;
        let mut host = Rtnetlink::open().map_err(failed("open a netlink socket"))?;
        let found = host.link(config.bridge.as_str()).map_err(failed("look it up"))?;
        let there = host.addresses().map_err(failed("list addresses"))?;
        let known = found.as_ref().map(|link| link.header.index);
        check_overlaps(config.subnets(), &there, known)?;
        match &found {
            Some(link) if !is_bridge(link) => {
                return Err(BridgeError::NotABridge { bridge: config.bridge.to_string() });
            }
            Some(_) => {}
            None => host.batch(vec![create(config)]).map_err(refused)?,
        }
        let index = host.link_index(config.bridge.as_str()).map_err(failed("look it up"))?;
        let index = index.ok_or_else(|| failed("look it up")(io::ErrorKind::NotFound.into()))?;
        let of_bridge = there.iter().filter(|address| address.header.index == index);
        let earlier =
            of_bridge.filter_map(gateway_of).filter(|one| !config.subnets().gateways().contains(one));
        let earlier = earlier.collect();
        let requests = std::iter::once(up(config, index, found.as_ref().is_some_and(has_own_mac)));
        host.batch(requests.chain(add(index, config.subnets())).collect()).map_err(refused)?;
        Ok((Self { name: config.bridge.to_string(), index, _claim: claim }, earlier, host))
    }

    /// Gives the bridge its addresses in `subnets`, beside those it has.
    pub(crate) fn renumber(&self, host: &mut Rtnetlink, subnets: Subnets) -> Result<(), BridgeError> {
        let there = host.addresses().map_err(|source| self.failed("list addresses", source))?;
        check_overlaps(subnets, &there, Some(self.index))?;
        host.batch(add(self.index, subnets).collect())
            .map_err(|Refused { step, source }| self.failed(step, source))
    }

    /// Takes these addresses from the bridge.
    pub(crate) fn remove(&self, host: &mut Rtnetlink, gateways: Vec<Gateway>) -> Result<(), BridgeError> {
        if gateways.is_empty() {
            return Ok(());
        }
        let removed = gateways.into_iter().map(|gateway| Request {
            message: RouteNetlinkMessage::DelAddress(address(self.index, gateway.address, gateway.prefix)),
            flags: 0,
            step: "remove an address of an earlier subnet",
        });
        host.batch(removed.collect()).map_err(|Refused { step, source }| self.failed(step, source))
    }

    fn failed(&self, step: &'static str, source: io::Error) -> BridgeError {
        BridgeError::Step { bridge: self.name.clone(), step, source }
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
/// `bridge` is the index of ours.
fn check_overlaps(
    subnets: Subnets,
    there: &[AddressMessage],
    bridge: Option<u32>,
) -> Result<(), BridgeError> {
    for message in there.iter().filter(|message| Some(message.header.index) != bridge) {
        let Some(address) = address_of(message) else { continue };
        let (link, prefix) = (message.header.index, message.header.prefix_len);
        let own = subnets.gateways().into_iter().find(|own| own.contains(address) && prefix >= own.prefix);
        let Some(own) = own else { continue };
        let (subnet, key) = match subnets.v6 {
            Some(v6) if own.address.is_ipv6() => (v6.to_string(), "subnet6"),
            _ => (subnets.v4.to_string(), "subnet4"),
        };
        return Err(BridgeError::Overlap { subnet, key, link, address, prefix });
    }
    Ok(())
}

pub(crate) fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// Every address but those that the kernel gives a link by itself.
fn gateway_of(message: &AddressMessage) -> Option<Gateway> {
    let address = address_of(message).filter(|_| message.header.scope == AddressScope::Universe)?;
    Some(Gateway { address, prefix: message.header.prefix_len })
}

/// Pods know it by their neighbour tables: a new one would cut them off for some seconds.
fn has_own_mac(link: &LinkMessage) -> bool {
    let ours = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(mac) if mac.starts_with(&Mac::PREFIX));
    link.attributes.iter().any(ours)
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
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

fn up(config: &NetworkConfig, index: u32, keep_mac: bool) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    // A bridge without a MAC of its own takes its lowest port's, and the pods' neighbour caches go stale.
    if !keep_mac {
        link.attributes.push(LinkAttribute::Address(Mac::of(config.subnet4.gateway()).octets().to_vec()));
    }
    link.attributes.push(LinkAttribute::Mtu(config.mtu));
    Request { message: RouteNetlinkMessage::SetLink(link), flags: 0, step: "set MAC and MTU, and up" }
}

fn add(index: u32, subnets: Subnets) -> impl Iterator<Item = Request> {
    subnets.gateways().into_iter().map(move |gateway| Request {
        message: RouteNetlinkMessage::NewAddress(address(index, gateway.address, gateway.prefix)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        step: "add its address",
    })
}

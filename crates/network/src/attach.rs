//! Connects one namespace: a veth pair in one message, then everything inside in one datagram.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::config::NetworkConfig;
use crate::lease::{Lease, Mac};
use crate::netlink::{Refused, Request, Rtnetlink};
use crate::subnet::Gateway;

/// Name of every pod's interface.
pub const INTERFACE: &str = "eth0";

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

/// Why a pod could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The pair was refused: a name is taken, or the namespace is none.
    #[error("create veth {host_veth} with peer {INTERFACE} in the pod's network namespace")]
    Veth {
        /// Its end on the node.
        host_veth: String,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The pod's namespace cannot be entered.
    #[error("open a netlink socket in the network namespace of the pod with address {address}")]
    Enter {
        /// Of the lease.
        address: Ipv4Addr,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The interface that every namespace is born with.
    #[error("set lo up in the pod's network namespace")]
    Loopback(#[source] io::Error),
    /// A step inside.
    #[error("configure {INTERFACE} of the pod with address {address}: {step}")]
    Inside {
        /// Of the lease.
        address: Ipv4Addr,
        /// What was done.
        step: &'static str,
        /// From the kernel.
        #[source]
        source: io::Error,
    },
}

/// How a pod is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Inside the pod.
    pub interface: &'static str,
    /// Of the pod, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Of the bridge, one for each address.
    pub gateways: Vec<IpAddr>,
    /// Of the pod's interface.
    pub mac: Mac,
    /// The pair's end on the node.
    pub host_veth: String,
    /// In bytes.
    pub mtu: u32,
}

impl Attachment {
    pub(crate) fn new(config: &NetworkConfig, gateways: &[Gateway], lease: &Lease) -> Self {
        let addresses = lease.addresses();
        let gateways = gateways.iter().map(|gateway| gateway.address).collect();
        let (mac, host_veth) = (lease.mac(), lease.host_veth());
        Self { interface: INTERFACE, addresses, gateways, mac, host_veth, mtu: config.mtu }
    }
}

/// Makes the pair with the peer born in the pod's namespace, and the node's end up and in the bridge. The peer cannot
/// be born up: the kernel answers ENOTCONN.
pub(crate) fn veth(
    host: &mut Rtnetlink,
    config: &NetworkConfig,
    bridge: u32,
    lease: &Lease,
    netns: BorrowedFd<'_>,
) -> Result<(), AttachError> {
    let host_veth = lease.host_veth();
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(INTERFACE.to_owned()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::Address(lease.mac().octets().to_vec()),
        LinkAttribute::Mtu(config.mtu),
    ];
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes = vec![
        LinkAttribute::IfName(host_veth.clone()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::Mtu(config.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    host.batch(vec![Request { message: RouteNetlinkMessage::NewLink(link), flags, step: "" }])
        .map_err(|Refused { source, .. }| AttachError::Veth { host_veth, source })
}

/// Configures lo and eth0 from within.
pub(crate) fn inside(gateways: &[Gateway], lease: &Lease, netns: BorrowedFd<'_>) -> Result<(), AttachError> {
    let address = lease.v4;
    let failed = |step| move |source| AttachError::Inside { address, step, source };
    let mut pod = Rtnetlink::open_in(netns).map_err(|source| AttachError::Enter { address, source })?;
    let found = pod.link_index(INTERFACE).map_err(failed("look it up"))?;
    let eth0 = found.ok_or_else(|| failed("look it up")(io::ErrorKind::NotFound.into()))?;
    pod.batch(requests(gateways, lease, eth0)).map_err(|Refused { step, source }| failed(step)(source))
}

/// Brings lo up within; a plugin's pod needs it as ours do.
pub(crate) fn loopback(netns: BorrowedFd<'_>) -> Result<(), AttachError> {
    let mut pod = Rtnetlink::open_in(netns).map_err(AttachError::Loopback)?;
    let message = RouteNetlinkMessage::SetLink(up(LOOPBACK));
    let done = pod.batch(vec![Request { message, flags: 0, step: "" }]);
    done.map_err(|Refused { source, .. }| AttachError::Loopback(source))
}

fn requests(gateways: &[Gateway], lease: &Lease, eth0: u32) -> Vec<Request> {
    let create = NLM_F_CREATE | NLM_F_EXCL;
    let mut requests = vec![
        Request { message: RouteNetlinkMessage::SetLink(up(LOOPBACK)), flags: 0, step: "set lo up" },
        Request { message: RouteNetlinkMessage::SetLink(up(eth0)), flags: 0, step: "set it up" },
    ];
    for (own, gateway) in lease.addresses().into_iter().zip(gateways) {
        let message = RouteNetlinkMessage::NewAddress(address(eth0, own, gateway.prefix));
        requests.push(Request { message, flags: create, step: "add its address" });
        let message = RouteNetlinkMessage::NewRoute(default_route(eth0, gateway.address));
        requests.push(Request { message, flags: create, step: "add its default route" });
    }
    requests
}

fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

/// An address of a link. IPv6 addresses are unique by construction, so that duplicate detection would only hold
/// back a second's traffic.
pub(crate) fn address(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.family = family(address);
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    match address {
        IpAddr::V4(v4) => {
            let broadcast = Ipv4Addr::from_bits(v4.to_bits() | (u32::MAX >> prefix));
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
        IpAddr::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message
}

fn default_route(index: u32, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

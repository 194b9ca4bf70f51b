//! The embedded pod network: a bridge per node, a veth pair and two addresses per pod. No plugin, no process.
//!
//! ```text
//!   pod's network namespace              the node's network namespace
//!  ┌───────────────────────┐
//!  │ lo   eth0 10.88.0.2   │── veth0a580002 ─┐
//!  │           fd00:88::2  │                 │   meridian0 10.88.0.1 ── forwarding, masquerade ── uplink
//!  └───────────────────────┘                 ├──           fd00:88::1
//!  ┌───────────────────────┐                 │
//!  │ lo   eth0 10.88.0.3   │── veth0a580003 ─┘
//!  └───────────────────────┘
//! ```
//!
//! [`Network::start`] makes or adopts the bridge, the sysctls and one nftables table. A pod takes three calls:
//! [`Network::allocate`] hands out a [`Lease`], [`Network::attach`] builds the pair and configures the inside, and
//! [`Network::release`] gives the addresses back. Who keeps a lease across a daemon restart says so with
//! [`Network::adopt`]; this crate stores nothing but records of [`cni`]. [`Network::renumber`] changes the subnets under way;
//! the bridge's own addresses remember the earlier ones.
//!
//! Everything of a pod follows from its IPv4 address: its IPv6 address (same offset in the subnet), its MAC and the
//! name of its veth on the node. The kernel's link table is therefore the record of which addresses are still in
//! use: a veth lives exactly as long as the namespace its peer is in, so an address whose veth exists is never
//! handed out, whoever released it and however the daemon died. Nobody deletes a veth: RTM_DELLINK waits 26 ms for
//! RCU under the lock that all links share, while dropping the namespace lets the kernel destroy many at once.
//!
//! Host ports of pods ([`Network::map_ports`]) are rules of a second table, which is there only while a pod has some.
//!
//! All calls block, for a millisecond at most but for an exhausted subnet (see [`Network::allocate`]) and those that
//! start nft: the start, and host ports.
//!
//! Nodes whose pods are connected by others' plugins use [`cni`] instead.
//!
//! This crate must not: start a process per pod that is on the bridge, enter a namespace with a thread that lives on, write outside the
//! network namespace it was started in and those it is given, touch tables or links of others.

mod attach;
mod bridge;
pub mod cni;
mod config;
mod conntrack;
mod forward;
mod host;
mod lease;
mod netlink;
mod nft;
mod ports;
mod subnet;

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netlink_packet_route::link::LinkFlags;

pub use attach::{AttachError, Attachment, INTERFACE};
pub use bridge::BridgeError;
pub use config::NetworkConfig;
pub use forward::ForwardError;
pub use host::host_addresses;
pub use lease::{AdoptError, AllocateError, Lease, Mac};
pub use nft::NftError;
pub use ports::{PortError, PortMapping, Protocol};
pub use subnet::{BridgeName, InvalidBridgeName, InvalidSubnet, Subnet4, Subnet6, Subnets};

use bridge::Bridge;
use lease::Leases;
use netlink::Rtnetlink;
use ports::Ports;
use subnet::Gateway;

/// Why the pod network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configured MTU is no MTU of an Ethernet bridge.
    #[error("mtu {mtu} is out of range: {least} to 65535 with the configured subnets")]
    Mtu {
        /// As configured.
        mtu: u32,
        /// 1280 with IPv6 (RFC 8200 section 5), else 68 (RFC 791).
        least: u32,
    },
    /// A pod of an earlier subnet has the address that the bridge should have.
    #[error("{address} would be the bridge's address and is a pod's: remove that pod first")]
    Gateway {
        /// The first of the new subnet.
        address: Ipv4Addr,
    },
    /// The bridge could not be claimed, made or configured.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// The node could not be made to forward and masquerade.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl StartError {
    /// Whether somebody else on the node has what is wanted.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        matches!(self, Self::Gateway { .. } | Self::Bridge(BridgeError::Overlap { .. }))
    }
}

/// The pod network of this node. Clones share it; the last one to go releases the bridge for another daemon, and
/// leaves bridge, table and pods as they are.
#[derive(Debug, Clone)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: NetworkConfig,
    bridge: Bridge,
    host: Mutex<Rtnetlink>,
    leases: Mutex<Leases>,
    ports: Mutex<Ports>,
}

impl Network {
    /// Makes what is missing of bridge, addresses, sysctls and nftables table, in the network namespace of the
    /// calling thread. May be repeated.
    ///
    /// # Errors
    /// See [`StartError`]; the bridge may have been made already.
    pub fn start(config: &NetworkConfig) -> Result<Self, StartError> {
        check_mtu(config.mtu, config.subnets())?;
        let (bridge, earlier, host) = Bridge::ensure(config)?;
        let leases = Leases::new(config.subnets(), earlier);
        forward::enable(config, &leases.gateways())?;
        Ok(Self(Arc::new(Shared {
            leases: Mutex::new(leases),
            ports: Mutex::default(),
            config: config.clone(),
            bridge,
            host: Mutex::new(host),
        })))
    }

    /// Gives new pods addresses of other subnets from now on. Pods that are there keep theirs, and the bridge keeps its address
    /// in their subnet until the last of them goes. Blocks for some 20 ms, and [`Network::allocate`] with it.
    ///
    /// # Errors
    /// Another link, or a pod, has an address in the way; or a step failed, and a repetition goes on.
    pub fn renumber(&self, subnets: Subnets) -> Result<(), StartError> {
        let mut leases = lock(&self.0.leases);
        if leases.subnets() == subnets {
            return Ok(());
        }
        check_mtu(self.0.config.mtu, subnets)?;
        let gateway = Lease { v4: subnets.v4.gateway(), v6: None };
        let veth = self.host().link_index(&gateway.host_veth());
        if veth.is_ok_and(|found| found.is_some()) {
            return Err(StartError::Gateway { address: gateway.v4 });
        }
        self.0.bridge.renumber(&mut self.host(), subnets)?;
        let gateways: Vec<_> = subnets.gateways().into_iter().chain(leases.gateways()).collect();
        forward::enable(&self.0.config, &gateways)?;
        leases.renumber(subnets);
        self.prune(&mut leases)
    }

    /// Takes away what is only there for earlier subnets that have no pod any more.
    fn prune(&self, leases: &mut Leases) -> Result<(), StartError> {
        let unused = leases.forget_unused();
        if unused.is_empty() {
            return Ok(());
        }
        self.0.bridge.remove(&mut self.host(), unused)?;
        Ok(forward::enable(&self.0.config, &leases.gateways())?)
    }

    /// Reserves the addresses of a new pod: the next in the subnet that neither a lease nor a veth holds, so that an
    /// address rests for as long as the subnet allows.
    ///
    /// When every address is held, and some only by a namespace that the kernel is still destroying (40 ms), waits
    /// up to half a second for one.
    ///
    /// # Errors
    /// [`AllocateError::Exhausted`], or netlink failed.
    pub fn allocate(&self) -> Result<Lease, AllocateError> {
        lease::allocate(&self.0.leases, |name| self.host().link_index(name).map(|index| index.is_some()))
    }

    /// Reserves the addresses of a pod that this daemon's predecessor attached.
    ///
    /// # Errors
    /// The lease is outside the configured subnets, or adopted already. The pod keeps its addresses either way.
    pub fn adopt(&self, lease: &Lease) -> Result<(), AdoptError> {
        lock(&self.0.leases).adopt(lease)
    }

    /// Gives the addresses back. They are not handed out before the pod's namespace is gone; nothing waits for it.
    /// Unknown leases are ignored. The last of an earlier subnet takes that with it, in some 20 ms; what the kernel refuses
    /// then stays until the next [`Network::settle`].
    pub fn release(&self, lease: &Lease) {
        let mut leases = lock(&self.0.leases);
        leases.release(lease);
        let _ = self.prune(&mut leases);
    }

    /// Connects `netns`, a new network namespace, with the bridge: lo up; eth0 with the lease's addresses, up, and
    /// default routes over the bridge.
    ///
    /// # Errors
    /// See [`AttachError`]. What was made goes with the namespace: drop it.
    pub fn attach(&self, lease: &Lease, netns: BorrowedFd<'_>) -> Result<Attachment, AttachError> {
        attach::veth(&mut self.host(), &self.0.config, self.0.bridge.index(), lease, netns)?;
        attach::inside(&lock(&self.0.leases).gateways_of(lease), lease, netns)?;
        Ok(self.attachment(lease))
    }

    /// What [`Network::attach`] answers for this lease.
    #[must_use]
    pub fn attachment(&self, lease: &Lease) -> Attachment {
        Attachment::new(&self.0.config, &lock(&self.0.leases).gateways_of(lease), lease)
    }

    /// Lets ports of the node lead to the pod. Blocks for some 10 ms, as it starts nft.
    ///
    /// # Errors
    /// Another pod has one of the ports, or the rules were refused; nothing is mapped then.
    pub fn map_ports(&self, lease: &Lease, mappings: &[PortMapping]) -> Result<(), PortError> {
        ports::turn_round(&mut self.host(), lease)?;
        let mut ports = lock(&self.0.ports);
        ports.add(lease, mappings)?;
        ports.load(&self.0.config, &self.gateways()).inspect_err(|_| {
            ports.remove(lease);
        })?;
        self.forget_connections(mappings);
        Ok(())
    }

    /// Ends what [`Network::map_ports`] began; blocks as that does. Nothing happens for a pod without host ports.
    ///
    /// # Errors
    /// The rules were refused: the ports go on leading to the address.
    pub fn unmap_ports(&self, lease: &Lease) -> Result<(), ForwardError> {
        let mut ports = lock(&self.0.ports);
        let Some(mappings) = ports.remove(lease) else { return Ok(()) };
        ports.load(&self.0.config, &self.gateways())?;
        self.forget_connections(&mappings);
        Ok(())
    }

    /// Best effort: without conntrack's netlink interface, entries end some time after the last packet
    /// (nf_conntrack_udp_timeout_stream).
    fn forget_connections(&self, mappings: &[PortMapping]) {
        if mappings.iter().any(|mapping| mapping.protocol == Protocol::Udp) {
            let own = self.host().addresses().unwrap_or_default();
            let own: Vec<_> = own.iter().filter_map(bridge::address_of).collect();
            let _ = conntrack::forget(mappings, &own);
        }
    }

    /// Says at recovery which ports lead to a pod; [`Network::settle`] checks the kernel's rules once for all. Until
    /// then, and beyond, connections find the rules of this daemon's predecessor.
    pub fn adopt_ports(&self, lease: &Lease, mappings: &[PortMapping]) {
        // Two records that claim a port are no reason not to serve the other ports: the first has it.
        let mut ports = lock(&self.0.ports);
        let free: Vec<_> = mappings.iter().filter(|one| ports.is_free(lease, one)).copied().collect();
        let _ = ports.add(lease, &free);
    }

    /// After recovery: leaves the bridge only the addresses, and the kernel only the rules, of new and adopted pods. Blocks as
    /// [`Network::map_ports`] does.
    ///
    /// # Errors
    /// Addresses or rules were refused.
    pub fn settle(&self) -> Result<(), StartError> {
        {
            let mut leases = lock(&self.0.leases);
            leases.settle();
            self.prune(&mut leases)?;
        }
        Ok(lock(&self.0.ports).load(&self.0.config, &self.gateways())?)
    }

    fn gateways(&self) -> Vec<Gateway> {
        lock(&self.0.leases).gateways()
    }

    /// Whether the bridge is up; `None`: it is gone.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn is_bridge_up(&self) -> std::io::Result<Option<bool>> {
        let link = self.host().link(self.0.config.bridge.as_str())?;
        Ok(link.map(|link| link.header.flags.contains(LinkFlags::Up)))
    }

    fn host(&self) -> MutexGuard<'_, Rtnetlink> {
        lock(&self.0.host)
    }
}

fn check_mtu(mtu: u32, subnets: Subnets) -> Result<(), StartError> {
    let least = if subnets.v6.is_some() { 1280 } else { 68 };
    if (least..=65535).contains(&mtu) { Ok(()) } else { Err(StartError::Mtu { mtu, least }) }
}

/// Nothing here panics while it holds a lock half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The node's own addresses, which are those of its host-network pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The addresses that the node would use towards other networks, the IPv4 one first; the loopback address for a node
/// that has no route at all.
///
/// Connecting a UDP socket sends nothing; it makes the kernel choose route and source. The destinations are reserved
/// for documentation (RFC 5737, RFC 3849).
#[must_use]
pub fn host_addresses() -> Vec<IpAddr> {
    let v4 = source(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = source(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    let addresses: Vec<_> = v4.into_iter().chain(v6).collect();
    if addresses.is_empty() { vec![Ipv4Addr::LOCALHOST.into()] } else { addresses }
}

fn source(any: IpAddr, towards: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(towards, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

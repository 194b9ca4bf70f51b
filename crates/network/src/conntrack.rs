//! What the kernel remembers of UDP to host ports. A client that goes on sending keeps its entry alive, and its packets go
//! where the first one went: to a pod that is gone, or to nobody although a pod has the port now. So entries are forgotten
//! when a port begins or ceases to lead somewhere. See linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::ports::{PortMapping, Protocol};

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Subsystem conntrack in the upper byte.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_DST: u16 = 2;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;
const FILTER_ORIG_FLAGS: u16 = 1;
/// Compare protocol and destination port of the first packet.
const BY_PORT: u32 = (1 << 3) | (1 << 5);

const UDP: u8 = 17;
const FAMILIES: [u8; 2] = [2, 10];
/// The kernel fills a datagram of a dump up to this size.
const DATAGRAM: usize = 32 * 1024;

/// Forgets the entries of packets that were sent to these ports of the node, whose addresses are `own`.
pub(crate) fn forget(mappings: &[PortMapping], own: &[IpAddr]) -> io::Result<()> {
    let udp = mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp);
    let mut conntrack: Option<Conntrack> = None;
    for mapping in udp {
        let conntrack = match &mut conntrack {
            Some(open) => open,
            none => none.insert(Conntrack { socket: Socket::new(NETLINK_NETFILTER)?, sequence: 0 }),
        };
        let only = mapping.host_ip.filter(|ip| !ip.is_unspecified());
        let is_meant =
            |to: IpAddr| only.map_or_else(|| to.is_loopback() || own.contains(&to), |only| only == to);
        for family in FAMILIES {
            for entry in
                conntrack.entries(family, mapping.host_port)?.iter().filter(|entry| is_meant(entry.to))
            {
                conntrack.delete(family, entry)?;
            }
        }
    }
    Ok(())
}

/// A connection as the kernel knows it.
#[derive(Debug)]
struct Entry {
    /// Where its first packet was sent.
    to: IpAddr,
    /// The attributes that name it.
    name: Vec<u8>,
}

struct Conntrack {
    socket: Socket,
    sequence: u32,
}

impl Conntrack {
    /// Those of UDP to a port.
    fn entries(&mut self, family: u8, port: u16) -> io::Result<Vec<Entry>> {
        let proto = [attribute(PROTO_NUM, &[UDP]), attribute(PROTO_DST_PORT, &port.to_be_bytes())].concat();
        let filter = attribute(FILTER | NESTED, &attribute(FILTER_ORIG_FLAGS, &BY_PORT.to_ne_bytes()));
        let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(TUPLE_PROTO | NESTED, &proto));
        self.send(GET, DUMP, family, &[filter, tuple].concat())?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                match message.kind {
                    ERROR => return Err(message.error()),
                    DONE => return Ok(found),
                    _ => found.extend(entry(message.attributes(), port)),
                }
            }
        }
    }

    fn delete(&mut self, family: u8, entry: &Entry) -> io::Result<()> {
        self.send(DELETE, ACK, family, &entry.name)?;
        match self.receive()?.first().filter(|message| message.kind == ERROR).map(Message::error) {
            // It ended by itself.
            Some(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Some(error) if error.raw_os_error() != Some(0) => Err(error),
            _ => Ok(()),
        }
    }

    fn send(&mut self, kind: u16, flags: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(20 + attributes.len()).map_err(io::Error::other)?;
        let mut datagram = length.to_ne_bytes().to_vec();
        datagram.extend(kind.to_ne_bytes());
        datagram.extend((REQUEST | flags).to_ne_bytes());
        datagram.extend(self.sequence.to_ne_bytes());
        // The sender's port; then family, version and resource.
        datagram.extend([0, 0, 0, 0, family, 0, 0, 0]);
        datagram.extend(attributes);
        self.socket.send(&datagram, 0).map(drop)
    }

    /// The messages of the next datagram that answer the latest request.
    fn receive(&self) -> io::Result<Vec<Message>> {
        loop {
            let mut datagram = Vec::with_capacity(DATAGRAM);
            self.socket.recv(&mut datagram, 0)?;
            let messages = messages(&datagram, self.sequence);
            if !messages.is_empty() {
                return Ok(messages);
            }
        }
    }
}

struct Message {
    kind: u16,
    payload: Vec<u8>,
}

impl Message {
    /// Of a message of kind ERROR; number 0 is an acknowledgement.
    fn error(&self) -> io::Error {
        let number = self.payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
        io::Error::from_raw_os_error(number.saturating_neg())
    }

    /// Behind family, version and resource.
    fn attributes(&self) -> Attributes<'_> {
        Attributes(self.payload.get(4..).unwrap_or_default())
    }
}

fn messages(mut datagram: &[u8], sequence: u32) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(header) = datagram.first_chunk::<16>() {
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let Some(payload) = datagram.get(16..length) else { break };
        if u32::from_ne_bytes([s0, s1, s2, s3]) == sequence {
            messages.push(Message { kind: u16::from_ne_bytes([k0, k1]), payload: payload.to_vec() });
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Kind and value of each.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !NESTED, value))
    }
}

/// The entry that these attributes describe, if it is one of UDP to `port`: not every kernel filters.
fn entry(attributes: Attributes<'_>, port: u16) -> Option<Entry> {
    let (mut name, mut to) = (Vec::new(), None);
    for (kind, value) in attributes {
        match kind {
            TUPLE_ORIG => {
                to = destination(value, port);
                name.extend(attribute(TUPLE_ORIG | NESTED, value));
            }
            ID | ZONE => name.extend(attribute(kind, value)),
            _ => {}
        }
    }
    Some(Entry { to: to?, name })
}

fn destination(tuple: &[u8], port: u16) -> Option<IpAddr> {
    let part = |kind| Attributes(tuple).find(|(found, _)| *found == kind).map(|(_, value)| value);
    let proto =
        |kind| Attributes(part(TUPLE_PROTO)?).find(|(found, _)| *found == kind).map(|(_, value)| value);
    if proto(PROTO_NUM)? != [UDP] || proto(PROTO_DST_PORT)? != port.to_be_bytes() {
        return None;
    }
    Attributes(part(TUPLE_IP)?).find_map(|(kind, value)| match kind {
        IP_V4_DST => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        IP_V6_DST => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(proto: u8, to: [u8; 4], port: u16) -> Vec<u8> {
        let ip = attribute(
            TUPLE_IP | NESTED,
            &[attribute(1, &[192, 0, 2, 1]), attribute(IP_V4_DST, &to)].concat(),
        );
        let proto = [attribute(PROTO_NUM, &[proto]), attribute(PROTO_DST_PORT, &port.to_be_bytes())].concat();
        attribute(TUPLE_ORIG | NESTED, &[ip, attribute(TUPLE_PROTO | NESTED, &proto)].concat())
    }

    #[test]
    fn only_udp_to_the_port_is_meant() {
        let id = attribute(ID, &[1, 2, 3, 4]);
        let of =
            |proto, port| entry(Attributes(&[tuple(proto, [10, 0, 0, 1], port), id.clone()].concat()), 53);
        let found = of(UDP, 53).unwrap();
        assert_eq!(found.to, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(found.name, [tuple(UDP, [10, 0, 0, 1], 53), id.clone()].concat());
        assert!(of(UDP, 54).is_none() && of(6, 53).is_none());
    }

    #[test]
    fn truncated_answers_end_where_they_do() {
        let whole = tuple(UDP, [10, 0, 0, 1], 53);
        for length in 0..whole.len() {
            assert!(entry(Attributes(&whole[..length]), 53).is_none(), "{length}");
        }
        assert!(messages(&[255; 15], 1).is_empty() && messages(&[255; 64], u32::MAX).is_empty());
    }
}

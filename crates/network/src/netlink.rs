//! A blocking rtnetlink socket: requests in batches of one datagram, answers in order. See rtnetlink(7).

use std::io;
use std::os::fd::BorrowedFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// The kernel fills a datagram of a dump up to this size.
const DATAGRAM: usize = 32 * 1024;

/// One message to the kernel, with flags beyond NLM_F_REQUEST and NLM_F_ACK, and what to say when it is refused.
pub(crate) struct Request {
    pub(crate) message: RouteNetlinkMessage,
    pub(crate) flags: u16,
    pub(crate) step: &'static str,
}

/// A request that the kernel refused.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

#[derive(Debug)]
pub(crate) struct Rtnetlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnetlink {
    /// A socket in the network namespace of the calling thread. It stays there, whichever thread uses it.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// A socket in `netns`, opened by a thread that joins the namespace and ends.
    pub(crate) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        sys::netns::run(netns, Self::open)?
    }

    /// Sends all requests at once. The kernel executes each, also behind one it refuses; the first refusal is the
    /// answer.
    pub(crate) fn batch(&mut self, requests: Vec<Request>) -> Result<(), Refused> {
        let first = self.sequence.wrapping_add(1);
        let steps: Vec<_> = requests.iter().map(|request| request.step).collect();
        let step = steps.first().copied().unwrap_or_default();
        let mut datagram = Vec::new();
        for request in requests {
            self.append(&mut datagram, request.message, request.flags | NLM_F_ACK);
        }
        self.socket.send(&datagram, 0).map_err(|source| Refused { step, source })?;
        let mut refused = None;
        let mut waiting = steps.len();
        while waiting > 0 {
            for answer in self.receive().map_err(|source| Refused { step, source })? {
                let NetlinkPayload::Error(error) = answer.payload else { continue };
                let index = answer.header.sequence_number.wrapping_sub(first) as usize;
                let Some(&step) = steps.get(index) else { continue };
                waiting -= 1;
                if error.code.is_some() && refused.is_none() {
                    refused = Some(Refused { step, source: error.to_io() });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// The link of this name, if there is one.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<LinkMessage>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let mut datagram = Vec::new();
        self.append(&mut datagram, RouteNetlinkMessage::GetLink(message), 0);
        self.socket.send(&datagram, 0)?;
        loop {
            for answer in self.receive()? {
                match answer.payload {
                    _ if answer.header.sequence_number != self.sequence => {}
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                        return Ok(Some(link));
                    }
                    NetlinkPayload::Error(error) => match error.to_io() {
                        error if error.raw_os_error() == Some(sys::Errno::NODEV.raw_os_error()) => {
                            return Ok(None);
                        }
                        error => return Err(error),
                    },
                    _ => {}
                }
            }
        }
    }

    /// The index of the link of this name, if there is one.
    pub(crate) fn link_index(&mut self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.link(name)?.map(|link| link.header.index))
    }

    /// All addresses of all links.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let mut datagram = Vec::new();
        self.append(&mut datagram, RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP);
        self.socket.send(&datagram, 0)?;
        let mut addresses = Vec::new();
        loop {
            for answer in self.receive()? {
                match answer.payload {
                    _ if answer.header.sequence_number != self.sequence => {}
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                        addresses.push(address)
                    }
                    NetlinkPayload::Done(_) => return Ok(addresses),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        // Route messages and attributes are padded to 4 bytes, as the next header must be: netlink(7), NLMSG_ALIGN.
        let start = datagram.len();
        datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut datagram[start..]);
    }

    /// The messages of the next datagram.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut messages = Vec::new();
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
            rest = &rest[length..];
            messages.push(message);
        }
        Ok(messages)
    }
}

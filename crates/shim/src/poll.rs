//! The one epoll set, and what each entry in it is for.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{self, PollFd, PollFlags, Timespec, epoll},
    io::Errno,
};

/// What became ready. Numbers are never used twice, so that an event for something already gone finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// A daemon wants to connect.
    Listener,
    /// The connection has a frame, room for one, or ended.
    Daemon,
    /// A child ended.
    Children,
    /// The pod's cgroup.events changed.
    Cgroup,
    /// A container wrote something.
    Output(u32),
    /// A helper child reports.
    Helper(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number): (u64, u32) = match self {
            Self::Listener => (0, 0),
            Self::Daemon => (1, 0),
            Self::Children => (2, 0),
            Self::Cgroup => (3, 0),
            Self::Output(number) => (4, number),
            Self::Helper(number) => (5, number),
        };
        kind << 32 | u64::from(number)
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low half is the number")]
    fn decode(data: u64) -> Self {
        let number = data as u32;
        match data >> 32 {
            0 => Self::Listener,
            1 => Self::Daemon,
            2 => Self::Children,
            3 => Self::Cgroup,
            4 => Self::Output(number),
            _ => Self::Helper(number),
        }
    }
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub enum Interest {
    Read,
    /// Read, and room to write.
    ReadWrite,
    /// A change of a kernfs file such as cgroup.events.
    Change,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Read => epoll::EventFlags::IN,
            Self::ReadWrite => epoll::EventFlags::IN | epoll::EventFlags::OUT,
            Self::Change => epoll::EventFlags::PRI,
        }
    }
}

/// Events taken in one round.
const ROUND: usize = 16;

#[derive(Debug)]
pub struct Poll(OwnedFd);

impl Poll {
    pub fn new() -> Result<Self, Errno> {
        epoll::create(epoll::CreateFlags::CLOEXEC).map(Self)
    }

    pub fn add(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::add(&self.0, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    pub fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> Result<(), Errno> {
        epoll::modify(&self.0, fd, epoll::EventData::new_u64(token.encode()), interest.flags())
    }

    /// Must come before the descriptor is closed: a helper child may hold a copy, and with it the entry would live on.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits until something is ready or `timeout` has passed (none: for ever). To the nanosecond, which
    /// epoll_wait(2) with its milliseconds is not: a release that is late makes a pod's clocks jump.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Ready, Errno> {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Some(timeout) = timeout {
            let timeout = Timespec::try_from(timeout).ok();
            match event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [nothing; ROUND];
        let count = match epoll::wait(&self.0, &mut events, timeout.map(|_| NOW).as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        Ok(Ready { events, count })
    }
}

/// The events of one round.
pub struct Ready {
    events: [epoll::Event; ROUND],
    count: usize,
}

impl Ready {
    pub fn iter(&self) -> impl Iterator<Item = Token> {
        self.events[..self.count].iter().map(|event| Token::decode(event.data.u64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Listener,
            Token::Daemon,
            Token::Children,
            Token::Cgroup,
            Token::Output(u32::MAX),
            Token::Helper(7),
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}

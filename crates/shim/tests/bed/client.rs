//! The daemon's end of the socket.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use api::shim::v1::{self as proto, event::What, frame::Body, request::Call, response};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec};
use sys::seqpacket::SeqPacket;

pub struct Client {
    socket: SeqPacket,
    last_id: u64,
    events: VecDeque<What>,
    responses: VecDeque<(u64, response::Result, Vec<OwnedFd>)>,
    /// From request to answer, the last time.
    pub took: Duration,
}

/// A response and the descriptors beside it.
pub type Answer = Result<(response::Result, Vec<OwnedFd>), proto::Error>;

const PATIENCE: Duration = Duration::from_secs(10);

impl Client {
    pub fn connect(path: &Path) -> Self {
        let socket = SeqPacket::connect(path).unwrap();
        Self { socket, last_id: 0, events: VecDeque::new(), responses: VecDeque::new(), took: Duration::ZERO }
    }

    /// Asks without waiting.
    pub fn ask(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> u64 {
        self.last_id += 1;
        let body = Body::Request(proto::Request { call: Some(call) });
        let frame = proto::Frame { id: self.last_id, body: Some(body) };
        self.socket.send(&frame.encode_to_vec(), fds).unwrap();
        self.last_id
    }

    /// Asks, if the shim is still there.
    pub fn try_ask(&mut self, call: Call) -> bool {
        let body = Some(Body::Request(proto::Request { call: Some(call) }));
        self.socket.send(&proto::Frame { id: 0, body }.encode_to_vec(), &[]).is_ok()
    }

    pub fn answer(&mut self, id: u64) -> Answer {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(index) = self.responses.iter().position(|(of, ..)| *of == id) {
                let (_, result, fds) = self.responses.remove(index).unwrap();
                return match result {
                    response::Result::Error(error) => Err(error),
                    result => Ok((result, fds)),
                };
            }
            assert!(self.receive(end), "no answer to request {id}");
        }
    }

    pub fn call(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> Answer {
        let begun = Instant::now();
        let id = self.ask(call, fds);
        let answer = self.answer(id);
        self.took = begun.elapsed();
        answer
    }

    /// A request that answers nothing but success.
    pub fn done(&mut self, call: Call) {
        let answer = self.call(call, &[]);
        assert!(matches!(answer, Ok((response::Result::Done(_), _))), "{answer:?}");
    }

    /// The next event that `wanted` takes; others are kept.
    pub fn event<T>(&mut self, mut wanted: impl FnMut(&What) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = self.events.iter().enumerate().find_map(|(index, what)| Some((index, wanted(what)?)));
            if let Some((index, found)) = found {
                self.events.remove(index);
                return found;
            }
            assert!(self.receive(end), "the event did not come");
        }
    }

    /// The end of a container.
    pub fn exit(&mut self, id: &str) -> proto::Exit {
        self.event(|what| match what {
            What::Exit(exit) if exit.id == id => Some(exit.clone()),
            _ => None,
        })
    }

    pub fn exec_exit(&mut self, exec_id: &str) -> proto::ExecExit {
        self.event(|what| match what {
            What::ExecExit(exit) if exit.exec_id == exec_id => Some(exit.clone()),
            _ => None,
        })
    }

    pub fn state(&mut self) -> proto::StateResponse {
        match self.call(Call::State(proto::StateRequest {}), &[]) {
            Ok((response::Result::State(state), _)) => state,
            other => panic!("{other:?}"),
        }
    }

    pub fn state_of(&mut self, id: &str) -> proto::ContainerState {
        self.state().containers.into_iter().find(|container| container.id == id).expect("the container")
    }

    /// A frame with a request that asks nothing.
    pub fn call_empty(&mut self) -> Answer {
        self.last_id += 1;
        let body = Some(Body::Request(proto::Request { call: None }));
        self.send_bytes(&proto::Frame { id: self.last_id, body }.encode_to_vec());
        self.answer(self.last_id)
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.send(bytes, &[]).unwrap();
    }

    /// The daemon dies.
    pub fn close(&mut self) {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
    }

    /// The shim closed the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.socket.recv(), Ok(None) | Err(_))
    }

    /// Takes one frame; false when none came until `end`.
    fn receive(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&timeout)).unwrap() == 0 {
            return false;
        }
        let frame = self.socket.recv().unwrap().expect("the shim closed the connection");
        let proto::Frame { id, body } = proto::Frame::decode(frame.bytes.as_slice()).unwrap();
        match body.unwrap() {
            Body::Response(response) => self.responses.push_back((id, response.result.unwrap(), frame.fds)),
            Body::Event(event) => self.events.push_back(event.what.unwrap()),
            Body::Request(_) => panic!("the shim asks nothing"),
        }
        true
    }
}

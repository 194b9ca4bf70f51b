//! Helper children: long work beside the loop, so that logs and exits never wait for it.
//!
//! ```text
//! shim ── fork ──► helper                                  a dump or a restore:
//!      ◄── answer ──┘ ends                 shim ◄── at the gate ── helper (CRIU is up and waits)
//!                                               ── go, or stop ──►
//! ```
//!
//! A helper is a fork of the shim. It does one job with the pod as it was at that moment, sends its answer over its
//! own socket, and ends; a helper that ends without a word is an error of its request. It is never killed: CRIU that
//! dies inside a task takes the task with it. Its deadline is its own.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use api::shim::v1::{Response, response};
use executor::Sandbox;
use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::setpriority_process,
};
use sys::{
    clone::{self, Child},
    process,
    seqpacket::SeqPacket,
};

use crate::{
    error::RequestError,
    pod::{Answer, Asker, Pod},
    poll::{Interest, Token},
};

/// What a helper works at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Dump,
    Diff,
    Restore,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Diff => "diff",
            Self::Restore => "restore",
        }
    }
}

/// How far a helper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Working,
    /// A dump that waits for the pod to be frozen, a restore that waits for its clocks.
    AtGate,
}

/// A helper, from the shim's side.
pub struct Helper {
    number: u32,
    _child: Child,
    socket: SeqPacket,
    asker: Asker,
    work: Work,
    /// The container.
    id: String,
    stage: Stage,
    /// It has been told to go on, or never waits.
    past_gate: bool,
}

/// First byte of a helper's frames.
const AT_GATE: u8 = 1;
const ANSWER: u8 = 2;
/// Frames to a helper.
const GO: &[u8] = &[1];
const STOP: &[u8] = &[0];

/// Nice value of a helper and of its CRIU, for a busy node: the highest there is.
const URGENT: i32 = -20;

impl Helper {
    fn waits(&self, work: Work) -> bool {
        self.work == work && self.stage == Stage::AtGate && !self.past_gate
    }

    /// One that is gone has ended without an answer, which is heard.
    fn pass(&mut self, word: &[u8], fds: &[BorrowedFd<'_>]) {
        self.past_gate = true;
        let _ = self.socket.send(word, fds);
    }
}

/// A helper, from its own side.
pub struct Worker {
    socket: SeqPacket,
}

impl Worker {
    /// Reports that all is ready and waits until the pod is frozen; false: it will not be.
    pub fn cut(&self, until: Instant) -> bool {
        self.pass_gate(until).is_some()
    }

    /// Reports that all is ready and waits for the pod's time namespace; none: there will not be one.
    pub fn time_namespace(&self, until: Instant) -> Option<OwnedFd> {
        self.pass_gate(until)?.into_iter().next()
    }

    fn pass_gate(&self, until: Instant) -> Option<Vec<OwnedFd>> {
        self.socket.send(&[AT_GATE], &[]).ok()?;
        let left = until.saturating_duration_since(Instant::now());
        let frame = if has_word(&self.socket, left) { self.socket.recv().ok()?? } else { return None };
        (frame.bytes == GO).then_some(frame.fds)
    }

    fn answer(&self, answer: Answer) -> bool {
        let mut bytes = vec![ANSWER];
        let encoded = Response { result: Some(answer.result) }.encode(&mut bytes);
        let fds: Vec<BorrowedFd<'_>> = answer.fds.iter().map(AsFd::as_fd).collect();
        encoded.is_ok() && self.socket.send(&bytes, &fds).is_ok()
    }
}

impl Pod {
    /// Starts a helper; its answer goes to `asker`.
    pub fn start_helper(
        &mut self,
        asker: Asker,
        work: Work,
        id: &str,
        job: impl FnOnce(&mut Self, &Worker) -> Result<Answer, RequestError>,
    ) -> Result<(), RequestError> {
        let failed = || RequestError::system("start a helper for", work.name());
        let (outside, inside) = SeqPacket::pair().map_err(failed())?;
        let (mut outside, worker) = (Some(outside), Worker { socket: inside });
        let child = clone::fork(&clone::Options::default(), || {
            drop(outside.take());
            self.close_in_helper();
            // The pod stands still for it. CRIU gives every task its own back. EPERM: then as good as it gets.
            let _ = setpriority_process(None, URGENT);
            let answer =
                job(self, &worker).unwrap_or_else(|error| response::Result::Error(error.into()).into());
            u8::from(!worker.answer(answer))
        })
        .map_err(failed())?;
        let Some(socket) = outside else { process::exit_now(1) };
        let number = self.new_number();
        socket.set_nonblocking(true).map_err(failed())?;
        self.poll.add(&socket, Token::Helper(number), Interest::Read).map_err(failed())?;
        let past_gate = work == Work::Diff;
        let id = id.to_owned();
        self.helpers.push(Helper {
            number,
            _child: child,
            socket,
            asker,
            work,
            id,
            stage: Stage::Working,
            past_gate,
        });
        Ok(())
    }

    /// Takes the word of a helper, or its end.
    pub fn hear_helper(&mut self, number: u32) {
        let Some(index) = self.helpers.iter().position(|helper| helper.number == number) else { return };
        let frame = match self.helpers[index].socket.recv() {
            Ok(Some(frame)) => frame,
            // Heard already, in the same round.
            Err(Errno::AGAIN) => return,
            Ok(None) | Err(_) => return self.finish_helper(index, None),
        };
        match frame.bytes.split_first() {
            Some((&AT_GATE, _)) => {
                self.helpers[index].stage = Stage::AtGate;
                self.advance_freeze();
                self.advance_restores();
            }
            Some((_, response)) => {
                let result = Response::decode(response).ok().and_then(|response| response.result);
                self.finish_helper(index, result.map(|result| Answer { result, fds: frame.fds }));
            }
            None => self.finish_helper(index, None),
        }
    }

    fn finish_helper(&mut self, index: usize, answer: Option<Answer>) {
        let helper = self.helpers.swap_remove(index);
        self.poll.remove(&helper.socket);
        let died = || RequestError::HelperDied { work: helper.work.name(), id: helper.id.clone() };
        let mut answer = answer.unwrap_or_else(|| response::Result::Error(died().into()).into());
        match (helper.work, &answer.result) {
            (Work::Restore, _) => self.restored(&helper.id, &mut answer),
            // Thawed in the middle: what was dumped is no cut.
            (Work::Dump, response::Result::Dump(_)) if !self.freezer.holds(&helper.id) => {
                answer = response::Result::Error(RequestError::NotFrozen.into()).into();
            }
            _ => {}
        }
        if helper.work == Work::Dump {
            self.thaw_after_dump(&helper.id);
        }
        self.answer(helper.asker, answer);
        self.advance_freeze();
        self.advance_restores();
    }

    /// Before children are buried: a restored process is known by what its helper said last.
    pub fn hear_helpers(&mut self) {
        let speaks = |helper: &&Helper| has_word(&helper.socket, Duration::ZERO);
        let numbers: Vec<u32> = self.helpers.iter().filter(speaks).map(|helper| helper.number).collect();
        for number in numbers {
            self.hear_helper(number);
        }
    }

    /// Whether a dump of one of these containers is not ready for the cut yet.
    pub fn dumps_start(&self, ids: &[String]) -> bool {
        self.helpers
            .iter()
            .filter(|helper| helper.work == Work::Dump && ids.contains(&helper.id))
            .any(|helper| !helper.past_gate && helper.stage == Stage::Working)
    }

    /// Lets the waiting dumps of these containers go on, or, where `ids` is none, stops all that wait.
    pub fn release_dumps(&mut self, ids: Option<&[String]>) {
        for helper in self.helpers.iter_mut().filter(|helper| helper.waits(Work::Dump)) {
            if ids.is_none_or(|ids| ids.contains(&helper.id)) {
                helper.pass(if ids.is_some() { GO } else { STOP }, &[]);
            }
        }
    }

    pub fn await_restores(&mut self, asker: Asker) -> Option<Answer> {
        self.awaits_restores = Some(asker);
        self.advance_restores();
        None
    }

    /// A restore has come to where it needs the pod's clocks, or has ended, or the clocks are there.
    pub fn advance_restores(&mut self) {
        let time = self.sandbox.as_ref().and_then(Sandbox::time);
        if let Some(time) = time {
            self.helpers
                .iter_mut()
                .filter(|helper| helper.waits(Work::Restore))
                .for_each(|helper| helper.pass(GO, &[time]));
        }
        let started = |helper: &Helper| helper.past_gate || helper.stage == Stage::AtGate;
        if self.helpers.iter().filter(|helper| helper.work == Work::Restore).all(started)
            && let Some(asker) = self.awaits_restores.take()
        {
            self.answer(asker, Answer::done());
        }
    }

    /// Gives up the restores that wait for clocks.
    pub fn stop_restores(&mut self) {
        self.helpers
            .iter_mut()
            .filter(|helper| helper.waits(Work::Restore))
            .for_each(|helper| helper.pass(STOP, &[]));
    }

    /// Refuses to begin, or to pull the ground from under, such work at this container.
    pub fn expect_idle(&self, work: Work, id: &str) -> Result<(), RequestError> {
        let busy = self.helpers.iter().any(|helper| helper.work == work && helper.id == id);
        if busy { Err(RequestError::Busy { id: id.to_owned(), work: work.name() }) } else { Ok(()) }
    }
}

fn has_word(socket: &SeqPacket, patience: Duration) -> bool {
    let timeout = Timespec::try_from(patience).ok();
    poll(&mut [PollFd::new(socket, PollFlags::IN)], timeout.as_ref()).is_ok_and(|count| count > 0)
}

//! The pod and its one loop: everything the shim knows, and everything that can wake it.
//!
//! ```text
//!           ┌────────────── epoll ──────────────┐
//!  Listener │ Daemon    Children  Output  Helper│ Cgroup      deadlines
//!     │     │   │          │        │       │   │    │     (freeze, drain, shutdown)
//!     ▼     │   ▼          ▼        ▼       ▼   │    ▼            ▼
//!  connect  │ requests   reaper    log    answers    freezer   expire
//! ```

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use api::shim::v1::{self as proto, event, frame, request::Call, response};
use executor::{Descriptors, Sandbox};
use prost::Message;
use rustix::{io::Errno, process::Signal};
use sys::{memory, seqpacket::Listener, signal::SignalFd, timens};

use crate::{
    connection::{Connection, Gone},
    error::RequestError,
    exec::Execs,
    freezer::Freezer,
    helper::Helper,
    init::Init,
    poll::{Interest, Poll, Token},
    restore::Release,
    shutdown::Shutdown,
    stdio::BUFFER,
    task::Task,
};

/// Requests longer than this, in bytes, carry plans: what they were decoded into is given back to the kernel.
const PLAIN: usize = 512;

/// The answer to a request, with the descriptors beside it.
pub struct Answer {
    pub result: response::Result,
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    pub fn done() -> Self {
        response::Result::Done(proto::Empty {}).into()
    }
}

impl From<response::Result> for Answer {
    fn from(result: response::Result) -> Self {
        Self { result, fds: Vec::new() }
    }
}

/// Whom an answer that comes later belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    pub connection: u32,
    pub request: u64,
}

/// Everything of one pod.
pub struct Pod {
    pub poll: Poll,
    /// None in a helper.
    listener: Option<Listener>,
    pub children: SignalFd,
    daemon: Option<Connection>,
    last_number: u32,
    pub host_mounts: OwnedFd,
    pub sandbox: Option<Sandbox>,
    pub pod_init_ended: bool,
    /// Command line that starts CRIU; empty: none here.
    pub criu_command: Vec<String>,
    /// What CRIU sees as /run.
    pub criu_run: PathBuf,
    pub log_limit: usize,
    pub tasks: Vec<Task>,
    pub execs: Execs,
    pub helpers: Vec<Helper>,
    pub freezer: Freezer,
    pub release: Option<Release>,
    /// Who waits for the restores to come to where the clocks must be known.
    pub awaits_restores: Option<Asker>,
    pub shutdown: Option<Shutdown>,
    /// Set at the end of a shutdown.
    pub done: bool,
    pub buffer: Box<[u8]>,
}

impl Pod {
    pub fn new(init: Init) -> Result<Self, Errno> {
        let poll = Poll::new()?;
        let children = SignalFd::new(&[Signal::CHILD])?;
        poll.add(&init.listener, Token::Listener, Interest::Read)?;
        poll.add(&children, Token::Children, Interest::Read)?;
        Ok(Self {
            poll,
            listener: Some(init.listener),
            children,
            daemon: None,
            last_number: 0,
            host_mounts: init.host_mounts,
            sandbox: None,
            pod_init_ended: false,
            criu_command: Vec::new(),
            criu_run: PathBuf::new(),
            log_limit: crate::log::LIMIT,
            tasks: Vec::new(),
            execs: Execs::default(),
            helpers: Vec::new(),
            freezer: Freezer::Off,
            release: None,
            awaits_restores: None,
            shutdown: None,
            done: false,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        })
    }

    /// A number that nothing else in this shim has had.
    pub fn new_number(&mut self) -> u32 {
        self.last_number += 1;
        self.last_number
    }

    pub fn run(&mut self) -> Result<(), Errno> {
        while !self.done {
            let now = timens::monotonic();
            let timeout =
                self.deadline().map(|at| Duration::from_nanos(at.saturating_sub(now).max(0).unsigned_abs()));
            for token in self.poll.wait(timeout)?.iter() {
                self.ready(token);
            }
            self.expire();
        }
        Ok(())
    }

    fn ready(&mut self, token: Token) {
        match token {
            Token::Listener => self.accept(),
            Token::Daemon => self.hear_daemon(),
            Token::Children => self.reap(),
            Token::Cgroup => self.check_frozen(),
            Token::Output(number) => self.pump(number),
            Token::Helper(number) => self.hear_helper(number),
        }
    }

    /// The next instant (CLOCK_MONOTONIC, ns) at which something must happen by itself.
    fn deadline(&self) -> Option<i64> {
        let drains = self.tasks.iter().filter_map(Task::drain_deadline);
        let others = [
            self.freezer.deadline(),
            self.release.as_ref().map(Release::deadline),
            self.shutdown.as_ref().map(|shutdown| shutdown.deadline),
        ];
        drains.chain(others.into_iter().flatten()).min()
    }

    fn expire(&mut self) {
        let now = timens::monotonic();
        self.expire_drains(now);
        self.expire_freeze(now);
        self.expire_release(now);
        self.advance_shutdown(now);
    }

    fn accept(&mut self) {
        let Some(Ok(socket)) = self.listener.as_ref().map(Listener::accept) else { return };
        self.disconnect();
        let number = self.new_number();
        self.daemon = Connection::new(socket, number, &self.poll).ok();
    }

    /// The daemon is gone: nobody reads its execs and nobody will resume what it froze.
    fn disconnect(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let number = daemon.number;
            daemon.close(&self.poll);
            self.execs.kill_of(number);
            self.freezer_lost_daemon();
        }
    }

    fn hear_daemon(&mut self) {
        if let Some(daemon) = &mut self.daemon
            && let Err(Gone) = daemon.flush(&self.poll)
        {
            return self.disconnect();
        }
        // One frame a round, so that output and exits have their turn.
        let received = self.daemon.as_mut().map(|daemon| (daemon.receive(), daemon.number));
        match received {
            Some((Ok(Some(frame)), connection)) => self.hear_frame(connection, &frame.bytes, frame.fds),
            Some((Err(Gone), _)) => self.disconnect(),
            Some((Ok(None), _)) | None => {}
        }
    }

    fn hear_frame(&mut self, connection: u32, bytes: &[u8], fds: Vec<OwnedFd>) {
        let (id, call) = match proto::Frame::decode(bytes) {
            Ok(proto::Frame { id, body: Some(frame::Body::Request(request)) }) => (id, request.call),
            Ok(frame) => (frame.id, None),
            Err(_) => (0, None),
        };
        let asker = Asker { connection, request: id };
        // What a plan was decoded into is not needed again; what an exec needs, the next one will.
        let carries_plan = !matches!(call, Some(Call::Exec(_))) && bytes.len() > PLAIN;
        let answer = match call {
            Some(call) => self.call(asker, call, Descriptors::new(fds)),
            None => Err(RequestError::Malformed),
        };
        match answer {
            Ok(Some(answer)) => self.answer(asker, answer),
            Ok(None) => {}
            Err(error) => self.answer(asker, response::Result::Error(error.into()).into()),
        }
        if carries_plan {
            memory::release_free();
        }
    }

    /// Answers a request, if the connection it came from is still there.
    pub fn answer(&mut self, asker: Asker, answer: Answer) {
        if let Some(daemon) = &mut self.daemon
            && daemon.number == asker.connection
            && let Err(Gone) = daemon.respond(asker.request, answer.result, answer.fds, &self.poll)
        {
            self.disconnect();
        }
    }

    /// Tells the daemon, if there is one; says whether it could be told.
    pub fn tell(&mut self, what: event::What) -> bool {
        match self.daemon.as_mut().map(|daemon| daemon.tell(what, &self.poll)) {
            Some(Ok(())) => true,
            Some(Err(Gone)) => {
                self.disconnect();
                false
            }
            None => false,
        }
    }

    /// In a forked helper: closes what only the loop may hold. A copy of a pipe's end or of the connection would keep
    /// the other side from seeing its end.
    pub fn close_in_helper(&mut self) {
        self.daemon = None;
        self.listener = None;
        for task in &mut self.tasks {
            task.close_in_helper();
        }
    }
}

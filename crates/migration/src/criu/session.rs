//! One CRIU process, one request.
//!
//! ```text
//! forked helper of the shim                      criu swrk N
//!   Session::start ── clone3 into the cgroup ──>  join namespaces, execve
//!   Session::run   ── request ────────────────>
//!                  <── notify "pre-dump" ──────   waits
//!                  ── verdict ───────────────>    …
//!                  <── response ───────────────   exits
//! ```
//!
//! CRIU in the middle of a task must not be killed: the task dies of the parasite it would leave behind. So a
//! deadline first fails the next notify (CRIU then rolls back by itself) and shuts the page socket; only a CRIU that
//! is deaf for [`GRACE`] more is killed.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::Shutdown;
use sys::clone::{self, Child};
use sys::namespace::{self, Kind as NamespaceKind};
use sys::process::{self, Stream};
use sys::seqpacket::{Frame, SeqPacket};
use sys::{Errno, Signal, pidfd};

use super::rpc::{Kind, Request, Response};
use super::{Criu, CriuError};

/// How long after its deadline CRIU may still roll back before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Where CRIU runs.
#[derive(Debug, Default)]
pub(super) struct Place<'a> {
    /// Namespaces it joins before it starts.
    pub namespaces: &'a [(NamespaceKind, BorrowedFd<'a>)],
    /// cgroup2 directory it starts in, with a cgroup namespace of its own rooted there.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Directories of v1 hierarchies it starts in.
    pub legacy_cgroups: &'a [BorrowedFd<'a>],
    /// Where it goes from one of them, once its cgroup namespace is rooted there.
    pub cpu: Option<BorrowedFd<'a>>,
    /// Descriptors it keeps, under the same numbers.
    pub keep: Vec<BorrowedFd<'a>>,
}

/// A point CRIU has reached.
#[derive(Debug)]
pub(super) struct Point {
    /// CRIU's name of it, such as `pre-dump`.
    pub name: String,
    /// Process 1 of the restored tree, where CRIU tells it.
    pub pid: Option<i32>,
    /// Descriptors beside it.
    pub fds: Vec<OwnedFd>,
}

/// What CRIU is told at a [`Point`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Go on.
    Go,
    /// Roll back. Past `post-restore` CRIU ignores it.
    RollBack,
    /// End here, where no task depends on it any more.
    Die,
}

#[derive(Debug)]
pub(super) struct Session<'a> {
    socket: SeqPacket,
    process: Child,
    deadline: Instant,
    expired: bool,
    page_socket: Option<BorrowedFd<'a>>,
}

impl<'a> Session<'a> {
    /// Starts CRIU. Its deadline counts from here.
    pub fn start(criu: &Criu, place: &Place<'_>, deadline: Duration) -> Result<Self, CriuError> {
        let (ours, theirs) = SeqPacket::pair().map_err(CriuError::step("socketpair"))?;
        let program = criu.command.first().ok_or(CriuError::NoCommand)?;
        let path = CString::new(program.as_str()).map_err(|_| CriuError::NoCommand)?;
        let image = image(criu, theirs.as_raw_fd()).map_err(CriuError::step("arguments"))?;
        let options = clone::Options { cgroup: place.cgroup, ..clone::Options::default() };
        let child = || {
            let _errno = become_criu(place, &theirs, &image, &path);
            127
        };
        let process = clone::fork(&options, child).map_err(CriuError::step("clone"))?;
        Ok(Self {
            socket: ours,
            process,
            deadline: Instant::now() + deadline,
            expired: false,
            page_socket: None,
        })
    }

    /// Lets a deadline shut this socket, which is where CRIU may wait in the middle of a dump.
    pub fn shut_at_deadline(&mut self, page_socket: Option<BorrowedFd<'a>>) {
        self.page_socket = page_socket;
    }

    /// Sends the request, answers every notify with `verdict` and returns the response when CRIU has ended.
    pub fn run(
        mut self,
        request: &Request,
        verdict: &mut dyn FnMut(sys::Pid, Point) -> Verdict,
    ) -> Result<Response, CriuError> {
        let answer = self.converse(request, verdict);
        self.finish(answer)
    }

    /// The same, but a success is returned at once: CRIU has nothing left to do, and takes a millisecond to end. It is
    /// buried by whoever the caller's children go to.
    pub fn run_to_response(
        mut self,
        request: &Request,
        verdict: &mut dyn FnMut(sys::Pid, Point) -> Verdict,
    ) -> Result<Response, CriuError> {
        match self.converse(request, verdict) {
            Ok(Some(response)) if response.success && !self.expired => Ok(response),
            other => self.finish(other),
        }
    }

    fn finish(self, answer: Result<Option<Response>, CriuError>) -> Result<Response, CriuError> {
        let status = pidfd::wait(&self.process.pidfd).map_err(CriuError::step("wait"))?;
        match answer? {
            Some(_) | None if self.expired => Err(CriuError::Deadline),
            Some(response) => Ok(response),
            None => Err(CriuError::Died(status.code())),
        }
    }

    /// `None`: CRIU went away without a response.
    fn converse(
        &mut self,
        request: &Request,
        verdict: &mut dyn FnMut(sys::Pid, Point) -> Verdict,
    ) -> Result<Option<Response>, CriuError> {
        match self.socket.send(&request.encode_to_vec(), &[]) {
            Ok(()) | Err(Errno::PIPE) => {}
            Err(errno) => return Err(CriuError::Step { step: "send", source: errno }),
        }
        while let Some(frame) = self.receive()? {
            let response = Response::decode(frame.bytes.as_slice())?;
            if response.kind() != Kind::Notify {
                return Ok(Some(response));
            }
            let notify = response.notify.unwrap_or_default();
            let point = Point { name: notify.script.unwrap_or_default(), pid: notify.pid, fds: frame.fds };
            let verdict = if self.expired { Verdict::RollBack } else { verdict(self.process.pid, point) };
            if verdict == Verdict::Die {
                pidfd::kill(&self.process.pidfd, Signal::KILL).map_err(CriuError::step("kill"))?;
                return Ok(None);
            }
            let go = Some(verdict == Verdict::Go);
            let answer = Request { kind: Kind::Notify.into(), notify_success: go, ..Request::default() };
            self.socket.send(&answer.encode_to_vec(), &[]).map_err(CriuError::step("send"))?;
        }
        Ok(None)
    }

    fn receive(&mut self) -> Result<Option<Frame>, CriuError> {
        loop {
            if self.readable()? {
                return match self.socket.recv() {
                    Err(Errno::CONNRESET) => Ok(None),
                    other => other.map_err(CriuError::step("receive")),
                };
            }
            self.expire()?;
        }
    }

    /// Whether there is something to read before the deadline.
    fn readable(&self) -> Result<bool, CriuError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(n) => Ok(n > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(CriuError::Step { step: "poll", source: errno }),
        }
    }

    /// First time: stop feeding CRIU. Second time: it had its grace.
    fn expire(&mut self) -> Result<(), CriuError> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        if self.expired {
            return pidfd::kill(&self.process.pidfd, Signal::KILL).map_err(CriuError::step("kill"));
        }
        self.expired = true;
        self.deadline = Instant::now() + GRACE;
        if let Some(socket) = self.page_socket {
            let _gone_already = rustix::net::shutdown(socket, Shutdown::Both);
        }
        Ok(())
    }
}

fn image(criu: &Criu, socket: i32) -> sys::Result<process::Image> {
    let mut args = criu.command.clone();
    // CRIU's configuration files would override what the request says: hostile-input class F15.
    args.extend(["--no-default-config".to_owned(), "swrk".to_owned(), socket.to_string()]);
    process::Image::new(&args, &["PATH=/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
}

/// In the child. Comes back only when something failed.
fn become_criu(
    place: &Place<'_>,
    socket: &SeqPacket,
    image: &process::Image,
    path: &CString,
) -> sys::Result<()> {
    for cgroup in place.legacy_cgroups {
        join_cgroup(cgroup)?;
    }
    if place.cgroup.is_some() {
        namespace::unshare(NamespaceKind::Cgroup)?;
    }
    place.cpu.map_or(Ok(()), join_cgroup)?;
    for (kind, fd) in place.namespaces {
        namespace::setns(fd, *kind)?;
    }
    silence()?;
    let mut keep = place.keep.clone();
    keep.push(socket.as_fd());
    for fd in &keep {
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    process::close_all_but(&keep)?;
    Err(image.exec(path))
}

fn silence() -> sys::Result<()> {
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    [Stream::In, Stream::Out, Stream::Err].into_iter().try_for_each(|stream| process::place(&null, stream))
}

fn join_cgroup(dir: impl AsFd) -> sys::Result<()> {
    let procs = openat(dir, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&procs, b"0").map(drop)
}

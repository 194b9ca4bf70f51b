//! One connection to a shim: requests out, answers back to whoever asked, events to the pod's driver.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::id::ExecId;
use api::shim::v1::{self as shim, Error, event::What, frame::Body, request::Call, response};
use prost::Message;
use sys::Errno;
use sys::seqpacket::SeqPacket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Longest wait for an answer that needs no work beyond a few system calls.
pub(super) const PROMPT: Duration = Duration::from_secs(20);

/// What the shim says is wrong: the step, the errno and the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub Error);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Error { step, errno, object, message, .. } = &self.0;
        f.write_str(step)?;
        if !object.is_empty() {
            write!(f, " {object}")?;
        }
        if *errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(*errno))?;
        }
        if !message.is_empty() {
            write!(f, ": {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Why a call to a shim brought no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The shim refused it.
    #[error("{0}")]
    Refused(Refused),
    /// The connection ended before the answer.
    #[error("the pod's shim is gone")]
    Gone,
    /// No answer in time.
    #[error("the pod's shim did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The request could not be sent.
    #[error("a request could not be sent to the pod's shim")]
    Send(#[source] Errno),
    /// The answer makes no sense: another version, or a bug.
    #[error("the pod's shim answered {0} with something else")]
    Protocol(&'static str),
}

/// What a shim reports by itself.
#[derive(Debug)]
pub(crate) enum ShimEvent {
    Exit(shim::Exit),
    Thawed(String),
    PodInitExit,
    /// The connection is gone, and with it the shim.
    Gone,
}

type Answer = (response::Result, Vec<OwnedFd>);

struct Inner {
    socket: AsyncFd<SeqPacket>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    gone: bool,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<String, oneshot::Sender<shim::ExecExit>>,
}

/// A shim that can be called. Clones share the connection, which ends with the shim.
#[derive(Clone)]
pub(crate) struct Client(Arc<Inner>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// An exec under way.
#[derive(Debug)]
pub(crate) struct ExecHandle {
    /// Its process id here.
    pub pid: u32,
    /// The master of its terminal, if it asked for one.
    pub terminal: Option<OwnedFd>,
    /// Its end; an error means that the shim is gone.
    pub exit: oneshot::Receiver<shim::ExecExit>,
}

impl Client {
    /// Serves `socket` until the shim closes it. `process` is the shim when it is our child, to be reaped.
    ///
    /// # Errors
    /// The reactor does not take the descriptor.
    pub(crate) fn start(
        socket: SeqPacket,
        process: Option<OwnedFd>,
        events: mpsc::UnboundedSender<ShimEvent>,
    ) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = register(socket, Interest::READABLE)?;
        let inner = Arc::new(Inner { socket, next: AtomicU64::new(1), waiting: Mutex::default() });
        tokio::spawn(receive(Arc::clone(&inner), process, events));
        Ok(Self(inner))
    }

    /// Sends `call` with `fds` beside it and waits for the answer.
    pub(crate) async fn call(
        &self,
        call: Call,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Answer, CallError> {
        self.begin(call, fds).await?.wait(limit).await
    }

    /// Sends `call`; what comes later is sent later.
    pub(super) async fn begin(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Result<Pending, CallError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.0.waiting();
            if waiting.gone {
                return Err(CallError::Gone);
            }
            waiting.calls.insert(id, sender);
        }
        let pending = Pending { answer, _forget: Forget { inner: Arc::clone(&self.0), id } };
        let frame = shim::Frame { id, body: Some(Body::Request(shim::Request { call: Some(call) })) };
        self.0.send(&frame.encode_to_vec(), fds).await?;
        Ok(pending)
    }

    /// A call that is answered with `done`.
    pub(super) async fn order(
        &self,
        name: &'static str,
        call: Call,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(), CallError> {
        match self.call(call, fds, limit).await?.0 {
            response::Result::Done(_) => Ok(()),
            _ => Err(CallError::Protocol(name)),
        }
    }

    pub(crate) async fn state(&self, limit: Duration) -> Result<shim::StateResponse, CallError> {
        match self.call(Call::State(shim::StateRequest {}), &[], limit).await?.0 {
            response::Result::State(state) => Ok(state),
            _ => Err(CallError::Protocol("state")),
        }
    }

    /// The namespaces made: kind and descriptor.
    pub(crate) async fn create_sandbox(
        &self,
        request: shim::CreateSandboxRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<(String, OwnedFd)>, CallError> {
        let (result, fds) = self.call(Call::CreateSandbox(request), fds, PROMPT).await?;
        let response::Result::CreateSandbox(made) = result else {
            return Err(CallError::Protocol("create sandbox"));
        };
        let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
        let mut take = |ns: shim::NamespaceFd| {
            let fd = fds.get_mut(ns.ns_fd as usize).and_then(Option::take);
            fd.map(|fd| (ns.kind, fd)).ok_or(CallError::Protocol("create sandbox"))
        };
        made.namespaces.into_iter().map(&mut take).collect()
    }

    /// The process id of the child that waits to be started, 0 for one to be restored.
    pub(crate) async fn create_container(
        &self,
        plan: shim::ContainerPlan,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u32, CallError> {
        let call = Call::CreateContainer(shim::CreateContainerRequest { plan: Some(plan) });
        match self.call(call, fds, PROMPT).await?.0 {
            response::Result::CreateContainer(created) => Ok(created.pid),
            _ => Err(CallError::Protocol("create container")),
        }
    }

    /// When it started, ns since the epoch.
    pub(crate) async fn start_container(&self, id: &str) -> Result<i64, CallError> {
        let call = Call::StartContainer(shim::StartContainerRequest { id: id.to_owned() });
        match self.call(call, &[], PROMPT).await?.0 {
            response::Result::StartContainer(started) => Ok(started.started_at),
            _ => Err(CallError::Protocol("start container")),
        }
    }

    pub(crate) async fn kill(&self, id: &str, signal: u32, all: bool) -> Result<(), CallError> {
        let call = Call::Kill(shim::KillRequest { id: id.to_owned(), signal, all });
        self.order("kill", call, &[], PROMPT).await
    }

    pub(crate) async fn delete_container(&self, id: &str) -> Result<(), CallError> {
        let call = Call::DeleteContainer(shim::DeleteContainerRequest { id: id.to_owned() });
        self.order("delete container", call, &[], PROMPT).await
    }

    pub(crate) async fn reopen_log(&self, id: &str, log: BorrowedFd<'_>) -> Result<(), CallError> {
        let call = Call::ReopenLog(shim::ReopenLogRequest { id: id.to_owned(), log_fd: 0 });
        self.order("reopen log", call, &[log], PROMPT).await
    }

    pub(crate) async fn update_resources(
        &self,
        id: &str,
        resources: shim::Resources,
    ) -> Result<(), CallError> {
        let request = shim::UpdateResourcesRequest { id: id.to_owned(), resources: Some(resources) };
        self.order("update resources", Call::UpdateResources(request), &[], PROMPT).await
    }

    /// Ends a freeze; `kill`: with the containers.
    pub(crate) async fn resume(&self, kill: bool) -> Result<(), CallError> {
        self.order("resume", Call::Resume(shim::ResumeRequest { kill }), &[], PROMPT).await
    }

    pub(crate) async fn shutdown(&self, limit: Duration) -> Result<(), CallError> {
        self.order("shutdown", Call::Shutdown(shim::ShutdownRequest {}), &[], limit).await
    }

    /// Starts a process in a container; `fds` are what the request's indices mean.
    pub(crate) async fn exec(
        &self,
        id: &ExecId,
        request: shim::ExecRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<ExecHandle, CallError> {
        let (sender, exit) = oneshot::channel();
        self.0.waiting().execs.insert(id.as_str().to_owned(), sender);
        match self.call(Call::Exec(request), fds, PROMPT).await {
            Ok((response::Result::Exec(started), fds)) => {
                Ok(ExecHandle { pid: started.pid, terminal: fds.into_iter().next(), exit })
            }
            other => {
                self.0.waiting().execs.remove(id.as_str());
                Err(other.err().unwrap_or(CallError::Protocol("exec")))
            }
        }
    }
}

/// A call that was sent.
#[derive(Debug)]
pub(super) struct Pending {
    answer: oneshot::Receiver<Answer>,
    _forget: Forget,
}

impl Pending {
    pub(super) async fn wait(self, limit: Duration) -> Result<Answer, CallError> {
        match tokio::time::timeout(limit, self.answer).await {
            Err(_) => Err(CallError::Silent(limit)),
            Ok(Err(_)) => Err(CallError::Gone),
            Ok(Ok((response::Result::Error(error), _))) => Err(CallError::Refused(Refused(error))),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

/// Removes a call from the table when its caller goes away, answered or not.
struct Forget {
    inner: Arc<Inner>,
    id: u64,
}

impl fmt::Debug for Forget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Forget({})", self.id)
    }
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.inner.waiting().calls.remove(&self.id);
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), CallError> {
        if self.try_send(bytes, fds)? {
            return Ok(());
        }
        // Full: rare. A descriptor of its own waits for room, since one that always did would wake us whenever the shim
        // takes a request.
        let failed = |error: std::io::Error| CallError::Send(sys::errno_of(&error));
        let copy = rustix::io::fcntl_dupfd_cloexec(self.socket.get_ref(), 3).map_err(CallError::Send)?;
        let room = register(copy, Interest::WRITABLE).map_err(failed)?;
        loop {
            room.writable().await.map_err(failed)?.clear_ready();
            // The shim may have taken something between the last refusal and the clearing.
            if self.try_send(bytes, fds)? {
                return Ok(());
            }
        }
    }

    /// False: there is no room now.
    fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<bool, CallError> {
        match self.socket.get_ref().send(bytes, fds) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(CallError::Gone),
            Err(other) => Err(CallError::Send(other)),
        }
    }

    fn deliver(&self, frame: shim::Frame, fds: Vec<OwnedFd>) -> Option<ShimEvent> {
        match frame.body? {
            Body::Response(shim::Response { result: Some(result) }) => {
                if let Some(caller) = self.waiting().calls.remove(&frame.id) {
                    let _ = caller.send((result, fds));
                }
                None
            }
            Body::Event(shim::Event { what: Some(what) }) => match what {
                What::Exit(exit) => Some(ShimEvent::Exit(exit)),
                What::Thawed(thawed) => Some(ShimEvent::Thawed(thawed.reason)),
                What::PodInitExit(_) => Some(ShimEvent::PodInitExit),
                What::ExecExit(exit) => {
                    if let Some(caller) = self.waiting().execs.remove(&exit.exec_id) {
                        let _ = caller.send(exit);
                    }
                    None
                }
            },
            _ => None,
        }
    }
}

/// Hands a descriptor to tokio's reactor. What is given here owns its descriptor and keeps it until it is dropped,
/// which is what the constructor asks for without being able to check it.
#[allow(deprecated, reason = "the alternative is unsafe, and both types here own their descriptor")]
fn register<T: AsRawFd>(fd: T, interest: Interest) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Reads until the shim is gone, then fails every caller that still waits.
async fn receive(inner: Arc<Inner>, process: Option<OwnedFd>, events: mpsc::UnboundedSender<ShimEvent>) {
    while let Ok(mut ready) = inner.socket.readable().await {
        match inner.socket.get_ref().recv() {
            Ok(Some(datagram)) => {
                let Ok(frame) = shim::Frame::decode(datagram.bytes.as_slice()) else { break };
                if let Some(event) = inner.deliver(frame, datagram.fds) {
                    let _ = events.send(event);
                }
            }
            Err(Errno::AGAIN) => ready.clear_ready(),
            Ok(None) | Err(_) => break,
        }
    }
    {
        let mut waiting = inner.waiting();
        *waiting = Waiting { gone: true, ..Waiting::default() };
    }
    let _ = events.send(ShimEvent::Gone);
    if let Some(process) = process {
        reap(process).await;
    }
}

/// Waits for the end of a shim that is our child, so that it leaves no zombie.
async fn reap(process: OwnedFd) {
    let Ok(process) = register(process, Interest::READABLE) else { return };
    while matches!(sys::pidfd::try_wait(process.get_ref().as_fd()), Ok(None)) {
        match process.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => return,
        }
    }
}

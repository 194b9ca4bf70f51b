//! Running a command in a container and collecting what it says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use api::id::{ContainerId, ExecId};
use api::shim::v1 as shim;
use rustix::fs::{Gid, Uid, fchown};
use rustix::pipe::{PipeFlags, pipe_with};
use sys::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tracing::Instrument;

use crate::container::Container;
use crate::error::{ContainerError, ExecError};
use crate::plan;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::shim::{CallError, Client};
use crate::spec;
use crate::state::ContainerState;

/// Most bytes kept of each stream; the rest is read and dropped (CVE-2022-1708).
pub const OUTPUT_LIMIT: usize = 16 << 20;
/// How long output is awaited after the command ended while a child of it holds the pipe.
const DRAIN: Duration = Duration::from_millis(100);

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, at most [`OUTPUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// Standard error, at most [`OUTPUT_LIMIT`] bytes.
    pub stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub code: i32,
}

impl Pods {
    /// Runs `command` in a running container, at most `timeout` long.
    ///
    /// # Errors
    /// `Timeout` after the command and all its descendants were killed. They are, too, when the caller goes away.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        let handle = self.registry.pod_of(id).map_err(ContainerError::from)?;
        let container = self.container(id).map_err(ContainerError::from)?;
        let not_running = || ContainerError::NotRunning { id: id.clone() };
        if container.state() != ContainerState::Running {
            return Err(not_running().into());
        }
        let client = handle.pod.client().cloned().ok_or_else(not_running)?;
        let name = command.first().cloned().ok_or(ExecError::NoCommand)?;
        let process = process(&handle.pod, &container, command).ok_or_else(not_running)?;
        // A task of its own: were the caller to leave while the shim is asked, nobody would know the command to end it.
        let start = Exec::start(client, handle.pod.owner(), id.clone(), process);
        let started = tokio::spawn(start.in_current_span()).await;
        let mut exec = started.unwrap_or(Err(ContainerError::Interrupted.into()))?;
        let run = exec.run();
        let Some(limit) = timeout else { return run.await.map_err(|e| shim_error(id, e)) };
        match tokio::time::timeout(limit, run).await {
            Ok(output) => output.map_err(|e| shim_error(id, e)),
            Err(_) => {
                exec.end().await;
                Err(ExecError::Timeout { command: name, limit })
            }
        }
    }
}

fn shim_error(id: &ContainerId, source: CallError) -> ExecError {
    ContainerError::Shim { id: id.clone(), source }.into()
}

/// The container's own process with another command line.
pub(crate) fn process(pod: &Pod, container: &Container, command: Vec<String>) -> Option<shim::Process> {
    let template = container.metadata.exec.get_or_init(|| {
        let spec = plan::spec_of(&container.metadata.spec)?;
        let context = spec::security_context(&container.metadata.config);
        let lowered = plan::process(spec.process().as_ref()?, Vec::new());
        let capabilities = lowered.capabilities.map_or(0, |c| c.bounding);
        let filter = spec::filter(&context, spec::security::Set(capabilities), &pod.node.filters).ok()?;
        Some((lowered, filter.map(|f| f.program)))
    });
    let (template, program) = template.as_ref()?;
    let seccomp = program.as_ref().map_or_else(Vec::new, |p| p.to_vec());
    let changed = container.status.resources.as_ref().and_then(|r| i32::try_from(r.oom_score_adj).ok());
    let oom_score_adj = changed.or(template.oom_score_adj);
    Some(shim::Process { args: command, tty: false, seccomp, oom_score_adj, ..template.clone() })
}

/// A command under way.
struct Exec {
    stdout: Receiver,
    stderr: Receiver,
    exit: tokio::sync::oneshot::Receiver<shim::ExecExit>,
    /// Nobody needs to kill it any more.
    ended: bool,
    /// Its process, opened as soon as its id was known.
    process: Option<OwnedFd>,
    pid: u32,
}

impl Exec {
    async fn start(
        client: Client,
        owner: u32,
        id: ContainerId,
        process: shim::Process,
    ) -> Result<Self, ExecError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| ExecError::Pipe(e.into()));
        let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe()?, pipe()?);
        // So that the user can reopen /dev/stdout.
        let (uid, gid) = (owner + process.uid, owner + process.gid);
        for end in [&stdout_end, &stderr_end] {
            let _ = fchown(end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
        let receiver = |fd| Receiver::from_owned_fd(fd).map_err(ExecError::Pipe);
        let (stdout, stderr) = (receiver(stdout)?, receiver(stderr)?);
        let exec_id = ExecId::random();
        let request = shim::ExecRequest {
            exec_id: exec_id.to_string(),
            id: id.to_string(),
            process: Some(process),
            stdin_fd: None,
            stdout_fd: Some(0),
            stderr_fd: Some(1),
        };
        let fds: [BorrowedFd<'_>; 2] = [stdout_end.as_fd(), stderr_end.as_fd()];
        let started = client.exec(&exec_id, request, &fds).await.map_err(|e| shim_error(&id, e))?;
        let process = i32::try_from(started.pid).ok().and_then(Pid::from_raw);
        let process = process.and_then(|pid| sys::pidfd::open(pid).ok());
        Ok(Self { stdout, stderr, exit: started.exit, ended: false, process, pid: started.pid })
    }

    /// Reads both streams until the command has ended and they are closed, or drained for a moment.
    async fn run(&mut self) -> Result<ExecOutput, CallError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = {
            let mut streams = std::pin::pin!(async {
                tokio::join!(read(&mut self.stdout, &mut out), read(&mut self.stderr, &mut err))
            });
            tokio::select! {
                exit = &mut self.exit => {
                    let _ = tokio::time::timeout(DRAIN, streams).await;
                    exit
                }
                _ = &mut streams => (&mut self.exit).await,
            }
        };
        self.ended = true;
        let exit = exit.map_err(|_| CallError::Gone)?;
        Ok(ExecOutput { stdout: out, stderr: err, code: i32::try_from(exit.code).unwrap_or(255) })
    }

    /// Kills the command and everything it started.
    fn kill(&self) {
        kill_descendants(self.pid);
        if let Some(process) = &self.process {
            let _ = sys::pidfd::kill(process.as_fd(), Signal::KILL);
        }
    }

    /// Kills it and waits until it is reaped.
    async fn end(mut self) {
        if self.exit.try_recv().is_err() {
            self.kill();
            let _ = tokio::time::timeout(Duration::from_secs(2), &mut self.exit).await;
        }
        self.ended = true;
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if !self.ended && self.exit.try_recv().is_err() {
            self.kill();
        }
    }
}

/// Kills what a command started.
pub(crate) fn kill_descendants(pid: u32) {
    for pid in descendants(pid) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            && let Ok(process) = sys::pidfd::open(pid)
        {
            let _ = sys::pidfd::kill(process.as_fd(), Signal::KILL);
        }
    }
}

/// Reads to the end, keeping the first [`OUTPUT_LIMIT`] bytes.
async fn read(stream: &mut Receiver, kept: &mut Vec<u8>) {
    let mut rest = Vec::new();
    loop {
        let more = if kept.len() < OUTPUT_LIMIT {
            stream.read_buf(kept).await
        } else {
            rest.clear();
            stream.read_buf(&mut rest).await
        };
        kept.truncate(OUTPUT_LIMIT);
        if !more.is_ok_and(|n| n > 0) {
            return;
        }
    }
}

/// Processes below `pid`, children before grandchildren (proc_pid_task_tid_children(5)). Racy: a process may fork while
/// we look; what its parent's death does not end, the container's own does.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() && found.len() < 4096 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", found[next])).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        next += 1;
    }
    found.split_off(1)
}

//! A process's streams for somebody outside: a command started with them, or those that a container has.
//!
//! The ends are pipes, or the master of a terminal, which is read and written like a pipe. An exec's other ends are its
//! own; an attached container's belong to its shim, which copies what it logs and gives up whoever does not keep up.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use api::id::{ContainerId, ExecId};
use api::shim::v1 as shim;
use rustix::fs::{Gid, Uid, fchown};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use sys::{Pid, Signal};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;

use crate::container::Container;
use crate::error::{ContainerError, ExecError};
use crate::exec;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::shim::{CallError, Client};
use crate::state::ContainerState;

/// Size of the pipes that output comes through. What an attached container says beyond it, while nobody reads, is lost
/// to the reader; the kernel's limit for the unprivileged, see pipe(7).
const PIPE: usize = 1 << 20;
/// How long a killed command may take to be reaped.
const REAPING: Duration = Duration::from_secs(2);

/// Which streams of a process are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal for all three.
    pub tty: bool,
}

/// A command under way. Dropped, it runs on without a reader.
#[derive(Debug)]
pub struct Execution {
    /// Write end of its input.
    pub stdin: Option<Sender>,
    /// Read end of its output.
    pub stdout: Option<Receiver>,
    /// Read end of its errors.
    pub stderr: Option<Receiver>,
    /// Its terminal, for its size.
    pub terminal: Option<OwnedFd>,
    exit: oneshot::Receiver<shim::ExecExit>,
    process: Option<OwnedFd>,
    pid: u32,
}

/// Streams of a container's process 1.
#[derive(Debug)]
pub struct Attached {
    /// Write end of its input.
    pub stdin: Option<Sender>,
    /// A copy of what it says, until it ends or the reader falls behind.
    pub stdout: Option<Receiver>,
    /// The same of its errors.
    pub stderr: Option<Receiver>,
    /// Its input ends with the first client that ends it: see [`Pods::close_stdin`].
    pub stdin_once: bool,
}

impl Pods {
    /// Starts `command` (not empty) in a running container, with the streams asked for.
    pub async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        wanted: Wanted,
    ) -> Result<Execution, ExecError> {
        let (pod, container) = self.running(id)?;
        let not_running = || ContainerError::NotRunning { id: id.clone() };
        let client = pod.client().ok_or_else(not_running)?;
        if command.is_empty() {
            return Err(ExecError::NoCommand);
        }
        let process = exec::process(&pod, &container, command).ok_or_else(not_running)?;
        let mut process = shim::Process { tty: wanted.tty, ..process };
        if wanted.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        let owner = (pod.owner() + process.uid, pod.owner() + process.gid);
        start(client, id, process, wanted, owner).await
    }

    /// Connects to the streams of a running container's process 1.
    pub async fn attach(&self, id: &ContainerId, wanted: Wanted) -> Result<Attached, ExecError> {
        let (pod, container) = self.running(id)?;
        let client = pod.client().ok_or_else(|| ContainerError::NotRunning { id: id.clone() })?;
        let mut ends = Ends::default();
        let stdout = wanted.stdout.then(|| ends.output(None)).transpose()?;
        let stderr = wanted.stderr.then(|| ends.output(None)).transpose()?;
        let request = shim::AttachRequest {
            id: id.to_string(),
            stdin: wanted.stdin,
            stdout_fd: stdout.as_ref().map(|(_, index)| *index),
            stderr_fd: stderr.as_ref().map(|(_, index)| *index),
        };
        let stdin = client.attach(request, &ends.fds()).await.map_err(|e| shim_error(id, e))?;
        let stdin = stdin.map(sender).transpose().map_err(ExecError::Pipe)?;
        let stdin_once = container.metadata.config.stdin_once && wanted.stdin;
        Ok(Attached { stdin, stdout: read_end(stdout), stderr: read_end(stderr), stdin_once })
    }

    /// Ends a container's input for good. Idempotent.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), ExecError> {
        let (pod, _) = self.running(id)?;
        let Some(client) = pod.client() else { return Ok(()) };
        client.close_stdin(id.as_str()).await.map_err(|e| shim_error(id, e))
    }

    /// Tells a container's terminal its size in characters.
    pub async fn resize(&self, id: &ContainerId, width: u16, height: u16) -> Result<(), ExecError> {
        let (pod, _) = self.running(id)?;
        let Some(client) = pod.client() else { return Ok(()) };
        client.resize(id.as_str(), width, height).await.map_err(|e| shim_error(id, e))
    }

    fn running(
        &self,
        id: &ContainerId,
    ) -> Result<(std::sync::Arc<Pod>, std::sync::Arc<Container>), ContainerError> {
        let handle = self.registry.pod_of(id)?;
        let container = self.container(id)?;
        if container.state() != ContainerState::Running {
            return Err(ContainerError::NotRunning { id: id.clone() });
        }
        Ok((std::sync::Arc::clone(&handle.pod), container))
    }
}

impl Execution {
    /// Its exit code, or 128 + signal; `None`: its shim is gone. To be called once.
    pub async fn exit(&mut self) -> Option<i32> {
        (&mut self.exit).await.ok().map(|exit| i32::try_from(exit.code).unwrap_or(255))
    }

    /// Kills the command and everything it started, and waits until it is reaped.
    pub async fn kill(mut self) {
        if self.exit.try_recv().is_ok() {
            return;
        }
        exec::kill_descendants(self.pid);
        if let Some(process) = &self.process {
            let _ = sys::pidfd::kill(process.as_fd(), Signal::KILL);
        }
        let _ = tokio::time::timeout(REAPING, &mut self.exit).await;
    }
}

async fn start(
    client: &Client,
    id: &ContainerId,
    process: shim::Process,
    wanted: Wanted,
    owner: (u32, u32),
) -> Result<Execution, ExecError> {
    let mut ends = Ends::default();
    let piped = |wanted: bool| wanted && !process.tty;
    let stdin = piped(wanted.stdin).then(|| ends.input(owner)).transpose()?;
    let stdout = piped(wanted.stdout).then(|| ends.output(Some(owner))).transpose()?;
    let stderr = piped(wanted.stderr).then(|| ends.output(Some(owner))).transpose()?;
    let exec_id = ExecId::random();
    let request = shim::ExecRequest {
        exec_id: exec_id.to_string(),
        id: id.to_string(),
        process: Some(process),
        stdin_fd: stdin.as_ref().map(|(_, index)| *index),
        stdout_fd: stdout.as_ref().map(|(_, index)| *index),
        stderr_fd: stderr.as_ref().map(|(_, index)| *index),
    };
    let started = client.exec(&exec_id, request, &ends.fds()).await.map_err(|e| shim_error(id, e))?;
    let process = i32::try_from(started.pid).ok().and_then(Pid::from_raw);
    let mut execution = Execution {
        stdin: stdin.map(|(end, _)| end),
        stdout: read_end(stdout),
        stderr: read_end(stderr),
        terminal: None,
        exit: started.exit,
        process: process.and_then(|pid| sys::pidfd::open(pid).ok()),
        pid: started.pid,
    };
    if let Some(master) = started.terminal {
        execution.take_terminal(master, wanted).map_err(ExecError::Pipe)?;
    }
    Ok(execution)
}

impl Execution {
    /// A terminal's master is read, written and resized through copies of one descriptor.
    fn take_terminal(&mut self, master: OwnedFd, wanted: Wanted) -> std::io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        if wanted.stdin {
            self.stdin = Some(sender(master.try_clone()?)?);
        }
        if wanted.stdout {
            self.stdout = Some(Receiver::from_file_unchecked(File::from(master.try_clone()?))?);
        }
        self.terminal = Some(master);
        Ok(())
    }
}

fn sender(fd: OwnedFd) -> std::io::Result<Sender> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Sender::from_file_unchecked(File::from(fd))
}

fn read_end(end: Option<(Receiver, u32)>) -> Option<Receiver> {
    end.map(|(end, _)| end)
}

fn shim_error(id: &ContainerId, source: CallError) -> ExecError {
    ContainerError::Shim { id: id.clone(), source }.into()
}

/// The ends of pipes that go to the shim, in the order of their indices.
#[derive(Default)]
struct Ends(Vec<OwnedFd>);

impl Ends {
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }

    /// A pipe that the process writes; our end and the index of the other. `owner`: so that it can reopen it.
    fn output(&mut self, owner: Option<(u32, u32)>) -> Result<(Receiver, u32), ExecError> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| ExecError::Pipe(e.into()))?;
        let _ = fcntl_setpipe_size(&write, PIPE);
        let index = self.give(write, owner);
        Ok((Receiver::from_owned_fd(read).map_err(ExecError::Pipe)?, index))
    }

    /// A pipe that the process reads.
    fn input(&mut self, owner: (u32, u32)) -> Result<(Sender, u32), ExecError> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| ExecError::Pipe(e.into()))?;
        let index = self.give(read, Some(owner));
        Ok((Sender::from_owned_fd(write).map_err(ExecError::Pipe)?, index))
    }

    fn give(&mut self, end: OwnedFd, owner: Option<(u32, u32)>) -> u32 {
        if let Some((uid, gid)) = owner {
            let _ = fchown(&end, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
        self.0.push(end);
        u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX)
    }
}

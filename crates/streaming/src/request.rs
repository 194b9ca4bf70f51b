//! What a client may be connected to.

use api::id::{ContainerId, PodId};

/// Which of a process's streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; never with a terminal, which has one output.
    pub stderr: bool,
    /// The process has a terminal, whose size the client tells.
    pub tty: bool,
}

/// A command to run in a container.
#[derive(Debug, Clone)]
pub struct Exec {
    /// The container.
    pub container: ContainerId,
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// What the client is connected to.
    pub streams: Streams,
}

/// The streams of a container's process 1.
#[derive(Debug, Clone)]
pub struct Attach {
    /// The container.
    pub container: ContainerId,
    /// What the client is connected to.
    pub streams: Streams,
}

/// Ports of a pod.
#[derive(Debug, Clone)]
pub struct PortForward {
    /// The pod.
    pub pod: PodId,
    /// The ports that may be asked for; empty: all.
    pub ports: Vec<u16>,
}

/// One of the three.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
}

impl Request {
    /// As the first part of its URL's path names it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

//! What can go wrong on the way, worded for the person at the terminal: the object, what was tried, and the cure.

use std::{error, io, net::SocketAddr, path::PathBuf, process::ExitCode};

use tonic::{Code, Status};

use crate::stream::StreamError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no daemon answers at {}: start meridiand, or name its socket with --socket or MERIDIAN_SOCKET", socket.display())]
    Connect { socket: PathBuf, source: tonic::transport::Error },
    /// `what` reads on after "cannot".
    #[error("cannot {what}: {}", said(status))]
    Refused { what: String, status: Box<Status> },
    #[error("there is no {kind} {name:?}: {list} lists what there is")]
    NotFound { kind: &'static str, name: String, list: &'static str },
    #[error("{name:?} could be any of {candidates}: give more of the id")]
    Ambiguous { name: String, candidates: String },
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0}")]
    Usage(String),
    #[error("{failed} check(s) failed: what to do is said beside each")]
    Node { failed: usize },
    #[error("pod {pod} cannot be checkpointed or moved as it is")]
    Obstacles { pod: String },
    #[error("cannot make a certificate for {name:?}")]
    Certificate { name: String, source: rcgen::Error },
    #[error("cannot write to standard output")]
    Output { source: io::Error },
    #[error("cannot read the daemon's answer as {what}")]
    Answer { what: &'static str, source: prost::DecodeError },
    #[error("cannot listen at {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Stream(Box<StreamError>),
    #[error("cannot run the command in {container}: {source}")]
    Exec { container: String, source: Box<Error> },
}

impl Error {
    /// For `map_err` on an RPC: `what` reads on after "cannot".
    pub fn refused(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| Self::Refused { what, status: Box::new(status) }
    }

    /// See the head of `main.rs`.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Connect { .. } => 3,
            Self::NotFound { .. } => 4,
            Self::Refused { status, .. } if status.code() == Code::NotFound => 4,
            Self::Exec { .. } => 125,
            _ => 1,
        })
    }

    /// The message followed by its causes, each once.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.contains(&part) {
                text = format!("{text}: {part}");
            }
            cause = error.source();
        }
        text
    }
}

/// The daemon's words and, where a code alone tells more, ours.
fn said(status: &Status) -> String {
    let message = status.message();
    match status.code() {
        _ if message.is_empty() => status.code().to_string(),
        Code::DeadlineExceeded => format!("out of time: {message}"),
        Code::Unavailable => format!("the daemon went away or is overloaded: {message}"),
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_usage_daemon_and_object_apart() {
        let refused = |code| Error::refused("stop pod web")(Status::new(code, "why"));
        let code = |e: &Error| format!("{:?}", e.exit_code());
        assert_eq!(
            code(&refused(Code::NotFound)),
            code(&Error::NotFound { kind: "pod", name: "x".into(), list: "" })
        );
        assert_ne!(code(&refused(Code::Internal)), code(&refused(Code::NotFound)));
        assert_eq!(refused(Code::Internal).to_string(), "cannot stop pod web: why");
        assert_eq!(refused(Code::DeadlineExceeded).to_string(), "cannot stop pod web: out of time: why");
    }

    #[test]
    fn a_chain_names_the_file_and_the_reason() {
        let source = io::Error::from_raw_os_error(2);
        let error = Error::File { what: "read", path: "/x/y".into(), source };
        assert_eq!(error.chain(), "cannot read /x/y: No such file or directory (os error 2)");
    }
}

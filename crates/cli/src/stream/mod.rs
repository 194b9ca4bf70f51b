//! Connections to the daemon's streaming server, at the URLs that its RPCs give.
//!
//! [`session`] joins a process's streams to ours; [`forward`] joins one TCP connection to a port of a pod.

pub mod forward;
pub mod session;

use std::io;

use tokio::net::TcpStream;

use crate::error::Error;

/// What can go wrong between here and the streaming server.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The URL leads somewhere else.
    #[error("the daemon's URL {0} cannot be used: plain HTTP can")]
    Url(String),
    #[error("cannot connect to {address}")]
    Connect { address: String, source: io::Error },
    /// No upgrade; the answer's first line, or its text.
    #[error("the streaming server refuses: {0}")]
    Refused(String),
    #[error("the connection to the daemon failed")]
    WebSocket(#[from] Box<tokio_tungstenite::tungstenite::Error>),
    #[error("the connection to the daemon failed")]
    Io(#[from] io::Error),
    #[error("the daemon's answer makes no sense")]
    Frame(#[from] spdy::frame::FrameError),
    #[error("the connection ended before the session did")]
    Cut,
    /// In the daemon's words.
    #[error("{0}")]
    Session(String),
    #[error("--tty needs a terminal as standard input: leave it out to pass bytes as they are")]
    Terminal,
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Self {
        Self::Stream(Box::new(error))
    }
}

/// Connects to where a URL points; its authority and its path.
async fn dial(url: &str) -> Result<(TcpStream, &str, &str), StreamError> {
    let unusable = || StreamError::Url(url.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(unusable)?;
    let slash = rest.find('/').ok_or_else(unusable)?;
    let (authority, path) = rest.split_at(slash);
    let failed = |source| StreamError::Connect { address: authority.to_owned(), source };
    let connection = TcpStream::connect(authority).await.map_err(failed)?;
    connection.set_nodelay(true).map_err(failed)?;
    Ok((connection, authority, path))
}

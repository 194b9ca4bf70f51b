//! Exec, attach and port-forward: a client's streams, over SPDY/3.1 or WebSocket, joined to those of a pod.
//!
//! ```text
//! kubelet ── CRI Exec ──▶ Streaming::exec ──▶ URL with a one-time token
//! kubelet ── GET|POST /exec/TOKEN, Upgrade ──▶ server ──┬─ spdy ───────────┬─▶ session ──▶ pod::Execution, pod::Attached
//!                                                       └─ websocket ──────┤              (pipes or a pty, by the shim)
//!                                                          └ tunnel ─ spdy ┴─▶ forward ──▶ TCP inside the pod's network
//! ```
//!
//! An RPC checks a request and gets a URL; whoever brings its token within a minute, once, is served without further
//! questions. So the server knows no names and checks nothing but tokens.
//!
//! - [`spdy`]: SPDY/3.1 of our own, as Kubernetes has used it since 2014; [`websocket`]: channel protocols up to
//!   version 5, and SPDY through a WebSocket.
//! - [`client`] is what both come to: a client with input, outputs, an error stream and a terminal size.
//! - [`session`] joins a client to a process; [`forward`] joins pairs of streams to ports.
//!
//! **What a client can cost**: a request head has 16 KiB and, with TLS, 10 s; a control frame 16 KiB, a header block
//! 32 KiB unpacked, a WebSocket message 1 MiB; a connection has 512 streams, and at most half a MiB of input waits for a
//! process, after which nothing more is read; output waits in its pipe. A client that leaves is noticed at once, one
//! whose machine is gone by TCP's keepalive, an idle one after the configured time. A client that leaves an exec takes
//! the command with it.
//!
//! This crate must not: enter a namespace (crate `pod` makes sockets inside a pod's network), decide who may do what
//! (crate `cri` does before it asks for a URL), or hold up a container for a client (an exec's own process waits for its
//! client; an attached container never does).

mod activity;
mod chunk;
mod client;
mod forward;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod http;
mod outcome;
mod request;
mod server;
mod session;
mod spdy;
mod tls;
mod token;
mod websocket;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pod::{Class, Classify, Pods};
use tokio::net::TcpListener;

pub use request::{Attach, Exec, PortForward, Streams};
pub use tls::{TlsConfig, TlsError};
pub use token::TokenError;

use crate::request::Request;
use crate::server::{Server, base_url};
use crate::token::Tokens;

/// How the server listens.
#[derive(Debug, Clone)]
pub struct StreamingConfig {
    /// Address and port; port 0: any free one.
    pub listen: SocketAddr,
    /// Absent: plain HTTP.
    pub tls: Option<TlsConfig>,
    /// A connection over which nothing passes for this long is closed.
    pub idle: Duration,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address.
    #[error("the streaming server cannot listen on {address}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Hands out URLs. Clones are the same.
#[derive(Debug, Clone)]
pub struct Streaming {
    base: Arc<str>,
    tokens: Arc<Tokens>,
}

impl Streaming {
    /// Listens and serves from now on, inside the tokio runtime.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: &StreamingConfig, pods: Pods) -> Result<Self, StartError> {
        let address = config.listen;
        let failed = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let base = base_url(listener.local_addr().map_err(failed)?, config.tls.is_some());
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let tokens = Arc::new(Tokens::default());
        let server = Server { pods, tokens: Arc::clone(&tokens), tls, idle: config.idle };
        tokio::spawn(Arc::new(server).run(listener));
        Ok(Self { base: base.into(), tokens })
    }

    /// The URL at which this command is run once, if somebody comes within a minute.
    ///
    /// # Errors
    /// See [`TokenError`]; so have the other two.
    pub fn exec(&self, exec: Exec) -> Result<String, TokenError> {
        self.url(Request::Exec(exec))
    }

    /// The URL at which a container's streams are to be had.
    pub fn attach(&self, attach: Attach) -> Result<String, TokenError> {
        self.url(Request::Attach(attach))
    }

    /// The URL at which a pod's ports are to be had.
    pub fn port_forward(&self, forward: PortForward) -> Result<String, TokenError> {
        self.url(Request::PortForward(forward))
    }

    fn url(&self, request: Request) -> Result<String, TokenError> {
        let kind = request.kind();
        Ok(format!("{}/{kind}/{}", self.base, self.tokens.issue(request)?))
    }
}

impl Classify for TokenError {
    fn class(&self) -> Class {
        match self {
            Self::Full => Class::ResourceExhausted,
            Self::Random(_) => Class::Internal,
        }
    }
}

//! The server that the URLs point at: connections, TLS, tokens, and the switch to the protocol a client asks for.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use pod::Pods;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::http::{self, Head, Refusal};
use crate::request::{Request, Streams};
use crate::session::chain;
use crate::spdy::client::AcceptError;
use crate::token::Tokens;
use crate::wire::{Peer, Wire};
use crate::{forward, session, spdy, websocket};

/// Most clients at once; more wait in the socket's backlog.
const CLIENTS: usize = 4096;
/// How long a client may take for TLS and its request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A client whose machine is gone is noticed after about a minute.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// Pause after accept(2) failed, for want of descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);

/// SPDY through a WebSocket.
const TUNNEL: [(&str, ()); 1] = [("SPDY/3.1+portforward.k8s.io", ())];

/// Why a client was not served; what HTTP can still say was said.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the handshake took more than {} s", HANDSHAKE.as_secs())]
    Slow,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Accept(#[from] AcceptError),
}

/// What all connections share.
pub(crate) struct Server {
    pub(crate) pods: Pods,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) idle: Duration,
}

/// How the client is going to speak.
enum Speech {
    Spdy(u8),
    Tunnel,
    Channels(websocket::channel::Version),
}

impl Server {
    /// Serves until the runtime ends.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CLIENTS));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((socket, peer)) => {
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        let _place = place;
                        if let Err(error) = server.serve(socket).await {
                            tracing::debug!(%peer, error = chain(&error), "a streaming client was not served");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a streaming client was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn serve(&self, socket: TcpStream) -> Result<(), ServeError> {
        keep_alive(&socket);
        let shaken = tokio::time::timeout(HANDSHAKE, self.handshake(socket)).await;
        let (mut wire, head) = shaken.map_err(|_| ServeError::Slow)??;
        match self.admit(&head) {
            Ok((request, speech)) => self.connect(wire, &head, request, speech).await,
            Err(refusal) => {
                http::refuse(&mut wire.outgoing, &refusal).await?;
                Err(refusal.into())
            }
        }
    }

    async fn handshake(&self, socket: TcpStream) -> Result<(Wire, Head), ServeError> {
        let peer = Peer(socket.as_fd().try_clone_to_owned()?);
        let mut wire = match &self.tls {
            None => {
                let (incoming, outgoing) = socket.into_split();
                Wire { incoming: Box::new(incoming), outgoing: Box::new(outgoing), peer }
            }
            Some(tls) => {
                let (incoming, outgoing) = tokio::io::split(tls.accept(socket).await?);
                Wire { incoming: Box::new(incoming), outgoing: Box::new(outgoing), peer }
            }
        };
        match http::read(&mut wire.incoming).await? {
            Ok((head, rest)) => Ok((wire.unread(rest), head)),
            Err(refusal) => {
                http::refuse(&mut wire.outgoing, &refusal).await?;
                Err(refusal.into())
            }
        }
    }

    /// Uses up the token, whatever comes of it.
    fn admit(&self, head: &Head) -> Result<(Request, Speech), Refusal> {
        let (kind, token) = head.target().ok_or(Refusal::Token)?;
        let request = self.tokens.redeem(kind, token).ok_or(Refusal::Token)?;
        head.check_origin()?;
        let forward = matches!(request, Request::PortForward(_));
        let speech = if websocket::is_asked(head) {
            if forward {
                websocket::negotiate(head, &TUNNEL)?;
                Speech::Tunnel
            } else {
                Speech::Channels(websocket::negotiate(head, &websocket::channel::PROTOCOLS)?.1)
            }
        } else if head.says("connection", "upgrade") && head.says("upgrade", "SPDY/3.1") {
            let spoken: &[(&str, u8)] =
                if forward { &[(forward::PROTOCOL, 1)] } else { &spdy::client::PROTOCOLS };
            Speech::Spdy(negotiate(head, spoken)?)
        } else {
            return Err(Refusal::Upgrade);
        };
        Ok((request, speech))
    }

    async fn connect(
        &self,
        mut wire: Wire,
        head: &Head,
        request: Request,
        speech: Speech,
    ) -> Result<(), ServeError> {
        let streams = match &request {
            Request::Exec(exec) => exec.streams,
            Request::Attach(attach) => attach.streams,
            Request::PortForward(_) => Streams::default(),
        };
        let client = match speech {
            Speech::Tunnel => {
                websocket::switch(&mut wire, head, TUNNEL[0].0).await?;
                return self.forward(request, websocket::tunnel(wire).await).await;
            }
            Speech::Channels(version) => {
                websocket::switch(&mut wire, head, version.name()).await?;
                websocket::channel::accept(wire, streams, version, self.idle).await?
            }
            Speech::Spdy(version) => {
                let forward = matches!(request, Request::PortForward(_));
                let name = if forward { forward::PROTOCOL } else { spdy::client::name(version) };
                let headers = [("X-Stream-Protocol-Version", name)];
                http::switch(&mut wire.outgoing, "SPDY/3.1", &headers).await?;
                if forward {
                    return self.forward(request, wire).await;
                }
                spdy::client::accept(wire, streams, version, self.idle).await?
            }
        };
        match request {
            Request::Exec(exec) => session::exec(&self.pods, exec, client).await,
            Request::Attach(attach) => session::attach(&self.pods, attach, client).await,
            Request::PortForward(_) => {}
        }
        Ok(())
    }

    async fn forward(&self, request: Request, wire: Wire) -> Result<(), ServeError> {
        if let Request::PortForward(request) = request {
            forward::serve(&self.pods, request, wire, self.idle).await;
        }
        Ok(())
    }
}

/// The first protocol of the client's list that is spoken here. Clients without a list speak the first version.
fn negotiate(head: &Head, spoken: &[(&str, u8)]) -> Result<u8, Refusal> {
    let offered = head.list("x-stream-protocol-version");
    if offered.is_empty() {
        return Ok(1);
    }
    let known = |name: &String| spoken.iter().find(|(own, _)| own == name).map(|(_, version)| *version);
    offered.iter().find_map(known).ok_or(Refusal::Protocol(offered))
}

/// Small frames leave at once, and a machine that fell silent is noticed. Where the kernel refuses, it works without.
fn keep_alive(socket: &TcpStream) {
    use rustix::net::sockopt;
    let (idle, interval, probes) = KEEPALIVE;
    let _ = socket.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, idle);
    let _ = sockopt::set_tcp_keepintvl(socket, interval);
    let _ = sockopt::set_tcp_keepcnt(socket, probes);
}

/// How clients on this node reach what listens at `address`.
pub(crate) fn base_url(address: SocketAddr, tls: bool) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("{}://{address}", if tls { "https" } else { "http" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_absolute_and_can_be_reached() {
        assert_eq!(base_url("0.0.0.0:81".parse().unwrap(), false), "http://127.0.0.1:81");
        assert_eq!(base_url("[::]:81".parse().unwrap(), true), "https://[::1]:81");
        assert_eq!(base_url("10.0.0.1:81".parse().unwrap(), false), "http://10.0.0.1:81");
    }
}

//! Connections to what listens inside a pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use api::id::PodId;
use namespaces::NamespaceKind;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};

use crate::error::NetworkError;
use crate::pods::Pods;
use crate::sandbox::{is_node, namespaces};
use crate::state::SandboxState;

/// How long a program in a pod may take to accept.
const CONNECT: Duration = Duration::from_secs(10);

/// A pod's network, to connect to its loopback.
#[derive(Debug)]
pub struct PodNetwork {
    /// Absent: the pod has the node's network by its own configuration.
    namespace: Option<OwnedFd>,
}

impl Pods {
    /// The network of a pod that is ready, through the pin of its namespace: never the node's, but for pods that ask
    /// for the node's.
    pub fn network(&self, id: &PodId) -> Result<PodNetwork, NetworkError> {
        let handle = self.registry.pod(id)?;
        if handle.view().sandbox.state != SandboxState::Ready {
            return Err(NetworkError::NotReady { id: id.clone() });
        }
        if is_node(namespaces(&handle.pod.config).network) {
            return Ok(PodNetwork { namespace: None });
        }
        let pinned = handle.pod.node.pins.get(id.as_str(), NamespaceKind::Net);
        let namespace = pinned.map_err(|source| NetworkError::Pin { id: id.clone(), source })?;
        Ok(PodNetwork { namespace: Some(namespace) })
    }
}

impl PodNetwork {
    /// A connection to a port of the pod's loopback, IPv4 before IPv6.
    ///
    /// # Errors
    /// Those of connect(2); `TimedOut` after 10 s.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        match self.connect_to(Ipv4Addr::LOCALHOST.into(), port).await {
            Ok(stream) => Ok(stream),
            Err(first) => self.connect_to(Ipv6Addr::LOCALHOST.into(), port).await.map_err(|_| first),
        }
    }

    async fn connect_to(&self, address: IpAddr, port: u16) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = std::net::TcpStream::from(self.socket(family).await?);
        let connect = TcpSocket::from_std_stream(socket).connect(SocketAddr::new(address, port));
        tokio::time::timeout(CONNECT, connect).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A socket belongs to the network namespace it was made in, wherever it is used.
    async fn socket(&self, family: AddressFamily) -> io::Result<OwnedFd> {
        let make = move || {
            socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        };
        let Some(namespace) = &self.namespace else { return Ok(make()?) };
        let namespace = namespace.as_fd().try_clone_to_owned()?;
        let made = tokio::task::spawn_blocking(move || sys::netns::run(namespace.as_fd(), make)).await?;
        Ok(made??)
    }
}

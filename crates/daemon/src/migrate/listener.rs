//! Where other nodes' daemons connect.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use migration::transport::{Host, Identity, serve};
use pod::NodePods;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::chain;

/// Moves and questions at once. More wait to be accepted.
const CONNECTIONS: usize = 64;
/// How long a stranger may take to show his certificate.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Binds, and serves in a task.
pub async fn start(address: SocketAddr, identity: Identity, host: Host<NodePods>) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(accept(listener, identity, Arc::new(host)));
    Ok(())
}

async fn accept(listener: TcpListener, identity: Identity, host: Arc<Host<NodePods>>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                let (identity, host) = (identity.clone(), Arc::clone(&host));
                tokio::spawn(async move {
                    connection(tcp, peer, &identity, &host).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of another node was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(tcp: TcpStream, peer: SocketAddr, identity: &Identity, host: &Host<NodePods>) {
    let handshake = timeout(HANDSHAKE, identity.accept(tcp)).await;
    let tls = match handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(tls) => tls,
        Err(error) => return tracing::warn!(%peer, %error, "a stranger was refused"),
    };
    match serve(host, &peer.to_string(), tls).await {
        Ok(Some(pod)) => tracing::info!(%peer, pod, "pod came"),
        Ok(None) => tracing::info!(%peer, "a question about a move was answered"),
        Err(error) => tracing::warn!(%peer, "a pod did not come: {}", chain(&error)),
    }
}

//! gRPC on the unix socket, with bounds on what one client can cost.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What the kubelet's client sends and receives at most, and peers accept.
pub const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;

/// A kubelet has two connections, crictl one each run. More wait in the socket's backlog.
const CONNECTIONS: usize = 1024;

/// Streams of one connection: the kubelet runs one call per container in a few workers.
const STREAMS: u32 = 1000;

/// A builder with HTTP/2 limits: hostile-client classes rapid reset (CVE-2023-44487), CONTINUATION and header
/// floods (CVE-2024-27316), window exhaustion.
pub fn builder() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(50))
        .http2_max_local_error_reset_streams(Some(50))
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .http2_keepalive_interval(Some(Duration::from_secs(300)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
}

/// Connections of `listener`, at most [`CONNECTIONS`] at once.
pub fn connections(
    listener: std::os::unix::net::UnixListener,
) -> io::Result<impl Stream<Item = io::Result<Connection>>> {
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok(permit) = permits.clone().acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    if sender.send(Ok(Connection { stream, _permit: permit })).await.is_err() {
                        break;
                    }
                }
                // accept(2): errors of one connection, or no descriptors left. Neither ends the daemon.
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// One client, holding its share of the limit.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

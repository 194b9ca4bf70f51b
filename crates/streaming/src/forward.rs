//! Port-forward: pairs of SPDY streams, one for data and one for an error, each pair a connection to a port of a pod.
//!
//! ```text
//! client ═ data stream ═ Pair ═ TCP ═ 127.0.0.1 or ::1 inside the pod's network namespace
//!        ═ error stream ─┘ says why there is no connection; ended in silence when all went well
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pod::{PodNetwork, Pods};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::request::PortForward;
use crate::session::chain;
use crate::spdy::{Event, Headers, Reader, SpdyError, Status, Writer};
use crate::wire::{Peer, Wire};

/// The protocol's name.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";
/// Pairs at once on one connection.
const PAIRS: usize = 256;
/// Pieces of at most 64 KiB that may wait for a pod's program.
const WAITING: usize = 4;

/// A client's connections to ports of one pod.
struct Forwarder {
    writer: Arc<Writer>,
    network: Arc<PodNetwork>,
    pod: String,
    ports: Vec<u16>,
    peer: Peer,
    /// Half of a pair, by the id that both halves carry.
    halves: HashMap<String, Half>,
    /// Where the data streams' bytes go.
    inputs: HashMap<u32, Input>,
    connections: JoinSet<u32>,
}

#[derive(Debug)]
struct Half {
    port: u16,
    error: Option<u32>,
    /// With what arrives on it.
    data: Option<(u32, mpsc::Receiver<Bytes>)>,
}

struct Input {
    bytes: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
}

/// Serves a client that has switched to SPDY until it leaves.
pub(crate) async fn serve(pods: &Pods, request: PortForward, wire: Wire, idle: Duration) {
    let activity = Arc::new(Activity::new());
    let writer = Arc::new(Writer::new(wire.outgoing, Arc::clone(&activity)));
    let mut reader = Reader::new(wire.incoming, Arc::clone(&writer), Arc::clone(&activity));
    let network = match pods.network(&request.pod) {
        Ok(network) => Arc::new(network),
        Err(error) => {
            tracing::debug!(error = chain(&error), "no port can be forwarded");
            let _ = writer.go_away(0, true).await;
            return;
        }
    };
    let mut forwarder = Forwarder {
        writer: Arc::clone(&writer),
        network,
        pod: request.pod.to_string(),
        ports: request.ports,
        peer: wire.peer,
        halves: HashMap::new(),
        inputs: HashMap::new(),
        connections: JoinSet::new(),
    };
    let served = tokio::select! {
        served = forwarder.run(&mut reader) => served,
        () = activity.idle(idle) => Ok(()),
    };
    if let Err(error) = &served {
        tracing::debug!(%error, "a port-forward client was cut off");
    }
    let _ = writer.go_away(reader.last(), served.is_err()).await;
}

impl Forwarder {
    async fn run(&mut self, reader: &mut Reader) -> Result<(), SpdyError> {
        while let Some(event) = reader.next().await? {
            while let Some(ended) = self.connections.try_join_next() {
                if let Ok(stream) = ended {
                    self.inputs.remove(&stream);
                }
            }
            match event {
                Event::Open { stream, headers, fin } => {
                    if let Some(half) = self.open(stream, &headers, fin) {
                        self.writer.accept(stream).await?;
                        self.connect_if_whole(&half);
                    } else {
                        reader.forget(stream);
                        self.writer.reset(stream, Status::Refused).await?;
                    }
                }
                Event::Data { stream, data, fin } => {
                    let Some(input) = self.inputs.get_mut(&stream) else { continue };
                    if !data.is_empty() && !self.peer.deliver(&mut input.bytes, data).await {
                        return Ok(());
                    }
                    if fin {
                        input.bytes = None;
                    }
                }
                Event::Reset { stream } => {
                    if let Some(input) = self.inputs.remove(&stream) {
                        input.reset.cancel();
                    }
                }
            }
        }
        Ok(())
    }

    /// The id of the pair that a new stream belongs to; none: it is not wanted.
    fn open(&mut self, stream: u32, headers: &Headers, fin: bool) -> Option<String> {
        let port = headers.get("port")?.parse().ok().filter(|port| *port != 0)?;
        let is_data = match headers.get("streamtype")? {
            "data" => true,
            "error" => false,
            _ => return None,
        };
        let allowed = self.ports.is_empty() || self.ports.contains(&port);
        if !allowed || (self.halves.len() + self.connections.len() >= PAIRS) {
            return None;
        }
        // Old clients give no id: they open the data stream right after its error stream.
        let id = match headers.get("requestid") {
            Some(id) => id.to_owned(),
            None if is_data => stream.saturating_sub(2).to_string(),
            None => stream.to_string(),
        };
        let half = self.halves.entry(id.clone()).or_insert(Half { port, error: None, data: None });
        let taken = if is_data { half.data.is_some() } else { half.error.is_some() };
        if half.port != port || taken {
            return None;
        }
        if is_data {
            let (bytes, from_client) = mpsc::channel(WAITING);
            half.data = Some((stream, from_client));
            self.inputs
                .insert(stream, Input { bytes: (!fin).then_some(bytes), reset: CancellationToken::new() });
        } else {
            half.error = Some(stream);
        }
        Some(id)
    }

    fn connect_if_whole(&mut self, id: &str) {
        if self.halves.get(id).is_none_or(|half| half.error.is_none() || half.data.is_none()) {
            return;
        }
        let Some(Half { port, error: Some(error), data: Some((data, from_client)) }) = self.halves.remove(id)
        else {
            return;
        };
        let reset = self.inputs.get(&data).map(|input| input.reset.clone()).unwrap_or_default();
        let pair = Pair { writer: Arc::clone(&self.writer), error, data, reset };
        let (network, pod) = (Arc::clone(&self.network), self.pod.clone());
        self.connections.spawn(async move {
            pair.serve(&network, &pod, port, from_client).await;
            data
        });
    }
}

/// One connection and the two streams that carry it.
struct Pair {
    writer: Arc<Writer>,
    error: u32,
    data: u32,
    reset: CancellationToken,
}

impl Pair {
    async fn serve(&self, network: &PodNetwork, pod: &str, port: u16, from_client: mpsc::Receiver<Bytes>) {
        let connection = tokio::select! {
            connection = network.connect(port) => connection,
            () = self.reset.cancelled() => return,
        };
        let passed = match connection {
            Ok(connection) => self.pass(connection, from_client).await,
            Err(error) => Err(error),
        };
        if let Err(error) = passed {
            tracing::debug!(%error, port, "a port was not forwarded");
            let text = format!("cannot forward to port {port} of pod {pod}: {error}");
            let _ = self.writer.data(self.error, &mut Chunk::of(text.as_bytes())).await;
        }
        if !self.reset.is_cancelled() {
            let _ = self.writer.end(self.data).await;
        }
        let _ = self.writer.end(self.error).await;
    }

    async fn pass(&self, connection: TcpStream, from_client: mpsc::Receiver<Bytes>) -> io::Result<()> {
        connection.set_nodelay(true)?;
        let (from_pod, to_pod) = connection.into_split();
        // What the pod's program does not take any more is no error of its answer, which may be whole.
        let (_, sent) = tokio::join!(upstream(from_client, to_pod), self.downstream(from_pod));
        sent
    }

    async fn downstream(&self, from_pod: OwnedReadHalf) -> io::Result<()> {
        let mut chunk = Chunk::new();
        loop {
            // Never left while a frame is being sent: a frame that is begun must end.
            tokio::select! {
                ready = from_pod.readable() => ready?,
                () = self.reset.cancelled() => return Ok(()),
            }
            match chunk.fill(|bytes| from_pod.try_read_buf(bytes)) {
                Ok(0) => break,
                Ok(_) => self.writer.data(self.data, &mut chunk).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => chunk = Chunk::new(),
                Err(error) => return Err(error),
            }
        }
        self.writer.end(self.data).await
    }
}

/// Ends with the client's half, or when the pod's program takes no more.
async fn upstream(mut from_client: mpsc::Receiver<Bytes>, mut to_pod: OwnedWriteHalf) -> io::Result<()> {
    while let Some(mut bytes) = from_client.recv().await {
        to_pod.write_all_buf(&mut bytes).await?;
    }
    to_pod.shutdown().await
}

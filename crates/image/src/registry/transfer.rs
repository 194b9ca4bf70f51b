//! Bodies: bounded in size, obliged to make progress, and readable by synchronous code.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Http;
use super::endpoint::{Endpoint, Path};
use super::error::FetchError;
use crate::limits::Limits;

/// Times that a transfer is taken up again, and the pause before the first.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(50);
/// Chunks between the network and the unpacker.
const CHUNKS: usize = 32;
/// Bytes that a registry must send in each [`Limits::stall`] of waiting.
const SLOWEST: u64 = 1 << 10;

/// Since the process began.
static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// Bytes of manifests and blobs that registries have sent since the process began.
#[must_use]
pub fn received_bytes() -> u64 {
    RECEIVED.load(Relaxed)
}

/// A body that is watched for progress. Only the time spent waiting for the network counts.
struct Body {
    response: Response,
    url: String,
    stall: Duration,
    waited: Duration,
    received: u64,
    /// Bytes at its beginning that are known already.
    skip: u64,
}

impl Body {
    fn new(response: Response, limits: &Limits) -> Self {
        let mut url = response.url().clone();
        url.set_query(None);
        url.set_fragment(None);
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        Self { response, url: url.into(), stall: limits.stall, waited: Duration::ZERO, received: 0, skip: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let start = Instant::now();
        let chunk = match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Err(_) => return Err(self.stalled()),
            Ok(chunk) => chunk.map_err(|source| FetchError::interrupted(&self.url, source))?,
        };
        self.waited += start.elapsed();
        let length = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        RECEIVED.fetch_add(length, Relaxed);
        self.received += length;
        if self.waited >= self.stall && chunk.is_some() {
            if self.received < SLOWEST {
                return Err(self.stalled());
            }
            (self.waited, self.received) = (Duration::ZERO, 0);
        }
        Ok(chunk)
    }

    fn stalled(&self) -> FetchError {
        FetchError::Stalled { url: self.url.clone(), seconds: self.stall.as_secs() }
    }
}

/// The whole body, if it has at most `limit` bytes.
pub(super) async fn bounded(response: Response, limit: u64, limits: &Limits) -> Result<Vec<u8>, FetchError> {
    let mut body = Body::new(response, limits);
    let mut content = Vec::new();
    while let Some(chunk) = body.next().await? {
        if content.len() as u64 + chunk.len() as u64 > limit {
            return Err(FetchError::TooLarge { url: body.url, limit });
        }
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

/// A task that fetches; dropped, it ends, and so does what reads from it.
#[derive(Debug)]
pub(crate) struct Transfer(JoinHandle<()>);

impl Drop for Transfer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a blob is read from, and read on from when the transfer breaks off.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) http: Arc<Http>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) repository: String,
    pub(super) object: String,
}

impl Blob {
    /// The blob as a blocking reader; a task of its own fetches ahead.
    pub(super) async fn open(self) -> Result<(impl Read + Send + use<>, Transfer), FetchError> {
        let first = self.from(0).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let task = tokio::spawn(async move {
            if let Err(error) = self.send(first, &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok((Chunks { receiver, current: Bytes::new() }, Transfer(task)))
    }

    /// Sends the blob to its reader, beginning anew where it broke off, as long as each try brings something.
    async fn send(&self, mut body: Body, sender: &Sender) -> Result<(), FetchError> {
        let (mut sent, mut tries) = (0, 0);
        loop {
            match self.send_body(body, &mut sent, sender).await {
                Err(error) if error.is_break() && tries < TRIES => {
                    tracing::debug!(%error, sent, "transfer is taken up again");
                    tries += 1;
                    tokio::time::sleep(PAUSE * tries).await;
                    body = self.from(sent).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends what a body has beyond what was sent.
    async fn send_body(&self, mut body: Body, sent: &mut u64, sender: &Sender) -> Result<(), FetchError> {
        while let Some(mut chunk) = body.next().await? {
            let known = body.skip.min(chunk.len() as u64);
            body.skip -= known;
            let chunk = chunk.split_off(usize::try_from(known).unwrap_or(chunk.len()));
            *sent += chunk.len() as u64;
            if !chunk.is_empty() && sender.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn from(&self, offset: u64) -> Result<Body, FetchError> {
        let path = Path { repository: &self.repository, object: &self.object };
        let response = self.endpoint.get_from(&self.http, &path, offset).await?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let right = range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")));
        let mut body = Body::new(response, &self.http.limits);
        match partial {
            true if !right => Err(FetchError::Range { url: body.url, offset }),
            true => Ok(body),
            // It knows no ranges: what is known already comes once more.
            false => {
                body.skip = offset;
                Ok(body)
            }
        }
    }
}

type Sender = mpsc::Sender<Result<Bytes, FetchError>>;

struct Chunks {
    receiver: mpsc::Receiver<Result<Bytes, FetchError>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !buffer.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let length = self.current.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

//! Bodies: bounded in size, obliged to make progress, and readable by synchronous code.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::FetchError;
use crate::limits::Limits;

/// Chunks between the network and the unpacker.
const CHUNKS: usize = 32;
/// Bytes that a registry must send in each [`Limits::stall`] of waiting.
const SLOWEST: u64 = 1 << 10;

/// A body that is watched for progress. Only the time spent waiting for the network counts.
struct Body {
    response: Response,
    url: String,
    stall: Duration,
    waited: Duration,
    received: u64,
}

impl Body {
    fn new(response: Response, limits: &Limits) -> Self {
        let mut url = response.url().clone();
        url.set_query(None);
        url.set_fragment(None);
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        Self { response, url: url.into(), stall: limits.stall, waited: Duration::ZERO, received: 0 }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let start = Instant::now();
        let chunk = match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Err(_) => return Err(self.stalled()),
            Ok(chunk) => chunk.map_err(|source| FetchError::interrupted(&self.url, source))?,
        };
        self.waited += start.elapsed();
        self.received += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
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

/// The body as a blocking reader; a task of its own fetches ahead.
pub(super) fn reader(response: Response, limits: &Limits) -> (impl Read + Send + use<>, Transfer) {
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let mut body = Body::new(response, limits);
    let task = tokio::spawn(async move {
        loop {
            let next = body.next().await.transpose();
            let Some(chunk) = next else { return };
            let failed = chunk.is_err();
            if sender.send(chunk).await.is_err() || failed {
                return;
            }
        }
    });
    (Chunks { receiver, current: Bytes::new() }, Transfer(task))
}

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

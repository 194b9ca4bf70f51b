//! One span per RPC, with what it is about: handlers record `pod`, `container` and `image` in it, this layer the outcome. And the count of calls under
//! way, which the end of the daemon waits for.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::sync::watch;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::{self, Empty};
use tracing::{Instrument, Span};

use crate::metrics::Rpcs;
use crate::telemetry;

/// The calls under way.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<watch::Sender<()>>);

impl Calls {
    /// Counts one call for as long as the value lives.
    pub fn enter(&self) -> Call {
        Call(self.0.subscribe())
    }

    /// Waits until there is none.
    pub async fn none(&self) {
        self.0.closed().await;
    }
}

/// See [`Calls::enter`].
#[derive(Debug)]
pub struct Call(#[expect(dead_code, reason = "held to be counted")] watch::Receiver<()>);

/// Wraps a gRPC service.
#[derive(Debug, Clone)]
pub struct RpcSpan {
    pub calls: Calls,
    pub rpcs: Rpcs,
    /// Spans go to a collector: the caller's span, if it names one, is their parent.
    pub traced: bool,
}

impl<S> Layer<S> for RpcSpan {
    type Service = InSpan<S>;

    fn layer(&self, inner: S) -> InSpan<S> {
        InSpan { inner, calls: self.calls.clone(), rpcs: self.rpcs.clone(), traced: self.traced }
    }
}

/// See [`RpcSpan`].
#[derive(Debug, Clone)]
pub struct InSpan<S> {
    inner: S,
    calls: Calls,
    rpcs: Rpcs,
    traced: bool,
}

impl<S, B, R> Service<Request<B>> for InSpan<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let rpc = name(request.uri().path());
        let span = span(&rpc);
        if self.traced {
            telemetry::adopt(&span, request.headers());
        }
        let rpcs = self.rpcs.clone();
        let call = self.calls.enter();
        let answer = self.inner.call(request);
        let timed = async move {
            let _call = call;
            let started = Instant::now();
            let answer = answer.await;
            if let Ok(answer) = &answer {
                let elapsed = started.elapsed();
                rpcs.answered(rpc, finish(answer, elapsed), elapsed);
            }
            answer
        };
        Box::pin(timed.instrument(span))
    }
}

/// `/runtime.v1.RuntimeService/RunPodSandbox` is the RPC RunPodSandbox.
fn name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn span(rpc: &str) -> Span {
    tracing::info_span!(
        "rpc",
        rpc,
        pod = Empty,
        container = Empty,
        image = Empty,
        code = Empty,
        elapsed_us = Empty
    )
}

/// An error that a handler returns at once has its code in the header; a stream's comes later and is its own to log.
fn finish<R>(answer: &Response<R>, elapsed: Duration) -> Code {
    let status = Status::from_header_map(answer.headers());
    let code = status.as_ref().map_or(Code::Ok, Status::code);
    let span = Span::current();
    span.record("code", field::debug(code));
    span.record("elapsed_us", u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX));
    match status {
        None => tracing::debug!("answered"),
        Some(status) if cri::error::is_internal(code) => {
            tracing::error!(error = status.message(), "failed");
        }
        Some(status) => tracing::info!(error = status.message(), "refused"),
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_the_last_call() {
        let calls = Calls::default();
        calls.none().await;
        let call = calls.enter();
        let ended = tokio::spawn({
            let calls = calls.clone();
            async move { calls.none().await }
        });
        tokio::task::yield_now().await;
        assert!(!ended.is_finished());
        drop(call);
        ended.await.unwrap();
    }
}

//! The deadline that a client sends with a call (`grpc-timeout`, gRPC over HTTP/2).
//!
//! tonic watches it too, but answers `Canceled`, where gRPC and the kubelet want `DeadlineExceeded`. This layer lies inside
//! of tonic's and starts its timer first, so its answer is the one that is sent.

use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tower::{Layer, Service};

/// Wraps a gRPC service.
#[derive(Debug, Clone, Copy)]
pub struct Deadline;

impl<S> Layer<S> for Deadline {
    type Service = Within<S>;

    fn layer(&self, inner: S) -> Within<S> {
        Within { inner }
    }
}

/// See [`Deadline`].
#[derive(Debug, Clone)]
pub struct Within<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Within<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let left = timeout(request.headers());
        let answer = self.inner.call(request);
        let Some(left) = left else { return Box::pin(answer) };
        let answer = tokio::time::timeout(left, answer); // runs from here, not from the first poll
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| {
                let late = format!("the caller's deadline of {left:?} has passed");
                Ok(Status::deadline_exceeded(late).into_http())
            })
        })
    }
}

fn timeout(headers: &HeaderMap) -> Option<Duration> {
    cri::deadline::parse(headers.get("grpc-timeout")?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_late_answer_is_deadline_exceeded() {
        for (sent, code) in [("1m", Some(tonic::Code::DeadlineExceeded)), ("60S", None)] {
            let slow = tower::service_fn(async |_: Request<()>| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::convert::Infallible>(Response::new(String::new()))
            });
            let request = Request::builder().header("grpc-timeout", sent).body(()).unwrap();
            let answer = Deadline.layer(slow).oneshot(request).await.unwrap();
            assert_eq!(Status::from_header_map(answer.headers()).map(|status| status.code()), code);
        }
    }
}

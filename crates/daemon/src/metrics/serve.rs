//! `GET /metrics`, and nothing else, over HTTP/1.1.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Metrics;

/// A Prometheus has one connection; more wait.
const CONNECTIONS: usize = 16;
/// A connection that has sent no whole request by then is closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(600);
/// Registered by the OpenMetrics specification 1.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for metrics; configure another metrics.listen")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Serves `metrics` on `address` for as long as the runtime lives.
pub async fn serve(address: SocketAddr, metrics: Metrics) -> Result<(), ListenError> {
    let listener = TcpListener::bind(address).await.map_err(|source| ListenError { address, source })?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let Ok((stream, _)) = listener.accept().await else {
                // Errors of one connection, or no descriptors left: accept(2).
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let _ = tokio::time::timeout(LIFE, converse(stream, metrics)).await;
            });
        }
    });
    Ok(())
}

async fn converse(stream: TcpStream, metrics: Metrics) {
    let service = service_fn(move |request| {
        let metrics = metrics.clone();
        async move { Ok::<_, Infallible>(answer(&request, &metrics)) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics ended");
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<String> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match metrics.text() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    let kind = if status == StatusCode::OK { OPEN_METRICS } else { "text/plain" };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

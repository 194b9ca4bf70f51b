//! The life of the daemon, from flags to exit.

use std::io;
use std::path::PathBuf;

use api::meridian::v1::Feature;
use api::meridian::v1::meridian_server::MeridianServer;
use streaming::Streaming;
use tokio::runtime::{Builder, Runtime};

use crate::config::{Config, ConfigError};
use crate::deadline::Deadline;
use crate::doctor::Subject;
use crate::exclusive::{Claim, ClaimError};
use crate::flags::Flags;
use crate::logging::Logging;
use crate::memory;
use crate::meridian::Meridian;
use crate::metrics::{self, Metrics};
use crate::migrate::{self, Migrations};
use crate::node::{Node, OpenError, abilities, shim};
use crate::notify::{READY, STOPPING, notify, notify_reloading};
use crate::probe;
use crate::reload::Reload;
use crate::server::{MESSAGE_LIMIT, builder, connections};
use crate::shutdown::{GRACE, LAST_WORDS, Signals};
use crate::socket::{SocketError, listen};
use crate::span::{Calls, RpcSpan};
use crate::telemetry::Exporter;

/// Why the daemon did not start, or ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Migrations(#[from] migrate::OpenError),
    #[error(transparent)]
    Streaming(#[from] streaming::StartError),
    #[error("start threads")]
    Threads(#[source] io::Error),
    #[error("catch signals")]
    Signals(#[source] io::Error),
    #[error("send spans to tracing.endpoint")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error(transparent)]
    Metrics(#[from] metrics::ListenError),
    #[error("serve on the socket")]
    Serve(#[source] io::Error),
    #[error("serve gRPC")]
    Grpc(#[from] tonic::transport::Error),
}

/// Runs until a signal asks to end.
pub fn run(
    flags: &Flags,
    config: Config,
    logging: Logging,
    exporter: Option<Exporter>,
) -> Result<(), RunError> {
    let _root = Claim::take(&flags.root)?;
    let _run = Claim::take(&flags.run)?;
    let features = probe::run(&flags.root, &config.criu.command, config.network.masquerade);
    report(&features);
    memory::share_heaps();
    let runtime = runtime().map_err(RunError::Threads)?;
    let served = runtime.block_on(async {
        let exporting = exporter.map(Exporter::start).transpose()?;
        let served = serve(flags, config, features, logging).await;
        if let Some(exporting) = exporting {
            exporting.end().await;
        }
        served
    });
    // Blocking work whose caller is gone does not hold up the end.
    runtime.shutdown_background();
    served
}

/// Two workers: the daemon waits far more than it works, and every thread costs memory on every node.
fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).thread_name("meridiand").enable_all().build()
}

fn report(features: &[Feature]) {
    let mut missing = Vec::new();
    for feature in features.iter().filter(|feature| !feature.available) {
        let (name, detail) = (feature.name.as_str(), &feature.detail);
        if feature.required {
            tracing::error!(name, detail, "pods cannot run without this feature");
        } else {
            tracing::debug!(name, detail, "feature not available");
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        tracing::info!(
            missing = missing.join(" "),
            "some features are not available; meridian doctor tells why"
        );
    }
}

async fn serve(
    flags: &Flags,
    config: Config,
    features: Vec<Feature>,
    logging: Logging,
) -> Result<(), RunError> {
    let mut signals = Signals::catch().map_err(RunError::Signals)?;
    let socket = flags.socket.clone().unwrap_or_else(|| flags.run.join("meridian.sock"));
    // Clients that come while pods are recovered wait for their answer instead of finding no daemon.
    let listener = listen(&socket)?;
    let node = Node::open(flags, &config, &features).await.inspect_err(|_| remove(&socket))?;
    let streaming = Streaming::start(&config.streaming.lowered(), node.pods.clone()).await?;
    let abilities = abilities(flags, &config, &features);
    let runtime_service = cri::runtime_service(node.pods.clone(), node.images.clone(), streaming, abilities);
    let image_service = cri::image_service(node.pods.clone(), node.images.clone());
    let metrics = Metrics::new(node.pods.clone(), node.images.clone());
    let migrations = match &config.peer {
        Some(peer) => Some(Migrations::open(peer, &flags.root, node.pods.clone(), metrics.moves()).await?),
        None => None,
    };
    if let Some(section) = &config.metrics {
        metrics::serve(section.listen, metrics.clone()).await?;
    }
    let traced = config.tracing.is_some();
    let subject = subject(flags, &config, &node, features);
    let mut reload = Reload::new(flags, logging, node.images.clone(), config);
    let meridian = Meridian::new(node, subject, migrations);
    let meridian = MeridianServer::new(meridian).max_decoding_message_size(MESSAGE_LIMIT);
    let connections = connections(listener).map_err(RunError::Serve)?;
    tokio::spawn(memory::keep_small());
    let calls = Calls::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = builder()
        .layer(RpcSpan { calls: calls.clone(), rpcs: metrics.rpcs(), traced })
        .layer(Deadline)
        .add_service(runtime_service)
        .add_service(image_service)
        .add_service(meridian)
        .serve_with_incoming_shutdown(connections, async {
            let _ = stopped.await;
        });
    let mut server = tokio::spawn(server);
    tracing::info!("meridiand ready on {}", socket.display());
    notify(READY);
    tokio::select! {
        ended = &mut server => return Ok(ended.map_err(|panic| RunError::Serve(panic.into()))??),
        signal = signals.end(|| told(&mut reload)) => tracing::info!(signal, "ending; pods run on"),
    }
    notify(STOPPING);
    let _ = stop.send(());
    remove(&socket);
    tokio::select! {
        () = calls.none() => {}
        () = tokio::time::sleep(GRACE) => tracing::warn!(seconds = GRACE.as_secs(), "calls under way were cut off"),
        signal = signals.end(|| ()) => tracing::warn!(signal, "asked again: calls under way were cut off"),
    }
    // Answers are written; connections that clients keep open are not waited for.
    let _ = tokio::time::timeout(LAST_WORDS, server).await;
    Ok(())
}

/// What `meridian doctor` looks at.
fn subject(flags: &Flags, config: &Config, node: &Node, features: Vec<Feature>) -> Subject {
    Subject {
        pods: node.pods.clone(),
        network: node.network.clone(),
        root: flags.root.clone(),
        run: flags.run.clone(),
        file: flags.config.clone(),
        config: config.clone(),
        shim: shim(flags, config).unwrap_or_default(),
        features,
    }
}

/// Reloads, and tells the service manager, whose `systemctl reload` waits for the end of it.
fn told(reload: &mut Reload) {
    notify_reloading();
    reload.run();
    notify(READY);
}

/// A client that finds no socket is told at once that no daemon runs.
fn remove(socket: &PathBuf) {
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, "the socket was not removed");
    }
}

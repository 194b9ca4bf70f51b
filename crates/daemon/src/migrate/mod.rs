//! Moves between this node and others: who this node is to them, who comes in, and what a daemon that ended left open.
//!
//! ```text
//! Migrate RPC ─▶ Migrations::start ─▶ Pods::begin_move ─▶ transport::move_pod ─▶ events, result
//! peers ─TLS──▶ listener ─▶ transport::serve ─▶ NodePods::receive ─▶ a pod that runs here
//! start ──────▶ recover: journal ─▶ remove, thaw, release, or ask the other node until it answers
//! ```

mod listener;
mod recover;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::id::{MigrationId, PodId};
use api::meridian::v1 as meridian;
use migration::clock::Policy;
use migration::transport::{
    EpochState, Estimate, Host, Identity, IdentityError, Journal, JournalError, Move, MoveError, Progress,
    Record, Report, move_pod,
};
use pod::{NodePods, Pods};
use prost::Message;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::config::Peer;
use crate::metrics::Moves;

/// Why moves cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("load the certificates of [peer]")]
    Identity(#[from] IdentityError),
    #[error("open the journal of moves")]
    Journal(#[from] JournalError),
    #[error("listen for other nodes on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
}

/// Why a pod was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(transparent)]
    Claim(#[from] pod::MoveError),
    #[error("the pod was not moved and runs on here")]
    Stayed(#[source] MoveError),
    #[error("the outcome is not known")]
    Unknown(#[source] MoveError),
}

/// What a move is told with.
#[derive(Debug)]
pub enum Event {
    Progress(Progress),
    Result(Box<meridian::MigrateResult>),
}

/// This node among others. Clones are the same.
#[derive(Debug, Clone)]
pub struct Migrations {
    pods: Pods,
    identity: Identity,
    journal: Arc<Journal>,
    moves: Moves,
}

impl Migrations {
    /// Loads the certificates, settles what was left open as far as this node can alone, and listens.
    pub async fn open(peer: &Peer, root: &Path, pods: Pods, moves: Moves) -> Result<Self, OpenError> {
        let identity = Identity::load(&peer.certificate, &peer.key, &peer.ca)?;
        let journal = Arc::new(Journal::open(&root.join("migrations"))?);
        let migrations = Self { pods, identity, journal, moves };
        recover::all(&migrations).await?;
        let host = Host {
            destination: NodePods(migrations.pods.clone()),
            journal: Arc::clone(&migrations.journal),
            estimate: Estimate::default(),
        };
        listener::start(peer.listen, migrations.identity.clone(), host)
            .await
            .map_err(|source| OpenError::Listen { address: peer.listen, source })?;
        Ok(migrations)
    }

    /// Moves a pod, telling `events`. Goes on when nobody listens any more.
    pub async fn migrate(
        &self,
        pod: &PodId,
        peer: String,
        policy: Policy,
        timeout: Duration,
        events: mpsc::Sender<Event>,
    ) -> Result<(), MigrateError> {
        let before = self.namespaces(pod).await;
        let moving = self.pods.begin_move(pod).await?;
        let request = Move { migration: MigrationId::random().to_string(), peer, policy, timeout };
        let (progress, steps) = mpsc::unbounded_channel();
        let telling = tokio::spawn(tell(steps, events.clone()));
        let span = tracing::info_span!("migration", pod = pod.short(), migration = %&request.migration[..13]);
        let moved = move_pod(&moving, &request, &self.identity, &self.journal, Some(progress));
        let moved = moved.instrument(span).await;
        drop(moving);
        let _told = telling.await;
        match moved {
            Ok(report) => {
                self.moves.moved(&report);
                tracing::info!(pod = %pod, peer = request.peer, downtime_ms = report.downtime / 1_000_000, "pod moved");
                let _nobody_listens = events.send(Event::Result(Box::new(result(report, before)))).await;
                Ok(())
            }
            Err(error @ MoveError::Unresolved { .. }) => {
                self.moves.ended("unknown");
                self.settle_later(&request.migration);
                Err(MigrateError::Unknown(error))
            }
            Err(error) => {
                self.moves.ended("stayed");
                Err(MigrateError::Stayed(error))
            }
        }
    }

    fn settle_later(&self, migration: &str) {
        if let Ok(Some(epoch)) = self.journal.get(migration)
            && epoch.state == EpochState::SourceCommitting
        {
            tokio::spawn(recover::settle(self.clone(), epoch));
        }
    }

    async fn namespaces(&self, pod: &PodId) -> Vec<meridian::Namespace> {
        let (pods, pod) = (self.pods.clone(), pod.clone());
        let found = tokio::task::spawn_blocking(move || pods.namespaces(&pod)).await;
        found.ok().and_then(Result::ok).map_or_else(Vec::new, |found| found.namespaces)
    }
}

async fn tell(mut steps: mpsc::UnboundedReceiver<Progress>, events: mpsc::Sender<Event>) {
    while let Some(step) = steps.recv().await {
        if events.send(Event::Progress(step)).await.is_err() {
            return;
        }
    }
}

fn result(report: Report, source_namespaces: Vec<meridian::Namespace>) -> meridian::MigrateResult {
    let namespaces =
        report.namespaces.iter().filter_map(|bytes| meridian::Namespace::decode(bytes.clone()).ok());
    meridian::MigrateResult {
        migration_id: report.migration,
        source_pod: report.source_pod,
        destination_pod: report.destination_pod,
        phases: report.phases.into_iter().map(phase).collect(),
        downtime_ns: report.downtime,
        monotonic_jump_ns: report.monotonic_jump,
        boottime_jump_ns: report.boottime_jump,
        late_ns: report.late,
        bytes: report.bytes,
        source_namespaces,
        destination_namespaces: namespaces.collect(),
    }
}

fn phase(record: Record) -> meridian::Phase {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    meridian::Phase {
        role: record.role.name().to_owned(),
        name: record.name,
        start_ns: ns(record.start),
        duration_ns: ns(record.duration),
        frozen: record.frozen,
    }
}

//! The phases of a migration: one vocabulary for spans, progress, results and metrics.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::Instrument;

/// Which side a phase is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Where the pod was.
    Source,
    /// Where it goes.
    Destination,
}

impl Role {
    /// As users read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// A step of one side, in the order they begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Both: connect, check versions and needs, until the other side is prepared.
    Negotiate,
    /// Destination: image, sandbox, network, volumes.
    Prepare,
    /// Source: stop all tasks at one instant.
    Freeze,
    /// Source: CRIU takes the tasks' state; memory goes out meanwhile.
    Dump,
    /// Source: changes of root filesystems and `/dev/shm`.
    Diff,
    /// Source: what is not memory.
    Send,
    /// Destination: take it all in, check and apply it.
    Receive,
    /// Destination: CRIU reads its images up to where it needs the pod's clocks; plan the release, make the time namespace.
    Clocks,
    /// Destination: CRIU makes the tasks again, held.
    Restore,
    /// Destination: until the planned instant, and go.
    Resume,
    /// Both: the commit.
    Confirm,
    /// Source: remove the pod.
    Release,
}

impl Phase {
    /// As users read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Negotiate => "negotiate",
            Self::Prepare => "prepare",
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Diff => "diff",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Clocks => "clocks",
            Self::Restore => "restore",
            Self::Resume => "resume",
            Self::Confirm => "confirm",
            Self::Release => "release",
        }
    }

    /// Whether the pod runs nowhere meanwhile.
    #[must_use]
    pub fn frozen(self) -> bool {
        !matches!(self, Self::Negotiate | Self::Prepare | Self::Release)
    }
}

/// One phase that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which side.
    pub role: Role,
    /// [`Phase::name`]; a string because the other side's come over the wire.
    pub name: String,
    /// Since the migration began.
    pub start: Duration,
    /// How long.
    pub duration: Duration,
    /// [`Phase::frozen`].
    pub frozen: bool,
}

/// What a user sees while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The phase that began.
    pub phase: Phase,
    /// Sent so far.
    pub bytes: u64,
    /// About how many there will be, 0: not known.
    pub total: u64,
}

/// Times the phases of one side and tells of them.
#[derive(Debug)]
pub(super) struct Phases {
    role: Role,
    began: Instant,
    records: Mutex<Vec<Record>>,
    meter: Meter,
}

/// Tells of bytes that went out.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    progress: Option<mpsc::UnboundedSender<Progress>>,
    sent: Arc<AtomicU64>,
    total: u64,
}

/// Bytes between two tellings.
const STRIDE: u64 = 4 << 20;

impl Meter {
    /// `bytes` more went out.
    pub fn add(&self, phase: Phase, bytes: u64) {
        let before = self.sent.fetch_add(bytes, Ordering::Relaxed);
        if before / STRIDE != (before + bytes) / STRIDE {
            self.tell(phase);
        }
    }

    fn tell(&self, phase: Phase) {
        if let Some(progress) = &self.progress {
            let bytes = self.sent.load(Ordering::Relaxed);
            // Nobody may be looking any more.
            let _ = progress.send(Progress { phase, bytes, total: self.total.max(bytes) });
        }
    }
}

impl Phases {
    pub fn new(role: Role, progress: Option<mpsc::UnboundedSender<Progress>>, total: u64) -> Self {
        let meter = Meter { progress, sent: Arc::default(), total };
        Self { role, began: Instant::now(), records: Mutex::default(), meter }
    }

    /// For those who send.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// Runs `work` as `phase`: a span and a record.
    pub async fn run<T>(&self, phase: Phase, work: impl Future<Output = T>) -> T {
        self.meter.tell(phase);
        let start = Instant::now();
        let span = tracing::info_span!("migration phase", role = self.role.name(), phase = phase.name());
        let result = work.instrument(span).await;
        let record = Record {
            role: self.role,
            name: phase.name().to_owned(),
            start: start - self.began,
            duration: start.elapsed(),
            frozen: phase.frozen(),
        };
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        result
    }

    /// In the order in which they began.
    pub fn records(&self) -> Vec<Record> {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner).clone();
        records.sort_by_key(|record| record.start);
        records
    }
}

//! The frozen part of a checkpoint: as short as it can be, and always over when it returns.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::shim::v1::{DumpResponse, FreezeResponse};
use migration::clock::ClockReading;
use migration::tree::{self, Source};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use tokio::task::JoinSet;
use tracing::{Instrument, debug_span};

use super::{CheckpointError, Subject, Work};
use crate::check::{Obstacles, obstacles};
use crate::container::Container;
use crate::pod::Pod;
use crate::shim::{CallError, Client};

/// A container as it was at the cut.
#[derive(Debug)]
pub(super) struct Taken {
    pub container: Arc<Container>,
    /// Directory of CRIU's images.
    pub images: OwnedFd,
    /// What its descriptors 0, 1 and 2 were.
    pub descriptors: Vec<String>,
    /// What changed in its root filesystem: a tar.
    pub diff: File,
    /// What is gone from it.
    pub deleted: Vec<PathBuf>,
}

/// A pod at one instant.
#[derive(Debug)]
pub(super) struct Cut {
    pub clocks: ClockReading,
    pub taken: Vec<Taken>,
    /// Contents of the pod's /dev/shm: a tar.
    pub shm: Option<File>,
}

/// Where the pieces of one container go.
struct Pieces {
    images: OwnedFd,
    diff: File,
    deleted: File,
}

/// Captures `subject` into `work`. The pod runs when this returns, whatever came of it.
pub(super) async fn take(subject: &Subject, work: &Work) -> Result<Cut, CheckpointError> {
    let client = subject.pod.client().ok_or_else(|| gone(&subject.pod))?;
    let found = obstacles(client, &subject.containers).await;
    let found = found.map_err(|source| failed("check", subject.pod.id.to_string(), source))?;
    if !found.is_empty() {
        return Err(CheckpointError::Obstacles(Obstacles(found)));
    }
    let pieces: Vec<_> = subject.containers.iter().map(|c| Pieces::new(work, c)).collect::<Result<_, _>>()?;
    let shm = if subject.pod.node_ipc() { None } else { Some(file(work, "shm")?) };
    let mut dumps = start_dumps(subject, client, &pieces).instrument(debug_span!("begin dumps")).await?;
    let ids: Vec<_> = subject.containers.iter().map(|c| c.id().to_string()).collect();
    let began = Instant::now();
    let frozen = client.freeze(ids, subject.left(), subject.left()).instrument(debug_span!("freeze")).await;
    let captured = match frozen {
        Ok(frozen) => {
            migration::fault::die_at("frozen");
            let capture = capture(subject, client, &pieces, shm.as_ref(), &mut dumps);
            let captured = tokio::time::timeout_at(subject.deadline, capture);
            let captured = captured.instrument(debug_span!("dump")).await;
            let late = Err(CheckpointError::Deadline { limit: subject.limit });
            captured.unwrap_or(late).map(|dumped| (dumped, frozen))
        }
        Err(source) => Err(failed("freeze", subject.pod.id.to_string(), source)),
    };
    resume(subject, client, captured.is_ok()).instrument(debug_span!("resume")).await?;
    if captured.is_ok() {
        subject.pod.node.captures.add(began.elapsed());
    }
    // After a failure CRIU may still be undoing its work, in files that are about to be removed.
    let _ =
        tokio::time::timeout(Duration::from_secs(5), async { while dumps.join_next().await.is_some() {} })
            .await;
    let (dumped, frozen) = captured?;
    collect(subject, pieces, dumped, shm, &frozen)
}

/// Lets the pod run. A failure counts only if the capture went well: else the pod may never have been frozen.
async fn resume(subject: &Subject, client: &Client, frozen: bool) -> Result<(), CheckpointError> {
    match client.resume(false).await {
        Err(source) if frozen => {
            // The last resort is not the shim's.
            subject.pod.node.cgroups.thaw(&subject.pod.cgroup);
            Err(failed("resume", subject.pod.id.to_string(), source))
        }
        _ => Ok(()),
    }
}

type Dumps = JoinSet<(usize, Result<DumpResponse, CallError>)>;

/// Starts CRIU for every container; it waits for the freeze.
async fn start_dumps(
    subject: &Subject,
    client: &Client,
    pieces: &[Pieces],
) -> Result<Dumps, CheckpointError> {
    let mut dumps = JoinSet::new();
    for (at, (container, pieces)) in subject.containers.iter().zip(pieces).enumerate() {
        let id = container.id().as_str();
        let begun = client.begin_dump(id, pieces.images.as_fd(), None, subject.left()).await;
        let pending = begun.map_err(|source| failed("dump", id.to_owned(), source))?;
        dumps.spawn(async move { (at, pending.wait().await) });
    }
    Ok(dumps)
}

/// What is done while the pod is frozen.
async fn capture(
    subject: &Subject,
    client: &Client,
    pieces: &[Pieces],
    shm: Option<&File>,
    dumps: &mut Dumps,
) -> Result<Vec<DumpResponse>, CheckpointError> {
    let dumped = async {
        let mut all: Vec<Option<DumpResponse>> = vec![None; pieces.len()];
        while let Some(joined) = dumps.join_next().await {
            let (at, result) = joined.map_err(|_| CheckpointError::Interrupted)?;
            let object = || subject.containers[at].id().to_string();
            all[at] = Some(result.map_err(|source| failed("dump", object(), source))?);
        }
        all.into_iter().collect::<Option<Vec<_>>>().ok_or(CheckpointError::Interrupted)
    };
    let diffs = async {
        for (container, pieces) in subject.containers.iter().zip(pieces) {
            pieces.diff(&subject.pod, client, container, subject.left()).await?;
        }
        Ok(())
    };
    let saved = save_shm(&subject.pod, shm);
    let (dumped, (), ()) = tokio::try_join!(dumped, diffs, saved)?;
    Ok(dumped)
}

async fn save_shm(pod: &Pod, into: Option<&File>) -> Result<(), CheckpointError> {
    let Some(into) = into else { return Ok(()) };
    let path = pod.files().shm();
    let unreadable = |source| CheckpointError::File { path: path.clone(), source };
    let into = into.try_clone().map_err(unreadable)?;
    let directory = File::open(&path).map_err(unreadable)?;
    let pack = move || tree::pack(directory, io::BufWriter::new(into), Source::Plain).map(drop);
    let packed = tokio::task::spawn_blocking(pack).await;
    Ok(packed.map_err(|_| CheckpointError::Interrupted)??)
}

fn collect(
    subject: &Subject,
    pieces: Vec<Pieces>,
    dumped: Vec<DumpResponse>,
    shm: Option<File>,
    frozen: &FreezeResponse,
) -> Result<Cut, CheckpointError> {
    let clocks = frozen.clocks.unwrap_or_default();
    let frozen_for = Duration::from_nanos(frozen.frozen_at.saturating_sub(frozen.froze_at));
    tracing::debug!(pod = %subject.pod.id, ?frozen_for, "frozen and resumed");
    let mut taken = Vec::new();
    for ((container, pieces), dumped) in subject.containers.iter().zip(pieces).zip(dumped) {
        let Pieces { images, diff, mut deleted } = pieces;
        let mut text = String::new();
        let read = deleted.rewind().and_then(|()| deleted.read_to_string(&mut text));
        read.map_err(|source| CheckpointError::File { path: "deleted.files".into(), source })?;
        taken.push(Taken {
            container: Arc::clone(container),
            images,
            descriptors: serde_json::from_str(&dumped.descriptors).unwrap_or_default(),
            diff,
            deleted: serde_json::from_str(&text).unwrap_or_default(),
        });
    }
    let clocks =
        ClockReading { monotonic: clocks.monotonic, boottime: clocks.boottime, realtime: clocks.realtime };
    Ok(Cut { clocks, taken, shm })
}

impl Pieces {
    fn new(work: &Work, container: &Container) -> Result<Self, CheckpointError> {
        let id = container.id().as_str();
        let failed = |e: sys::Errno| CheckpointError::File { path: work.path.join(id), source: e.into() };
        mkdirat(&work.directory, id, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let images = openat(&work.directory, id, flags, Mode::empty()).map_err(failed)?;
        let (diff, deleted) = (file(work, &format!("{id}.diff"))?, file(work, &format!("{id}.deleted"))?);
        Ok(Self { images, diff, deleted })
    }

    async fn diff(
        &self,
        pod: &Pod,
        client: &Client,
        container: &Container,
        limit: Duration,
    ) -> Result<(), CheckpointError> {
        let id = container.id();
        let path = pod.node.container_dir(id).join("upper");
        let upper = File::open(&path).map_err(|source| CheckpointError::File { path, source })?;
        let done =
            client.diff(id.as_str(), upper.as_fd(), self.diff.as_fd(), self.deleted.as_fd(), limit).await;
        done.map_err(|source| failed("root filesystem diff", id.to_string(), source))
    }
}

fn file(work: &Work, name: &str) -> Result<File, CheckpointError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let made = openat(&work.directory, name, flags, Mode::from_raw_mode(0o600));
    made.map(File::from).map_err(|e| CheckpointError::File { path: work.path.join(name), source: e.into() })
}

fn failed(step: &'static str, object: String, source: CallError) -> CheckpointError {
    CheckpointError::Shim { step, object, source }
}

fn gone(pod: &Pod) -> CheckpointError {
    failed("checkpoint", pod.id.to_string(), CallError::Gone)
}

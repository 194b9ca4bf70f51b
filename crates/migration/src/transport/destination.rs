//! The side that the pod comes to.
//!
//! Everything up to the commit can be undone, and is when anything fails: the source runs on. After the commit the
//! pod is this node's, whatever becomes of the connection.

use std::fs::File as StdFile;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::id::{MigrationId, PodId};
use api::peer::v1::{
    Accepted, Confirmed, Cut, Hello, Offer, PageReply, PagesEnd, Prepared, Resolve, Resolved, Restored,
    file::Kind, frame::Body,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Connection, Incoming, Outgoing};
use super::error::MoveError;
use super::estimate::{Estimate, weight};
use super::files::{Arrived, Incoming as IncomingFile, Total};
use super::journal::{Epoch, EpochState, Journal};
use super::pages::{PageError, PageReceiver};
use super::phase::{Phase, Phases, Role};
use super::pod::{Destination, DestinationPod};
use super::protocol::{VERSION, needs_from_wire, phase_to_wire, policy_from_wire};
use crate::clock::{self, ClockReading, Policy, Release};
use crate::fault;
use crate::manifest::Needs;

/// Longest that a source may ask for.
const LONGEST: Duration = Duration::from_secs(3600);
/// Most containers of a pod.
const MOST_CONTAINERS: usize = 1000;
/// Pieces of memory that wait to be written, a container.
const QUEUED_PIECES: usize = 16;
/// How long the other side may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// What a node needs to take pods in.
#[derive(Debug)]
pub struct Host<D> {
    /// Its pods.
    pub destination: D,
    /// Its decisions.
    pub journal: Arc<Journal>,
    /// Its experience.
    pub estimate: Estimate,
}

/// Serves one connection of another node; the id of the pod if one came. Every error was told to the other side and
/// left nothing here.
pub async fn serve<D: Destination>(
    host: &Host<D>,
    peer: &str,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
) -> Result<Option<String>, MoveError> {
    let mut connection = Connection::new(peer, stream);
    let result = match connection.incoming.receive("negotiate").await {
        Ok(Body::Hello(hello)) => take_in(host, &mut connection, hello).await.map(Some),
        Ok(Body::Resolve(question)) => {
            answer(&host.journal, &connection.outgoing, &question).await.map(|()| None)
        }
        Ok(other) => Err(connection.incoming.unexpected(&other, "Hello")),
        Err(error) => Err(error),
    };
    if let Err(error) = &result
        && !matches!(error, MoveError::Lost { .. } | MoveError::Refused { .. })
    {
        let _gone_too = connection.outgoing.send(Body::Abort(error.to_abort()), "abort").await;
    }
    let _written = timeout(CLOSE, connection.close()).await;
    result
}

async fn answer(journal: &Journal, out: &Outgoing, question: &Resolve) -> Result<(), MoveError> {
    let id = checked_id(out, question.version, &question.migration_id)?;
    let epoch = journal.resolve(id.as_str(), &hex::encode(&question.ticket))?;
    let epoch = epoch.ok_or_else(|| out.malformed("a wrong ticket"))?;
    let committed = epoch.state == EpochState::DestinationCommitted;
    out.send(Body::Resolved(Resolved { committed, pod_id: epoch.pod }), "resolve").await
}

fn checked_id(out: &Outgoing, version: u32, id: &str) -> Result<MigrationId, MoveError> {
    if version != VERSION {
        return Err(out.malformed(format!("protocol version {version}, this node speaks {VERSION}")));
    }
    id.parse().map_err(|error| out.malformed(format!("migration {error}")))
}

async fn take_in<D: Destination>(
    host: &Host<D>,
    connection: &mut Connection,
    hello: Hello,
) -> Result<String, MoveError> {
    let out = connection.outgoing.clone();
    let migration = checked_id(&out, hello.version, &hello.migration_id)?;
    let policy = policy_from_wire(hello.clock());
    needs_from_wire(hello.needs.unwrap_or_default()).met_by(&Needs::of_this_node())?;
    let offer = hello.offer.filter(|offer| (1..=MOST_CONTAINERS).contains(&offer.containers.len()));
    let offer = offer.ok_or_else(|| out.malformed("an offer without containers"))?;
    let allowed = Duration::from_millis(hello.timeout_ms).min(LONGEST);
    let deadline = Instant::now() + allowed;
    let too_late = || MoveError::Deadline { seconds: allowed.as_secs_f64() };
    let phases = Phases::new(Role::Destination, None, 0);
    let mut ticket = [0; 32];
    getrandom::fill(&mut ticket).expect("getrandom(2) does not fail once the system has booted");
    let ticket = Bytes::copy_from_slice(&ticket);
    out.send(Body::Accepted(Accepted { ticket: ticket.clone() }), "negotiate").await?;
    let containers = offer.containers.len();
    let id = PodId::random();
    let epoch = Epoch {
        version: 1,
        migration: migration.to_string(),
        pod: id.to_string(),
        peer: String::new(),
        ticket: hex::encode(&ticket),
        state: EpochState::DestinationReceiving,
    };
    // Before there is anything of the pod: a daemon that ends knows what to remove when it starts again.
    host.journal.put(&epoch)?;
    let unwanted = no_longer_wanted(&mut connection.incoming, deadline, too_late);
    let prepared = prepare(&host.destination, id, offer, unwanted);
    let pod = match phases.run(Phase::Prepare, prepared).await {
        Ok(pod) => pod,
        Err(error) => {
            host.journal.remove(&epoch.migration)?;
            return Err(error);
        }
    };
    fault::die_at("prepared");
    let mut side = Side { host, pod: &pod, connection, phases, containers, policy, deadline };
    let held = timeout_at(deadline, side.until_held(&ticket)).await.unwrap_or_else(|_| Err(too_late()));
    let committed = held.and_then(|held| match host.journal.commit(&epoch)? {
        true => Ok(held),
        false => Err(out.malformed("a commit of a move that was given up")),
    });
    match committed {
        Ok(held) => {
            side.release(held).await?;
            let end = timeout(CLOSE, side.connection.incoming.receive("done")).await;
            if let Ok(Ok(Body::Done(_))) = end {
                host.journal.remove(&epoch.migration)?;
            }
            Ok(pod.id())
        }
        Err(error) => {
            pod.abort().await;
            host.journal.give_up(&epoch)?;
            Err(error)
        }
    }
}

/// Makes the pod, unless it is no longer wanted before that is done. On error nothing of it is left.
async fn prepare<D: Destination>(
    destination: &D,
    id: PodId,
    offer: Offer,
    no_longer_wanted: impl Future<Output = MoveError>,
) -> Result<D::Pod, MoveError> {
    let (wanted, unwanted) = oneshot::channel();
    let mut preparing = std::pin::pin!(destination.receive(id, offer, unwanted));
    let reason = tokio::select! {
        prepared = &mut preparing => return prepared.map_err(MoveError::pod("prepare")),
        reason = no_longer_wanted => reason,
    };
    drop(wanted);
    // It may have been as good as done.
    if let Ok(pod) = preparing.await {
        pod.abort().await;
    }
    Err(reason)
}

/// The source has nothing to say before the pod is prepared but that it gives up; or it is gone, or it is too late.
async fn no_longer_wanted(
    incoming: &mut Incoming,
    deadline: Instant,
    too_late: impl Fn() -> MoveError,
) -> MoveError {
    match timeout_at(deadline, incoming.receive("prepare")).await {
        Err(_) => too_late(),
        Ok(Err(gone)) => gone,
        Ok(Ok(frame)) => incoming.unexpected(&frame, "nothing before Prepared"),
    }
}

struct Side<'a, D: Destination> {
    host: &'a Host<D>,
    pod: &'a D::Pod,
    connection: &'a mut Connection,
    phases: Phases,
    containers: usize,
    policy: Policy,
    deadline: Instant,
}

/// Every task is back, and the source has committed.
struct Held {
    planned: Instant,
    weight: u64,
    release: Release,
    freezing: Duration,
}

/// What was received and is not in CRIU's image files.
#[derive(Default)]
struct Contents {
    cut: Option<Cut>,
    deleted: Vec<Vec<PathBuf>>,
    diffs: Vec<Option<StdFile>>,
    shm: Option<StdFile>,
    memory: u64,
}

impl<D: Destination> Side<'_, D> {
    async fn until_held(&mut self, ticket: &Bytes) -> Result<Held, MoveError> {
        self.connection.outgoing.send(Body::Prepared(Prepared {}), "prepare").await?;
        let contents = self.receive().await?;
        let out = self.connection.outgoing.clone();
        let cut = contents.cut.ok_or_else(|| out.malformed("no cut"))?;
        let weight = weight(contents.memory, self.containers);
        let (planned, release) = self.set_clocks(&cut, weight).await?;
        let restored = self.phases.run(Phase::Restore, self.pod.restore()).await;
        restored.map_err(MoveError::pod("restore"))?;
        fault::die_at("before-confirm");
        out.send(Body::Restored(Restored {}), "restore").await?;
        match self.connection.incoming.receive("commit").await? {
            Body::Commit(commit) if commit.ticket == ticket => {}
            Body::Commit(_) => return Err(out.malformed("a wrong ticket")),
            other => return Err(self.connection.incoming.unexpected(&other, "Commit")),
        }
        Ok(Held { planned, weight, release, freezing: Duration::from_nanos(cut.freezing_ns) })
    }

    async fn receive(&mut self) -> Result<Contents, MoveError> {
        let out = self.connection.outgoing.clone();
        let images = (0..self.containers).map(|index| self.pod.images(index)).collect::<Result<Vec<_>, _>>();
        let images = images.map_err(MoveError::pod("make image directories"))?;
        let mut receiver = Receiver::new(out, images)?;
        let Self { phases, pod, connection, .. } = self;
        phases
            .run(Phase::Receive, async {
                loop {
                    let frame = connection.incoming.receive("receive").await?;
                    if let Some(unknown) = receiver.take(frame).await? {
                        match unknown {
                            Body::Sent(sent) => break receiver.total.check(&sent.sha256)?,
                            other => return Err(connection.incoming.unexpected(&other, "contents")),
                        }
                    }
                }
                let mut contents = receiver.finish().await?;
                for (index, diff) in std::mem::take(&mut contents.diffs).into_iter().enumerate() {
                    let deleted = std::mem::take(&mut contents.deleted[index]);
                    if let Some(diff) = diff {
                        let applied = pod.apply(index, diff, deleted).await;
                        applied.map_err(MoveError::pod("apply root filesystem changes"))?;
                    }
                }
                if let Some(shm) = contents.shm.take() {
                    pod.apply_shm(shm).await.map_err(MoveError::pod("fill /dev/shm"))?;
                }
                Ok(contents)
            })
            .await
    }

    /// Also gives the time from which on the restore depends on the plan.
    async fn set_clocks(&self, cut: &Cut, weight: u64) -> Result<(Instant, Release), MoveError> {
        let frozen =
            ClockReading { monotonic: cut.monotonic, boottime: cut.boottime, realtime: cut.realtime };
        self.phases
            .run(Phase::Clocks, async {
                let left = self.deadline.saturating_duration_since(Instant::now());
                self.pod.begin_restore(left).await.map_err(MoveError::pod("restore"))?;
                let (planned, ahead) = (Instant::now(), self.host.estimate.ahead(weight));
                let release = clock::plan(sys::timens::clocks(), clock::own_offsets(), ahead)?;
                let offsets = clock::offsets(&frozen, &release, self.policy)?;
                self.pod.set_clocks(offsets).await.map_err(MoveError::pod("make time namespace"))?;
                Ok((planned, release))
            })
            .await
    }

    /// The pod is ours. Its clocks are right from the planned instant on.
    async fn release(&mut self, held: Held) -> Result<(), MoveError> {
        self.host.estimate.saw(held.weight, held.planned.elapsed());
        let released = self.phases.run(Phase::Resume, self.pod.release(held.release.at)).await;
        let released = released.map_err(MoveError::pod("release"))?;
        let now = sys::timens::clocks();
        let achieved = clock::achieved(&held.release, released, held.freezing);
        let namespaces = self.pod.namespaces().await.into_iter().map(Bytes::from).collect();
        let confirmed = Confirmed {
            pod_id: self.pod.id(),
            phases: self.phases.records().into_iter().map(phase_to_wire).collect(),
            released_realtime: now.realtime.saturating_sub(now.monotonic.saturating_sub(released)),
            late_ns: achieved.late,
            monotonic_jump_ns: achieved.monotonic_jump,
            boottime_jump_ns: achieved.boottime_jump,
            namespaces,
        };
        // The pod runs here, heard or not: the source will ask.
        let _it_will_ask = self.connection.outgoing.send(Body::Confirmed(confirmed), "confirm").await;
        Ok(())
    }
}

/// Sorts what comes.
struct Receiver {
    out: Outgoing,
    images: Vec<OwnedFd>,
    pages: Vec<Option<PageWorker>>,
    file: Option<IncomingFile>,
    total: Total,
    contents: Contents,
}

impl Receiver {
    fn new(out: Outgoing, images: Vec<OwnedFd>) -> Result<Self, MoveError> {
        let mut pages = Vec::new();
        for (index, dir) in images.iter().enumerate() {
            let dir = dir.try_clone().map_err(MoveError::file("duplicate image directory"))?;
            pages.push(Some(PageWorker::start(index, dir, out.clone())));
        }
        let count = images.len();
        let contents = Contents {
            deleted: vec![Vec::new(); count],
            diffs: (0..count).map(|_| None).collect(),
            ..Contents::default()
        };
        Ok(Self { out, images, pages, file: None, total: Total::default(), contents })
    }

    /// Gives back a frame that is not contents.
    async fn take(&mut self, frame: Body) -> Result<Option<Body>, MoveError> {
        match frame {
            Body::Cut(cut) if self.contents.cut.is_none() => self.contents.cut = Some(cut),
            Body::Pages(pages) => match self.worker(pages.container).and_then(Option::as_mut) {
                Some(worker) => worker.feed(pages.data).await?,
                None => return Err(self.out.malformed("pages of no container")),
            },
            Body::PagesEnd(end) => self.end_of_pages(&end).await?,
            Body::File(header) if self.file.is_none() => {
                let index = usize::try_from(header.container).unwrap_or(usize::MAX);
                self.file = Some(IncomingFile::new(&self.out, header, self.images.get(index))?);
            }
            Body::Data(data) => match self.file.as_mut() {
                Some(file) => file.data(&self.out, &data.data)?,
                None => return Err(self.out.malformed("data of no file")),
            },
            Body::FileEnd(end) => match self.file.take() {
                Some(file) => {
                    let arrived = file.end(&self.out, &end, &mut self.total)?;
                    self.arrived(arrived)?;
                }
                None => return Err(self.out.malformed("the end of no file")),
            },
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    async fn end_of_pages(&mut self, end: &PagesEnd) -> Result<(), MoveError> {
        let Some(worker) = self.worker(end.container).and_then(Option::take) else {
            return Err(self.out.malformed("the end of no pages"));
        };
        let written = worker.end().await?;
        if written.size != end.size || written.sha256[..] != end.sha256[..] {
            return Err(MoveError::Digest { what: "a container's memory".into() });
        }
        self.total.add(&written.sha256);
        self.contents.memory += written.memory;
        Ok(())
    }

    fn arrived(&mut self, arrived: Arrived) -> Result<(), MoveError> {
        let index = arrived.container;
        if index >= self.images.len() {
            return Err(self.out.malformed("a file of no container"));
        }
        let unreadable = |error| self.out.malformed(format!("a list that cannot be read: {error}"));
        match arrived.kind {
            Kind::Image => {}
            Kind::RootfsDiff => self.contents.diffs[index] = arrived.file,
            Kind::Shm => self.contents.shm = arrived.file,
            Kind::Deleted => {
                self.contents.deleted[index] = serde_json::from_slice(&arrived.bytes).map_err(unreadable)?;
            }
        }
        Ok(())
    }

    fn worker(&mut self, container: u32) -> Option<&mut Option<PageWorker>> {
        self.pages.get_mut(usize::try_from(container).ok()?)
    }

    async fn finish(self) -> Result<Contents, MoveError> {
        if self.file.is_some() || self.pages.iter().any(Option::is_some) {
            return Err(self.out.malformed("the end before the end of its contents"));
        }
        Ok(self.contents)
    }
}

/// Writes one container's memory in a thread of its own.
struct PageWorker {
    pieces: mpsc::Sender<Bytes>,
    work: JoinHandle<Result<Written, MoveError>>,
}

struct Written {
    size: u64,
    sha256: Bytes,
    memory: u64,
}

impl PageWorker {
    fn start(container: usize, images: OwnedFd, out: Outgoing) -> Self {
        let (pieces, mut queue) = mpsc::channel::<Bytes>(QUEUED_PIECES);
        let container = u32::try_from(container).unwrap_or(u32::MAX);
        let work = tokio::task::spawn_blocking(move || {
            let mut receiver = PageReceiver::new(images);
            let (mut size, mut hash) = (0, Sha256::new());
            while let Some(piece) = queue.blocking_recv() {
                size += piece.len() as u64;
                let answer = receiver.feed(&piece).map_err(|error| page_error(&out, error))?;
                if !answer.is_empty() {
                    let reply = PageReply { container, data: answer.into() };
                    out.blocking_send(Body::PageReply(reply), "receive")?;
                }
                hash.update(&piece);
            }
            let memory = receiver.finish().map_err(|error| page_error(&out, error))?;
            Ok(Written { size, sha256: Bytes::copy_from_slice(&hash.finalize()), memory })
        });
        Self { pieces, work }
    }

    async fn feed(&mut self, piece: Bytes) -> Result<(), MoveError> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        let joined = (&mut self.work).await.map_err(|error| MoveError::file("write pages")(error.into()))?;
        joined.and(Err(MoveError::file("write pages")(std::io::ErrorKind::BrokenPipe.into())))
    }

    async fn end(self) -> Result<Written, MoveError> {
        drop(self.pieces);
        self.work.await.map_err(|error| MoveError::file("write pages")(error.into()))?
    }
}

fn page_error(out: &Outgoing, error: PageError) -> MoveError {
    match error {
        PageError::Stream(what) => out.malformed(what),
        PageError::Write(source) => MoveError::file("write pages")(source),
    }
}

impl Total {
    fn check(&self, expected: &Bytes) -> Result<(), MoveError> {
        match self.clone().finish() == expected {
            true => Ok(()),
            false => Err(MoveError::Digest { what: "everything that was sent".into() }),
        }
    }
}

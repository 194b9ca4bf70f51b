//! The side that the pod leaves.
//!
//! `until_commit` can fail at any point: the pod then runs on here, and the other side removes what it has. `commit`
//! cannot go back; it ends with the pod removed, or thawed because the other side gave up, or frozen because nobody
//! can tell (the journal then has a record, for [`resolve`] to settle later).

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use api::peer::v1::{
    Abort, Commit, Confirmed, Cut as WireCut, Done, File, Hello, Pages, PagesEnd, Resolve, Sent, file::Kind,
    frame::Body,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::connection::{Connection, Incoming, Outgoing};
use super::error::MoveError;
use super::files::{Total, images, send_bytes, send_file};
use super::journal::{Epoch, EpochState, Journal};
use super::phase::{Meter, Phase, Phases, Progress, Role};
use super::pieces::Pieces;
use super::pod::{Cut, Diff, Dumped, SourcePod};
use super::protocol::{PIECE, VERSION, needs_to_wire, phase_from_wire, policy_to_wire};
use super::report::Report;
use super::tls::Identity;
use crate::clock::Policy;
use crate::fault;
use crate::manifest::Needs;

/// How long the other side may take from Commit to Confirmed.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long a lost confirmation is asked for before the user is told that it is unknown.
const ASKING: Duration = Duration::from_secs(15);
/// How long a question may take.
const ANSWER: Duration = Duration::from_secs(5);
/// The shim's watchdog strikes this much after the deadline: first of all the daemon thaws.
const WATCHDOG_SLACK: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Move {
    /// The move's id, 64 hexadecimal digits.
    pub migration: String,
    /// Where to: `HOST:PORT`.
    pub peer: String,
    /// What the clocks do.
    pub policy: Policy,
    /// Until the commit.
    pub timeout: Duration,
}

/// What became of a move whose confirmation was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The pod runs on the other node, under this id.
    Committed(String),
    /// It does not, and never will.
    GivenUp,
}

/// Moves a pod. On error it runs on here, but for [`MoveError::Unresolved`].
pub async fn move_pod<P: SourcePod>(
    pod: &P,
    request: &Move,
    identity: &Identity,
    journal: &Arc<Journal>,
    progress: Option<mpsc::UnboundedSender<Progress>>,
) -> Result<Report, MoveError> {
    let deadline = Instant::now() + request.timeout;
    let too_late = || MoveError::Deadline { seconds: request.timeout.as_secs_f64() };
    let connect = |source| MoveError::Connect { peer: request.peer.clone(), source };
    let offer = pod.offer();
    let phases = Phases::new(Role::Source, progress, offer.memory);
    let stream = timeout_at(deadline, identity.connect(&request.peer)).await.map_err(|_| too_late())?;
    let connection = Connection::new(&request.peer, stream.map_err(connect)?);
    let mut source = Source { pod, request, deadline, phases, connection, total: Total::default() };
    let before = timeout_at(deadline, source.until_commit()).await.unwrap_or_else(|_| Err(too_late()));
    match before {
        Ok(ready) => source.commit(ready, identity, journal).await,
        Err(error) => {
            source.pod.thaw().await;
            source.give_up(&error).await;
            Err(error)
        }
    }
}

/// Asks the destination of a record what became of its move. The question is a decision: see the protocol.
pub async fn resolve(epoch: &Epoch, identity: &Identity) -> Result<Outcome, MoveError> {
    let connect = |source| MoveError::Connect { peer: epoch.peer.clone(), source };
    let ask = async {
        let stream = identity.connect(&epoch.peer).await.map_err(connect)?;
        let mut connection = Connection::new(&epoch.peer, stream);
        let ticket = hex::decode(&epoch.ticket).unwrap_or_default().into();
        let question = Resolve { version: VERSION, migration_id: epoch.migration.clone(), ticket };
        connection.outgoing.send(Body::Resolve(question), "resolve").await?;
        match connection.incoming.receive("resolve").await? {
            Body::Resolved(answer) if answer.committed => Ok(Outcome::Committed(answer.pod_id)),
            Body::Resolved(_) => Ok(Outcome::GivenUp),
            other => Err(connection.incoming.unexpected(&other, "Resolved")),
        }
    };
    let late = |_| connect(io::ErrorKind::TimedOut.into());
    timeout(ANSWER, ask).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

struct Source<'a, P> {
    pod: &'a P,
    request: &'a Move,
    deadline: Instant,
    phases: Phases,
    connection: Connection,
    total: Total,
}

/// The other side holds every task.
struct Ready {
    ticket: Bytes,
    cut: Cut,
}

impl<P: SourcePod> Source<'_, P> {
    async fn until_commit(&mut self) -> Result<Ready, MoveError> {
        let offer = self.pod.offer();
        let containers = offer.containers.len();
        let offered: Vec<_> =
            offer.containers.iter().map(|container| container.descriptors.clone()).collect();
        let (mut streams, theirs) =
            page_sockets(containers, &self.connection.outgoing, &self.phases.meter())?;
        let Self { pod, request, phases, connection, deadline, .. } = self;
        let left = deadline.saturating_duration_since(Instant::now());
        let ticket = phases
            .run(Phase::Negotiate, async {
                let ticket = negotiate(connection, hello(request, offer)).await?;
                pod.start_dumps(theirs, left).await.map_err(MoveError::pod("start dump"))?;
                Ok::<_, MoveError>(ticket)
            })
            .await?;
        let watchdog = left + WATCHDOG_SLACK;
        let cut = phases.run(Phase::Freeze, pod.freeze(watchdog)).await.map_err(MoveError::pod("freeze"))?;
        fault::die_at("frozen");
        connection.outgoing.send(Body::Cut(wire_cut(&cut)), "dump").await?;
        let captured = capture(*pod, phases);
        let (dumps, diffs, shm) = serve_pages(&mut connection.incoming, &mut streams, captured).await?;
        let mut now = dumps.iter().map(|dump| &dump.descriptors);
        if let Some((now, _)) = now.by_ref().zip(&offered).find(|(now, offered)| now != offered) {
            return Err(MoveError::Redirected { now: now.clone() });
        }
        self.send_all(streams, dumps, diffs, shm).await?;
        match self.connection.incoming.receive("restore").await? {
            Body::Restored(_) => Ok(Ready { ticket, cut }),
            other => Err(self.connection.incoming.unexpected(&other, "Restored")),
        }
    }

    /// What is not memory. Listens meanwhile, so that the other side's reason to stop is heard.
    async fn send_all(
        &mut self,
        streams: Vec<PageStream>,
        dumps: Vec<Dumped>,
        diffs: Vec<Diff>,
        shm: Option<std::fs::File>,
    ) -> Result<(), MoveError> {
        let Self { phases, connection, total, .. } = self;
        let out = connection.outgoing.clone();
        let send = phases.run(Phase::Send, async {
            for (index, stream) in streams.into_iter().enumerate() {
                let end = stream.end(wire_index(index)).await?;
                total.add(&end.sha256);
                out.send(Body::PagesEnd(end), "send").await?;
            }
            for (index, (dump, diff)) in dumps.into_iter().zip(diffs).enumerate() {
                send_container(&out, total, wire_index(index), dump, diff).await?;
            }
            if let Some(shm) = shm {
                send_file(&out, total, header(0, Kind::Shm, ""), shm).await?;
            }
            out.send(Body::Sent(Sent { sha256: total.clone().finish() }), "send").await
        });
        serve_pages(&mut connection.incoming, &mut [], send).await
    }

    /// From here on the other side decides.
    async fn commit(
        self,
        ready: Ready,
        identity: &Identity,
        journal: &Arc<Journal>,
    ) -> Result<Report, MoveError> {
        let mut epoch = Epoch {
            version: 1,
            migration: self.request.migration.clone(),
            pod: self.pod.offer().pod_id,
            peer: self.request.peer.clone(),
            ticket: hex::encode(&ready.ticket),
            state: EpochState::SourceCommitting,
        };
        let held = self.pod.hold().await.map_err(MoveError::pod("hold"));
        if let Err(error) = held.and_then(|()| Ok(journal.put(&epoch)?)) {
            self.pod.thaw().await;
            self.give_up(&error).await;
            return Err(error);
        }
        let Self { pod, phases, mut connection, request, .. } = self;
        let confirmed = phases.run(Phase::Confirm, confirm(&mut connection, ready.ticket)).await;
        let confirmed = match confirmed {
            Ok(confirmed) => confirmed,
            Err(lost) => match ask(&epoch, identity).await? {
                Outcome::Committed(pod_id) => Confirmed { pod_id, ..Confirmed::default() },
                Outcome::GivenUp => {
                    pod.thaw().await;
                    journal.remove(&epoch.migration)?;
                    return Err(lost);
                }
            },
        };
        epoch.state = EpochState::SourceCommitted;
        journal.put(&epoch)?;
        fault::die_at("after-confirm");
        let _it_remembers_for_a_day = connection.outgoing.send(Body::Done(Done {}), "done").await;
        let bytes = timeout(ANSWER, connection.close()).await.unwrap_or(0);
        let retired = phases.run(Phase::Release, pod.retire()).await;
        match retired {
            Ok(()) => journal.remove(&epoch.migration)?,
            // The record stays, and recovery tries again.
            Err(error) => tracing::warn!(pod = %epoch.pod, "moved, but not removed here: {error}"),
        }
        Ok(report(request, epoch.pod, &ready.cut, confirmed, &phases, bytes))
    }

    async fn give_up(self, error: &MoveError) {
        if !matches!(error, MoveError::Refused { .. } | MoveError::Lost { .. }) {
            let abort: Abort = error.to_abort();
            let _gone_too = self.connection.outgoing.send(Body::Abort(abort), "abort").await;
        }
        let _written = timeout(ANSWER, self.connection.close()).await;
    }
}

async fn negotiate(connection: &mut Connection, hello: Hello) -> Result<Bytes, MoveError> {
    connection.outgoing.send(Body::Hello(hello), "negotiate").await?;
    let ticket = match connection.incoming.receive("negotiate").await? {
        Body::Accepted(accepted) => accepted.ticket,
        other => return Err(connection.incoming.unexpected(&other, "Accepted")),
    };
    match connection.incoming.receive("prepare").await? {
        Body::Prepared(_) => Ok(ticket),
        other => Err(connection.incoming.unexpected(&other, "Prepared")),
    }
}

async fn capture<P: SourcePod>(
    pod: &P,
    phases: &Phases,
) -> Result<(Vec<Dumped>, Vec<Diff>, Option<std::fs::File>), MoveError> {
    let dumps = phases.run(Phase::Dump, async { pod.dumps().await.map_err(MoveError::pod("dump")) });
    let diffs = phases.run(Phase::Diff, async {
        let (diffs, shm) = tokio::join!(pod.diffs(), pod.shm());
        let diffs = diffs.map_err(MoveError::pod("take root filesystem changes"))?;
        Ok((diffs, shm.map_err(MoveError::pod("take /dev/shm"))?))
    });
    let (dumps, (diffs, shm)) = tokio::try_join!(dumps, diffs)?;
    Ok((dumps, diffs, shm))
}

async fn send_container(
    out: &Outgoing,
    total: &mut Total,
    container: u32,
    dump: Dumped,
    diff: Diff,
) -> Result<(), MoveError> {
    for (name, file) in images(&dump.images).map_err(MoveError::file("list image files"))? {
        send_file(out, total, header(container, Kind::Image, &name), file).await?;
    }
    let deleted =
        serde_json::to_vec(&diff.deleted).map_err(|error| MoveError::file("encode list")(error.into()))?;
    send_bytes(out, total, header(container, Kind::Deleted, ""), deleted).await?;
    send_file(out, total, header(container, Kind::RootfsDiff, ""), diff.archive).await?;
    Ok(())
}

async fn confirm(connection: &mut Connection, ticket: Bytes) -> Result<Confirmed, MoveError> {
    connection.outgoing.send(Body::Commit(Commit { ticket }), "confirm").await?;
    let lost =
        MoveError::Lost { peer: connection.outgoing.peer().to_owned(), during: "confirm", source: None };
    match timeout(CONFIRM, connection.incoming.receive("confirm")).await {
        Err(_) => Err(lost),
        Ok(Ok(Body::Confirmed(confirmed))) => Ok(confirmed),
        Ok(Ok(other)) => Err(connection.incoming.unexpected(&other, "Confirmed")),
        Ok(Err(error)) => Err(error),
    }
}

/// Asks until somebody knows.
async fn ask(epoch: &Epoch, identity: &Identity) -> Result<Outcome, MoveError> {
    let until = Instant::now() + ASKING;
    loop {
        match resolve(epoch, identity).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => tracing::warn!(peer = %epoch.peer, "the other node cannot be asked yet: {error}"),
        }
        if Instant::now() > until {
            let (peer, migration) = (epoch.peer.clone(), epoch.migration.clone());
            return Err(MoveError::Unresolved { peer, migration });
        }
        sleep(Duration::from_millis(250)).await;
    }
}

/// One container's memory on its way.
struct PageStream {
    pump: JoinHandle<Result<(u64, Bytes), MoveError>>,
    answers: OwnedWriteHalf,
    dumped: watch::Sender<bool>,
}

impl PageStream {
    /// The dump is over: CRIU was told that everything arrived, so nothing is on its way any more.
    async fn end(self, container: u32) -> Result<PagesEnd, MoveError> {
        let _pump_reads_it = self.dumped.send(true);
        let (size, sha256) =
            self.pump.await.map_err(|error| MoveError::file("pump pages")(error.into()))??;
        Ok(PagesEnd { container, size, sha256 })
    }
}

/// Our ends, pumping, and CRIU's ends.
fn page_sockets(
    count: usize,
    out: &Outgoing,
    meter: &Meter,
) -> Result<(Vec<PageStream>, Vec<OwnedFd>), MoveError> {
    let failed = MoveError::file("make page socket");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for index in 0..count {
        let (our, their) = StdUnixStream::pair().map_err(&failed)?;
        our.set_nonblocking(true).map_err(&failed)?;
        let (pages, answers) = UnixStream::from_std(our).map_err(&failed)?.into_split();
        let (dumped, end) = watch::channel(false);
        let pump = tokio::spawn(pump(wire_index(index), pages, out.clone(), meter.clone(), end));
        ours.push(PageStream { pump, answers, dumped });
        theirs.push(their.into());
    }
    Ok((ours, theirs))
}

async fn pump(
    container: u32,
    mut pages: OwnedReadHalf,
    out: Outgoing,
    meter: Meter,
    mut end: watch::Receiver<bool>,
) -> Result<(u64, Bytes), MoveError> {
    let (mut size, mut hash, pieces) = (0, Sha256::new(), Pieces::default());
    loop {
        let mut piece = pieces.get(PIECE);
        let read = tokio::select! {
            biased;
            read = pages.read(&mut piece.room()[..PIECE]) => read.map_err(MoveError::file("read pages"))?,
            _ = end.wait_for(|over| *over) => 0,
        };
        if read == 0 {
            return Ok((size, Bytes::copy_from_slice(&hash.finalize())));
        }
        size += read as u64;
        meter.add(Phase::Dump, read as u64);
        let data = piece.take(read);
        hash.update(&data);
        out.send(Body::Pages(Pages { container, data }), "dump").await?;
    }
}

/// Passes the page server's answers on while `work` goes on.
async fn serve_pages<T>(
    incoming: &mut Incoming,
    streams: &mut [PageStream],
    work: impl Future<Output = Result<T, MoveError>>,
) -> Result<T, MoveError> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            frame = incoming.receive("dump") => match frame? {
                Body::PageReply(reply) => {
                    let index = usize::try_from(reply.container).unwrap_or(usize::MAX);
                    let Some(stream) = streams.get_mut(index) else {
                        return Err(incoming.unexpected(&Body::PageReply(reply), "an answer for a container"));
                    };
                    stream.answers.write_all(&reply.data).await.map_err(MoveError::file("answer the dump"))?;
                }
                other => return Err(incoming.unexpected(&other, "PageReply")),
            },
        }
    }
}

fn hello(request: &Move, offer: api::peer::v1::Offer) -> Hello {
    Hello {
        version: VERSION,
        migration_id: request.migration.clone(),
        offer: Some(offer),
        clock: policy_to_wire(request.policy).into(),
        timeout_ms: u64::try_from(request.timeout.as_millis()).unwrap_or(u64::MAX),
        needs: Some(needs_to_wire(Needs::of_this_node())),
    }
}

fn header(container: u32, kind: Kind, name: &str) -> File {
    File { container, kind: kind.into(), name: name.to_owned(), size: 0 }
}

fn wire_index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn wire_cut(cut: &Cut) -> WireCut {
    WireCut {
        monotonic: cut.clocks.monotonic,
        boottime: cut.clocks.boottime,
        realtime: cut.clocks.realtime,
        freezing_ns: super::protocol::nanoseconds(cut.freezing),
    }
}

fn report(
    request: &Move,
    source_pod: String,
    cut: &Cut,
    confirmed: Confirmed,
    phases: &Phases,
    bytes: u64,
) -> Report {
    let mut records = phases.records();
    records.extend(confirmed.phases.into_iter().map(|phase| phase_from_wire(phase, Duration::ZERO)));
    records.sort_by_key(|record| record.start);
    let freezing = i64::try_from(cut.freezing.as_nanos()).unwrap_or(i64::MAX);
    let froze_at = cut.clocks.realtime.saturating_sub(freezing);
    let downtime = confirmed.released_realtime.saturating_sub(froze_at);
    Report {
        migration: request.migration.clone(),
        source_pod,
        destination_pod: confirmed.pod_id,
        phases: records,
        downtime: u64::try_from(downtime).unwrap_or(0),
        monotonic_jump: confirmed.monotonic_jump_ns,
        boottime_jump: confirmed.boottime_jump_ns,
        late: confirmed.late_ns,
        bytes,
        namespaces: confirmed.namespaces,
    }
}

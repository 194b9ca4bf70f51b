//! What a migration asks of the two nodes' pods. The daemon implements it over crate `pod`.
//!
//! A failure says whose fault it is ([`FailureKind`]) because the peer and the user are told; its text names the
//! object. Methods take `&self`: a dump, the diffs and the contents of `/dev/shm` are taken at the same time.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use api::id::PodId;
use api::peer::v1::Offer;
use sys::timens::Offsets;
use tokio::sync::oneshot;

use crate::clock::ClockReading;

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Meridian's or the machine's.
    Internal,
    /// A pod or node that cannot do this.
    Precondition,
    /// No room.
    Exhausted,
    /// No time.
    Deadline,
    /// The request.
    Invalid,
}

/// Something a pod was asked for failed.
#[derive(Debug)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// What failed.
    pub source: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// Of this kind.
    pub fn new(kind: FailureKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}

/// The cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The clocks, read when all tasks were frozen.
    pub clocks: ClockReading,
    /// From the first freeze written to the reading.
    pub freezing: Duration,
}

/// A container's dump, but for its memory, which went through its page socket.
#[derive(Debug)]
pub struct Dumped {
    /// CRIU's image files.
    pub images: OwnedFd,
    /// What the descriptors 0, 1 and 2 are: as they were offered, or the move fails.
    pub descriptors: Vec<String>,
}

/// What changed in a container's root filesystem.
#[derive(Debug)]
pub struct Diff {
    /// A tar, at its start.
    pub archive: File,
    /// What is gone.
    pub deleted: Vec<PathBuf>,
}

/// A running pod on the node that it leaves. Until [`SourcePod::hold`] the shim thaws it by itself when the daemon
/// is gone or its watchdog runs out.
pub trait SourcePod: Send + Sync {
    /// The pod as the destination needs to know it.
    fn offer(&self) -> Offer;

    /// Starts the dump of every container, up to where CRIU waits for the freeze; one page socket each, in the order
    /// of the offer.
    fn start_dumps(
        &self,
        pages: Vec<OwnedFd>,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Freezes all containers at one instant; the dumps then go on.
    fn freeze(&self, watchdog: Duration) -> impl Future<Output = Result<Cut, Failure>> + Send;

    /// Waits for the dumps.
    fn dumps(&self) -> impl Future<Output = Result<Vec<Dumped>, Failure>> + Send;

    /// Takes the root filesystems' changes, while frozen.
    fn diffs(&self) -> impl Future<Output = Result<Vec<Diff>, Failure>> + Send;

    /// Takes the contents of the pod's `/dev/shm` as a tar at its start, while frozen; `None`: it has none.
    fn shm(&self) -> impl Future<Output = Result<Option<File>, Failure>> + Send;

    /// Stops the watchdog: only [`SourcePod::thaw`] or [`SourcePod::retire`] end the freeze now.
    fn hold(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Lets the pod run again, whatever of the above was done or is under way. Never fails: it tries everything and
    /// logs what did not work.
    fn thaw(&self) -> impl Future<Output = ()> + Send;

    /// The pod runs elsewhere: kills it without thawing it, and removes it.
    fn retire(&self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Resolves when the pod that is being received is no longer wanted.
pub type Unwanted = oneshot::Receiver<()>;

/// A node that takes pods in.
pub trait Destination: Send + Sync {
    /// One that is coming.
    type Pod: DestinationPod;

    /// Makes everything that needs no contents under the id `pod`: image, sandbox, network, volumes, containers to be
    /// restored. Ends early, with an error and nothing left, when the pod is no longer wanted.
    fn receive(
        &self,
        pod: PodId,
        offer: Offer,
        unwanted: Unwanted,
    ) -> impl Future<Output = Result<Self::Pod, Failure>> + Send;
}

/// A pod on the node that it comes to. Not listed as running anywhere before [`DestinationPod::release`].
pub trait DestinationPod: Send + Sync {
    /// Its id here.
    fn id(&self) -> String;

    /// An empty directory for CRIU's image files of one container, on this node's own filesystem.
    fn images(&self, container: usize) -> Result<OwnedFd, Failure>;

    /// Applies a root filesystem's changes onto the image.
    fn apply(
        &self,
        container: usize,
        archive: File,
        deleted: Vec<PathBuf>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Fills the pod's `/dev/shm` from a tar.
    fn apply_shm(&self, archive: File) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Begins to restore every container, up to where its clocks must be known.
    fn begin_restore(&self, deadline: Duration) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Makes the pod's time namespace, which lets the restores go on.
    fn set_clocks(&self, offsets: Offsets) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Waits until every container is restored and held.
    fn restore(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Lets all containers go at `at`, CLOCK_MONOTONIC of the daemon in ns, and says when that was.
    fn release(&self, at: i64) -> impl Future<Output = Result<i64, Failure>> + Send;

    /// The pod's namespaces as encoded `meridian.v1.Namespace`, for the result.
    fn namespaces(&self) -> impl Future<Output = Vec<Vec<u8>>> + Send;

    /// Removes it with all that was made for it. Never fails: it tries everything and logs what did not work.
    fn abort(&self) -> impl Future<Output = ()> + Send;
}

//! The calls of a checkpoint, a restore and a move.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use api::shim::v1::{self as shim, request::Call, response};

use super::client::{CallError, Client, PROMPT, Pending};

impl Client {
    /// What a dump of these containers would fail at or lose.
    pub(crate) async fn check(&self, ids: Vec<String>) -> Result<Vec<shim::Obstacle>, CallError> {
        match self.call(Call::Check(shim::CheckRequest { ids }), &[], PROMPT).await?.0 {
            response::Result::Check(checked) => Ok(checked.obstacles),
            _ => Err(CallError::Protocol("check")),
        }
    }

    /// Freezes these containers at one instant, when their pending dumps are ready.
    pub(crate) async fn freeze(
        &self,
        ids: Vec<String>,
        watchdog: Duration,
        limit: Duration,
    ) -> Result<shim::FreezeResponse, CallError> {
        let call = Call::Freeze(shim::FreezeRequest { ids, watchdog_ms: milliseconds(watchdog) });
        match self.call(call, &[], limit).await?.0 {
            response::Result::Freeze(frozen) => Ok(frozen),
            _ => Err(CallError::Protocol("freeze")),
        }
    }

    /// Stops the watchdog of a freeze.
    pub(crate) async fn hold(&self) -> Result<(), CallError> {
        self.order("hold", Call::Hold(shim::HoldRequest {}), &[], PROMPT).await
    }

    /// Dumps a container into `images`, its memory to `pages` if given. Before the freeze it waits for that.
    pub(crate) async fn begin_dump(
        &self,
        id: &str,
        images: BorrowedFd<'_>,
        pages: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<PendingDump, CallError> {
        let call = Call::Dump(shim::DumpRequest {
            id: id.to_owned(),
            images_fd: 0,
            page_socket_fd: pages.map(|_| 1),
            deadline_ms: milliseconds(deadline),
            tcp_established: false,
        });
        let fds: Vec<_> = [images].into_iter().chain(pages).collect();
        Ok(PendingDump { pending: self.begin(call, &fds).await?, limit: deadline + ROLL_BACK })
    }

    /// Writes what a container changed in its root filesystem.
    pub(crate) async fn diff(
        &self,
        id: &str,
        upper: BorrowedFd<'_>,
        archive: BorrowedFd<'_>,
        deleted: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<(), CallError> {
        let request = shim::DiffRequest { id: id.to_owned(), upper_fd: 0, archive_fd: 1, deleted_fd: 2 };
        self.order("diff", Call::Diff(request), &[upper, archive, deleted], limit).await
    }

    /// Makes the pod's time namespace, for containers to be restored. Gives a descriptor to pin.
    pub(crate) async fn create_time_namespace(
        &self,
        monotonic_offset: i64,
        boottime_offset: i64,
    ) -> Result<OwnedFd, CallError> {
        let request = shim::CreateTimeNamespaceRequest { monotonic_offset, boottime_offset };
        let (result, fds) = self.call(Call::CreateTimeNamespace(request), &[], PROMPT).await?;
        match (result, fds.into_iter().next()) {
            (response::Result::CreateTimeNamespace(_), Some(fd)) => Ok(fd),
            _ => Err(CallError::Protocol("create time namespace")),
        }
    }

    /// Restores a container up to where it waits for the pod's time namespace; with one, until it is held.
    pub(crate) async fn begin_restore(
        &self,
        id: &str,
        deadline: Duration,
    ) -> Result<PendingRestore, CallError> {
        let request = shim::RestoreRequest { id: id.to_owned(), deadline_ms: milliseconds(deadline) };
        let pending = self.begin(Call::Restore(request), &[]).await?;
        Ok(PendingRestore { pending, limit: deadline + ROLL_BACK })
    }

    /// Waits until all that begun restores still need is the pod's time namespace. One that failed says so itself.
    pub(crate) async fn await_restores(&self, limit: Duration) -> Result<(), CallError> {
        let request = Call::AwaitRestores(shim::AwaitRestoresRequest {});
        self.order("await restores", request, &[], limit + ROLL_BACK).await
    }

    /// Lets held containers go at `at`, CLOCK_MONOTONIC in ns; when that was.
    pub(crate) async fn release(&self, ids: Vec<String>, at: i64) -> Result<i64, CallError> {
        let request = shim::ReleaseRequest { ids, at: at.unsigned_abs() };
        match self.call(Call::Release(request), &[], PROMPT).await?.0 {
            response::Result::Release(released) => {
                i64::try_from(released.released_at).map_err(|_| CallError::Protocol("release"))
            }
            _ => Err(CallError::Protocol("release")),
        }
    }
}

/// A dump under way, or waiting for the freeze.
#[derive(Debug)]
pub(crate) struct PendingDump {
    pending: Pending,
    limit: Duration,
}

impl PendingDump {
    /// Its end.
    pub(crate) async fn wait(self) -> Result<shim::DumpResponse, CallError> {
        match self.pending.wait(self.limit).await?.0 {
            response::Result::Dump(dumped) => Ok(dumped),
            _ => Err(CallError::Protocol("dump")),
        }
    }
}

/// A restore under way, or waiting for the pod's clocks.
#[derive(Debug)]
pub(crate) struct PendingRestore {
    pending: Pending,
    limit: Duration,
}

impl PendingRestore {
    /// Process 1 of the container, which is held.
    pub(crate) async fn wait(self) -> Result<u32, CallError> {
        match self.pending.wait(self.limit).await?.0 {
            response::Result::Restore(restored) => Ok(restored.pid),
            _ => Err(CallError::Protocol("restore")),
        }
    }
}

/// What CRIU may take after its deadline to undo what it did.
const ROLL_BACK: Duration = Duration::from_secs(15);

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

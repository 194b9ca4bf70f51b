//! Dumps and root filesystem differences, each in a helper.
//!
//! A dump may be asked for before the freeze: CRIU then starts (10 to 15 ms) while the pod still runs and waits for
//! the cut, and Freeze is answered when all that were asked for wait.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use api::shim::v1::{self as proto, response};
use executor::{Descriptors, NamespaceKind};
use migration::{
    criu::{self, Criu, DumpOptions},
    tree::{self, Source},
};

use crate::{
    error::RequestError,
    helper::{Work, Worker},
    pod::{Answer, Asker, Pod},
    task::{Phase, PhaseName},
};

/// The namespaces of a pod that CRIU works inside of, so that it neither dumps nor remakes them.
const SHARED: [NamespaceKind; 4] =
    [NamespaceKind::Net, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Time];

impl Pod {
    pub fn dump(
        &mut self,
        asker: Asker,
        request: &proto::DumpRequest,
        mut fds: Descriptors,
    ) -> Result<Option<Answer>, RequestError> {
        self.task(&request.id)?.expect_phase(PhaseName::Running)?;
        self.criu()?;
        self.expect_idle(Work::Dump, &request.id)?;
        let images = fds.take("images_fd", request.images_fd)?;
        let pages = request.page_socket_fd.map(|index| fds.take("page_socket_fd", index)).transpose()?;
        self.start_helper(asker, Work::Dump, &request.id, |pod, worker| {
            pod.dump_in_helper(request, images.as_fd(), pages.as_ref(), worker)
        })?;
        Ok(None)
    }

    fn dump_in_helper(
        &self,
        request: &proto::DumpRequest,
        images: BorrowedFd<'_>,
        pages: Option<&OwnedFd>,
        worker: &Worker,
    ) -> Result<Answer, RequestError> {
        let begun = Instant::now();
        let deadline = Duration::from_millis(request.deadline_ms);
        let task = self.task(&request.id)?;
        let Phase::Running(process) = &task.phase else {
            return Err(task.wrong_phase(PhaseName::Running));
        };
        let descriptors = descriptors(process.pid);
        let criu = self.criu()?;
        criu::enter(&criu, self.host_mounts.as_fd())?;
        let namespaces = self.shared_namespaces()?;
        let options = DumpOptions {
            criu: &criu,
            namespaces: &namespaces,
            pid: process.pid,
            cgroup: process.cgroup.as_fd(),
            images,
            page_socket: pages.map(AsFd::as_fd),
            external: &task.external,
            tcp_established: request.tcp_established,
            deadline,
        };
        let stats = criu::dump(&options, &mut || worker.cut(begun + deadline))?;
        Ok(response::Result::Dump(proto::DumpResponse {
            pages_written: stats.pages_written,
            memory_dump_ns: nanoseconds(stats.memory_dump),
            total_ns: nanoseconds(begun.elapsed()),
            descriptors,
        })
        .into())
    }

    pub fn diff(
        &mut self,
        asker: Asker,
        request: &proto::DiffRequest,
        mut fds: Descriptors,
    ) -> Result<Option<Answer>, RequestError> {
        self.task(&request.id)?;
        let upper = fds.take("upper_fd", request.upper_fd)?;
        let mut archive = Some(File::from(fds.take("archive_fd", request.archive_fd)?));
        let mut deleted = Some(File::from(fds.take("deleted_fd", request.deleted_fd)?));
        self.start_helper(asker, Work::Diff, &request.id, |_, _| match (archive.take(), deleted.take()) {
            (Some(archive), Some(deleted)) => write_diff(&upper, archive, deleted),
            _ => Err(RequestError::Malformed),
        })?;
        Ok(None)
    }

    /// How CRIU is started here.
    pub fn criu(&self) -> Result<Criu, RequestError> {
        let command = self.criu_command.clone();
        if command.is_empty() {
            Err(RequestError::NoCriu)
        } else {
            Ok(Criu { command, run: self.criu_run.clone() })
        }
    }

    /// Those of the pod's own namespaces that CRIU enters.
    pub fn shared_namespaces(&self) -> Result<Vec<(NamespaceKind, BorrowedFd<'_>)>, RequestError> {
        let sandbox = self.sandbox()?;
        Ok(SHARED.into_iter().filter_map(|kind| Some((kind, sandbox.namespace(kind)?))).collect())
    }
}

/// What a container changed in its root filesystem: a tar, and the list of what it deleted.
fn write_diff(upper: &OwnedFd, archive: File, mut deleted: File) -> Result<Answer, RequestError> {
    let mut archive = BufWriter::with_capacity(256 << 10, archive);
    let packed = tree::pack(upper, &mut archive, Source::OverlayUpper)?;
    let list = serde_json::to_vec(&packed.deleted).map_err(|_| RequestError::DeletedName)?;
    let written = archive.flush().and_then(|()| deleted.write_all(&list));
    written.map_err(|error| RequestError::system("write", "rootfs-diff.tar")(sys::errno_of(&error)))?;
    Ok(Answer::done())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `descriptors.json`: what 0, 1 and 2 of process 1 are, as runc and CRIU's `inherit_fd` name them.
fn descriptors(pid: sys::Pid) -> String {
    let link = |number: u32| {
        let path = format!("/proc/{}/fd/{number}", pid.as_raw_nonzero());
        fs::read_link(path).unwrap_or_default().to_string_lossy().into_owned()
    };
    serde_json::to_string(&[0, 1, 2].map(link)).unwrap_or_default()
}

//! Containers that come back: restored by CRIU in a helper, held, and let go together at one instant.
//!
//! A restored container is held by its own frozen cgroup: CRIU has left, and nothing has run an instruction. Release
//! moves the hold of all of them to the pod's cgroup, sleeps until shortly before the instant, spins the rest, and
//! thaws the pod with one write. Never before the instant: the pod's clocks were set for it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use api::shim::v1::{self as proto, response};
use executor::{Descriptors, NamespaceKind, cgroup};
use migration::criu::{self, ReleaseDecision, RestoreOptions};
use sys::{Pid, pidfd, schedule::RealTime, timens};

use crate::{
    container::{Ours, Streams},
    error::RequestError,
    helper::{Work, Worker},
    pod::{Answer, Asker, Pod},
    sandbox::pid_number,
    task::{Phase, PhaseName, Process},
};

/// What a container is restored from.
pub struct Plan {
    pub plan: proto::ContainerPlan,
    pub fds: Descriptors,
}

/// Containers that wait for their instant.
pub struct Release {
    asker: Asker,
    ids: Vec<String>,
    /// CLOCK_MONOTONIC, ns.
    at: i64,
    /// Lateness is a jump of the pod's clocks. None where the host does not grant it.
    _urgent: Option<RealTime>,
}

/// How long before the instant the loop is left to spin, in ns: more than a timer's slack (50 us) and a wake-up.
const SPIN: i64 = 100_000;

impl Release {
    pub fn deadline(&self) -> i64 {
        self.at.saturating_sub(SPIN)
    }
}

impl Pod {
    pub fn restore(
        &mut self,
        asker: Asker,
        request: &proto::RestoreRequest,
    ) -> Result<Option<Answer>, RequestError> {
        self.criu()?;
        self.expect_idle(Work::Restore, &request.id)?;
        let task = self.task(&request.id)?;
        let Phase::Planned(plan, _) = &task.phase else {
            return Err(task.wrong_phase(PhaseName::Planned));
        };
        let mut streams = Streams::new(self.sandbox()?, &plan.plan)?;
        let mut ours = Some(streams.take_ours());
        self.start_helper(asker, Work::Restore, &request.id, |pod, worker| {
            drop(ours.take());
            pod.restore_in_helper(request, &streams, worker)
        })?;
        let mut task = self.take_task(&request.id)?;
        let connected = ours.map_or(Ok(()), |ours| self.connect(&mut task, None, ours));
        self.tasks.push(task);
        connected.map_err(RequestError::system("read the output of", request.id.as_str())).map(|()| None)
    }

    fn restore_in_helper(
        &mut self,
        request: &proto::RestoreRequest,
        streams: &Streams,
        worker: &Worker,
    ) -> Result<Answer, RequestError> {
        let deadline = Duration::from_millis(request.deadline_ms);
        let until = Instant::now() + deadline;
        let criu = self.criu()?;
        let directory = criu::enter(&criu, self.host_mounts.as_fd())?;
        let task = self.take_task(&request.id)?;
        let Phase::Planned(plan, cgroup) = task.phase else {
            return Err(task.wrong_phase(PhaseName::Planned));
        };
        let Plan { plan, mut fds } = *plan;
        let images = plan.restore.as_ref().ok_or(RequestError::Missing { field: "plan.restore" })?;
        let images_fd = fds.take("restore.images_fd", images.images_fd)?;
        let stdio = inherited(&images.descriptors, streams)?;
        let staged = executor::stage(self.sandbox()?, &plan, &mut fds, &cgroup, &directory)?;
        let external: Vec<(String, PathBuf)> = staged.external.into_iter().map(|e| (e.key, e.path)).collect();
        let legacy_cgroups: Vec<BorrowedFd<'_>> = cgroup.legacy().collect();
        let mut namespaces = self.shared_namespaces()?;
        namespaces.retain(|(kind, _)| *kind != NamespaceKind::Time);
        let options = RestoreOptions {
            criu: &criu,
            namespaces: &namespaces,
            images: images_fd.as_fd(),
            root: &staged.root,
            external: &external,
            cgroup: cgroup.as_fd(),
            legacy_cgroups: &legacy_cgroups,
            legacy_cpu: cgroup.legacy_cpu(),
            stdio: &stdio,
            tcp_established: images.tcp_established,
            deadline,
        };
        let mut entry = || worker.time_namespace(until);
        let restored = criu::restore(&options, &mut entry, &mut |_| ReleaseDecision::Release)?;
        let held = proto::RestoreResponse {
            pid: pid_number(Some(restored.pid)),
            held_at: timens::monotonic().unsigned_abs(),
        };
        Ok(Answer { result: response::Result::Restore(held), fds: restored.terminals })
    }

    /// A restore's helper has answered. The tree is the shim's child from the helper's end on; until it is released
    /// it cannot end by itself.
    pub fn restored(&mut self, id: &str, answer: &mut Answer) {
        let held = match &answer.result {
            response::Result::Restore(held) => {
                self.hold_restored(id, held.pid, std::mem::take(&mut answer.fds))
            }
            _ => {
                self.forget_output(id);
                return;
            }
        };
        if let Err(error) = held {
            if let Ok(task) = self.task(id) {
                task.kill();
            }
            answer.result = response::Result::Error(error.into());
        }
    }

    fn hold_restored(&mut self, id: &str, pid: u32, terminals: Vec<OwnedFd>) -> Result<(), RequestError> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(RequestError::Malformed)?;
        let pidfd = pidfd::open(pid).map_err(RequestError::system("open the restored process of", id))?;
        let mut task = self.take_task(id)?;
        let mut limited = Ok(());
        if let Phase::Planned(_, cgroup) = std::mem::replace(&mut task.phase, Phase::Changing) {
            limited = cgroup.limit_cpu();
            task.phase = Phase::Held(Process { pid, pidfd, cgroup });
        }
        let connected = self.connect(&mut task, terminals.into_iter().next(), Ours::default());
        self.tasks.push(task);
        limited?;
        connected.map_err(RequestError::system("read the output of", id))
    }

    /// Nothing came of a restore: the plan can be tried again, with streams of its own.
    fn forget_output(&mut self, id: &str) {
        if let Some(task) = self.tasks.iter_mut().find(|task| task.id == id) {
            task.output.finish(&self.poll);
            task.stdin = None;
        }
    }

    pub fn release(
        &mut self,
        asker: Asker,
        request: proto::ReleaseRequest,
    ) -> Result<Option<Answer>, RequestError> {
        for id in &request.ids {
            self.task(id)?.expect_phase(PhaseName::Held)?;
        }
        let pod = self.sandbox()?.cgroup();
        cgroup::freeze(pod).map_err(RequestError::system("freeze", "pod cgroup"))?;
        for cgroup in request.ids.iter().filter_map(|id| self.task(id).ok()?.cgroup()) {
            let _ = cgroup::thaw(cgroup);
        }
        let at = i64::try_from(request.at).unwrap_or(i64::MAX);
        self.release = Some(Release { asker, ids: request.ids, at, _urgent: RealTime::enter().ok() });
        Ok(None)
    }

    /// Spins until the instant, and lets go.
    pub fn expire_release(&mut self, now: i64) {
        let Some(release) = self.release.take_if(|release| release.deadline() <= now) else { return };
        while timens::monotonic() < release.at {
            std::hint::spin_loop();
        }
        let thawed = self.sandbox().and_then(|sandbox| {
            cgroup::thaw(sandbox.cgroup()).map_err(RequestError::system("thaw", "pod cgroup"))
        });
        let released_at = timens::monotonic();
        let started_at = timens::realtime();
        for task in self.tasks.iter_mut().filter(|task| release.ids.contains(&task.id)) {
            task.run_on(started_at);
        }
        let result = match thawed {
            Ok(()) => {
                response::Result::Release(proto::ReleaseResponse { released_at: released_at.unsigned_abs() })
            }
            Err(error) => response::Result::Error(error.into()),
        };
        self.answer(release.asker, result.into());
    }
}

/// What replaces the pipes that the checkpoint names for 0, 1 and 2. One pipe for two of them stays one.
fn inherited<'a>(
    descriptors: &str,
    streams: &'a Streams,
) -> Result<Vec<(String, BorrowedFd<'a>)>, RequestError> {
    let names: [String; 3] = serde_json::from_str(descriptors).map_err(|_| RequestError::Descriptors)?;
    let ends = [&streams.container.stdin, &streams.container.stdout, &streams.container.stderr];
    let mut stdio: Vec<(String, BorrowedFd<'a>)> = Vec::new();
    for (name, end) in names.into_iter().zip(ends) {
        if let Some(end) = end
            && is_pipe(&name)
            && stdio.iter().all(|(other, _)| *other != name)
        {
            stdio.push((name, end.as_fd()));
        }
    }
    Ok(stdio)
}

/// `pipe:[123]`, as /proc shows it. The text comes with a checkpoint and goes into a request to CRIU.
fn is_pipe(name: &str) -> bool {
    let number = name.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_pipe;

    #[test]
    fn only_a_pipes_name_is_one() {
        assert!(is_pipe("pipe:[12]"));
        for name in
            ["", "pipe:[]", "pipe:[1", "pipe:[1]]", "pipe:[x]", "/dev/null", "pipe:[1]:x", "socket:[1]"]
        {
            assert!(!is_pipe(name), "{name}");
        }
    }
}

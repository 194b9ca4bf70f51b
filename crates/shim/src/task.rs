//! One container, from its plan to its exit.
//!
//! ```text
//!  CreateContainer ──────► Created ──StartContainer──► Running ──its process 1 ended──► Ending ──log complete──► Exited
//!        │ with `restore`     │                          ▲                                ▲
//!        ▼                    └────────── killed ────────┼────────────────────────────────┘
//!     Planned ──Restore──► Held ──────────Release────────┘
//! ```
//!
//! The daemon sees Planned and Held as CREATED and Ending as RUNNING: EXITED promises that the log is complete. Exits
//! are kept until DeleteContainer.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use api::shim::v1::{self as proto, container_plan::PidMode, container_state};
use executor::{Cgroup, Created, Sandbox};
use rustix::io::Errno;
use sys::{Pid, pidfd, timens};

use crate::{
    error::RequestError,
    restore::Plan,
    sandbox::pid_number,
    stdio::{Output, terminal::Terminal},
};

/// One container.
pub struct Task {
    pub id: String,
    /// Name of its directory in the pod's cgroups.
    pub cgroup_name: String,
    pub pid_mode: PidMode,
    pub phase: Phase,
    pub output: Output,
    pub terminal: Option<Terminal>,
    /// The write end of the container's standard input, if it has one.
    pub stdin: Option<OwnedFd>,
    /// ns since the epoch; 0: not started.
    pub started_at: i64,
    /// Destinations of the mounts that CRIU is not to look into.
    pub external: Vec<String>,
}

/// How far it has come.
pub enum Phase {
    /// To be restored: it has a cgroup and no process.
    Planned(Box<Plan>, Cgroup),
    /// Its process waits in front of execve.
    Created(Created),
    /// Its tasks are restored, frozen, and have not run.
    Held(Process),
    Running(Process),
    /// Process 1 has ended, and its output is still being read, until CLOCK_MONOTONIC ns at most.
    Ending {
        cgroup: Cgroup,
        exit: proto::Exit,
        drain_until: i64,
    },
    Exited(Cgroup, proto::Exit),
    /// Only while one phase is turned into the next.
    Changing,
}

/// A container's process 1 and where it runs.
pub struct Process {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
}

/// The name of a phase alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseName {
    Planned,
    Created,
    Held,
    Running,
    Ending,
    Ended,
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planned => "waiting for its restore",
            Self::Created => "created",
            Self::Held => "restored and held",
            Self::Running => "running",
            Self::Ending => "ending",
            Self::Ended => "ended",
        })
    }
}

impl Task {
    pub fn phase_name(&self) -> PhaseName {
        match &self.phase {
            Phase::Planned(..) => PhaseName::Planned,
            Phase::Created(_) => PhaseName::Created,
            Phase::Held(_) => PhaseName::Held,
            Phase::Running(_) => PhaseName::Running,
            Phase::Ending { .. } => PhaseName::Ending,
            Phase::Exited(..) | Phase::Changing => PhaseName::Ended,
        }
    }

    pub fn expect_phase(&self, needed: PhaseName) -> Result<(), RequestError> {
        if self.phase_name() == needed { Ok(()) } else { Err(self.wrong_phase(needed)) }
    }

    pub fn wrong_phase(&self, needed: PhaseName) -> RequestError {
        RequestError::Phase { id: self.id.clone(), is: self.phase_name(), needed }
    }

    /// Its process 1, while it lives.
    pub fn process(&self) -> Option<(Pid, BorrowedFd<'_>)> {
        match &self.phase {
            Phase::Created(created) => Some((created.pid, created.pidfd.as_fd())),
            Phase::Held(process) | Phase::Running(process) => Some((process.pid, process.pidfd.as_fd())),
            Phase::Planned(..) | Phase::Ending { .. } | Phase::Exited(..) | Phase::Changing => None,
        }
    }

    pub fn is_process(&self, pid: Pid) -> bool {
        self.process().is_some_and(|(own, _)| own == pid)
    }

    pub fn cgroup(&self) -> Option<&Cgroup> {
        match &self.phase {
            Phase::Planned(_, cgroup) | Phase::Ending { cgroup, .. } | Phase::Exited(cgroup, _) => {
                Some(cgroup)
            }
            Phase::Created(created) => Some(&created.cgroup),
            Phase::Held(process) | Phase::Running(process) => Some(&process.cgroup),
            Phase::Changing => None,
        }
    }

    /// From Created to Running. A failure leaves it to the reaper.
    pub fn start(&mut self) -> Result<(), RequestError> {
        let Phase::Created(created) = &mut self.phase else {
            return Err(self.wrong_phase(PhaseName::Created));
        };
        created.start()?;
        if let Phase::Created(created) = std::mem::replace(&mut self.phase, Phase::Changing) {
            let Created { pid, pidfd, cgroup, .. } = created;
            self.phase = Phase::Running(Process { pid, pidfd, cgroup });
        }
        self.started_at = timens::realtime();
        Ok(())
    }

    /// From Held to Running.
    pub fn run_on(&mut self, started_at: i64) {
        match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Held(process) => (self.phase, self.started_at) = (Phase::Running(process), started_at),
            other => self.phase = other,
        }
    }

    /// Its process 1 has ended with `code`: what is left of it is killed, unless its own pid namespace did that.
    pub fn end(&mut self, code: u32, drain_until: i64) {
        let cgroup = match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Created(created) => created.cgroup,
            Phase::Held(process) | Phase::Running(process) => process.cgroup,
            other => return self.phase = other,
        };
        // 128 + SIGKILL is what the OOM killer leaves, also through a shell. The counter goes with the cgroup.
        let oom_killed = code == 137 && cgroup.oom_kills() > 0;
        if self.pid_mode != PidMode::Container {
            let _ = cgroup.kill();
        }
        let exit = proto::Exit { id: self.id.clone(), code, finished_at: timens::realtime(), oom_killed };
        self.phase = Phase::Ending { cgroup, exit, drain_until };
    }

    /// From Ending to Exited, once the log is complete.
    pub fn settle(&mut self) -> Option<proto::Exit> {
        if !self.output.is_finished() {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Ending { cgroup, exit, .. } => {
                self.phase = Phase::Exited(cgroup, exit.clone());
                Some(exit)
            }
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// When an ending container's output is given up, CLOCK_MONOTONIC ns.
    pub fn drain_deadline(&self) -> Option<i64> {
        match &self.phase {
            Phase::Ending { drain_until, .. } => Some(*drain_until),
            _ => None,
        }
    }

    /// Signals process 1. What has ended already is beyond it, which is no error.
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        match self.process().map(|(_, pidfd)| pidfd::kill_raw(pidfd, signal)) {
            None | Some(Ok(()) | Err(Errno::SRCH)) => Ok(()),
            Some(Err(errno)) => Err(errno),
        }
    }

    /// Kills what has not started, and buries its process: nobody hears of its exit.
    pub fn end_unstarted(&self) {
        if let Some((_, pidfd)) = self.process() {
            self.kill();
            let _ = pidfd::wait(pidfd);
        }
    }

    /// Kills all of it, frozen or not.
    pub fn kill(&self) {
        if let Some(cgroup) = self.cgroup() {
            let _ = cgroup.kill();
        }
    }

    /// Removes its cgroup. What cannot be removed is left to the daemon, which removes the pod's.
    pub fn remove(self, sandbox: &Sandbox) {
        let cgroup = match self.phase {
            Phase::Planned(_, cgroup) | Phase::Ending { cgroup, .. } | Phase::Exited(cgroup, _) => cgroup,
            Phase::Created(created) => created.cgroup,
            Phase::Held(process) | Phase::Running(process) => process.cgroup,
            Phase::Changing => return,
        };
        for failure in cgroup.remove(sandbox, &self.cgroup_name) {
            eprintln!("{failure}");
        }
    }

    /// As the daemon sees it.
    pub fn state(&self) -> proto::ContainerState {
        let (phase, exit) = match &self.phase {
            Phase::Planned(..) | Phase::Created(_) | Phase::Held(_) => {
                (container_state::Phase::Created, None)
            }
            Phase::Running(_) | Phase::Ending { .. } | Phase::Changing => {
                (container_state::Phase::Running, None)
            }
            Phase::Exited(_, exit) => (container_state::Phase::Exited, Some(exit.clone())),
        };
        proto::ContainerState {
            id: self.id.clone(),
            pid: pid_number(self.process().map(|(pid, _)| pid)),
            phase: phase.into(),
            started_at: self.started_at,
            exit,
            log_dropped: self.output.log.dropped(),
        }
    }

    /// In a forked helper: see [`crate::pod::Pod::close_in_helper`].
    pub fn close_in_helper(&mut self) {
        self.output.forget();
        self.stdin = None;
        self.terminal = None;
    }
}

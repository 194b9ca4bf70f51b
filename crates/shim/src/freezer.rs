//! The cut: every chosen container stopped at one instant, and the watchdog that never lets a pod stay so.
//!
//! ```text
//!      Freeze            dumps are ready        the pod's cgroup says frozen         Resume, watchdog, lost daemon
//!  Off ──────► Preparing ───────► Freezing ────────────────────────► Frozen ─────────────────────────────► Off
//!                                 pod = 1   read the clocks,           │ Hold: only Resume is left
//!                  ▲                 │      containers = 1, pod = 0    ▼
//!                  └── pod = 0, 2 ms ┘ a task waits in vfork
//! ```
//!
//! The pod's cgroup is frozen first, because that stops all containers with one write; then each container's own is,
//! and the pod's is thawed again, because CRIU hangs on a task whose *parent* cgroup is frozen. The clocks are read at
//! once by a child that already waits inside the pod's time namespace: whatever lies between the cut and the reading
//! is a jump that the restored pod sees.

use std::os::fd::OwnedFd;

use api::shim::v1::{self as proto, event, response};
use executor::cgroup;
use rustix::fs::{Mode, OFlags, openat};
use sys::{schedule::RealTime, timens};

use crate::{
    clock_reader::ClockReader,
    error::RequestError,
    pod::{Answer, Asker, Pod},
    poll::{Interest, Token},
    task::{PhaseName, Task},
    vfork,
};

/// Whether the pod is frozen, and how long at most.
pub enum Freezer {
    Off,
    /// Dumps of these containers are still starting.
    Preparing(Cut),
    Freezing(Cut, Freezing),
    Frozen {
        ids: Vec<String>,
        /// CLOCK_MONOTONIC, ns; none: held.
        deadline: Option<i64>,
    },
}

/// What was asked for.
pub struct Cut {
    asker: Asker,
    ids: Vec<String>,
    asked_at: i64,
    deadline: i64,
    /// Not before; 0: at once.
    begin_at: i64,
}

/// Shortest pause between two looks at whether all have stopped, in ns.
const LOOK: i64 = 50_000;

/// How long a task in vfork is given to finish it, in ns.
const VFORK: i64 = 2_000_000;

pub struct Freezing {
    /// `cgroup.events` of the pod.
    events: OwnedFd,
    clocks: ClockReader,
    froze_at: i64,
    /// When to look again unasked: the kernel tells at most every 10 ms, and that would be a jump of the pod's clocks.
    look_at: i64,
    /// What passes between the cut and the reading of the clocks is a jump that the restored pod sees.
    _urgent: Option<RealTime>,
}

impl Freezer {
    pub fn deadline(&self) -> Option<i64> {
        match self {
            Self::Off => None,
            Self::Preparing(cut) if cut.begin_at > 0 => Some(cut.begin_at.min(cut.deadline)),
            Self::Preparing(cut) => Some(cut.deadline),
            Self::Freezing(cut, freezing) => Some(freezing.look_at.min(cut.deadline)),
            Self::Frozen { deadline, .. } => *deadline,
        }
    }

    pub fn is_frozen(&self) -> bool {
        matches!(self, Self::Frozen { .. })
    }

    /// Whether this container is part of a cut that holds.
    pub fn holds(&self, id: &str) -> bool {
        matches!(self, Self::Frozen { ids, .. } if ids.iter().any(|held| held == id))
    }

    /// Whether a new process of this container would stand still at once, and whoever waits for it with it.
    pub fn stops(&self, id: &str) -> bool {
        matches!(self, Self::Freezing(..)) || self.holds(id)
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Off)
    }
}

impl Pod {
    pub fn freeze(
        &mut self,
        asker: Asker,
        request: proto::FreezeRequest,
    ) -> Result<Option<Answer>, RequestError> {
        if !matches!(self.freezer, Freezer::Off) {
            return Err(RequestError::Frozen);
        }
        for id in &request.ids {
            self.task(id)?.expect_phase(PhaseName::Running)?;
        }
        let asked_at = timens::monotonic();
        let deadline = asked_at.saturating_add_unsigned(request.watchdog_ms.saturating_mul(1_000_000));
        self.freezer = Freezer::Preparing(Cut { asker, ids: request.ids, asked_at, deadline, begin_at: 0 });
        self.advance_freeze();
        Ok(None)
    }

    /// A dump has come to its cut, or has ended: freezes when all are ready; lets late ones go on.
    pub fn advance_freeze(&mut self) {
        match self.freezer.take() {
            Freezer::Preparing(mut cut) if cut.begin_at <= timens::monotonic() => {
                cut.begin_at = 0;
                if self.dumps_start(&cut.ids) {
                    self.freezer = Freezer::Preparing(cut);
                } else {
                    self.begin_freeze(cut);
                }
            }
            Freezer::Frozen { ids, deadline } => {
                self.release_dumps(Some(&ids));
                self.freezer = Freezer::Frozen { ids, deadline };
            }
            other => self.freezer = other,
        }
    }

    fn begin_freeze(&mut self, cut: Cut) {
        match self.freeze_pod() {
            Ok(freezing) => {
                self.freezer = Freezer::Freezing(cut, freezing);
                self.check_frozen();
            }
            Err(error) => self.fail_freeze(&cut, error),
        }
    }

    fn freeze_pod(&self) -> Result<Freezing, RequestError> {
        let sandbox = self.sandbox()?;
        let clocks = ClockReader::new(sandbox.time())
            .map_err(RequestError::system("start a clock reader in", "pod"))?;
        let events =
            openat(sandbox.cgroup(), "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|events| self.poll.add(&events, Token::Cgroup, Interest::Change).map(|()| events))
                .map_err(RequestError::system("watch cgroup.events of", "pod"))?;
        let _urgent = RealTime::enter().ok();
        let froze_at = timens::monotonic();
        match cgroup::freeze(sandbox.cgroup()) {
            Ok(()) => Ok(Freezing { events, clocks, froze_at, look_at: froze_at, _urgent }),
            Err(errno) => {
                self.poll.remove(&events);
                Err(RequestError::system("freeze", "pod cgroup")(errno))
            }
        }
    }

    /// Goes on when the last task has stopped.
    pub fn check_frozen(&mut self) {
        let Freezer::Freezing(_, freezing) = &mut self.freezer else { return };
        if !cgroup::is_frozen(&freezing.events).unwrap_or(false) {
            // After an eighth of the time that it has taken so far: often at first, and never for long too late.
            let now = timens::monotonic();
            freezing.look_at = now + ((now - freezing.froze_at) / 8).max(LOOK);
            return;
        }
        let reading = freezing.clocks.read().map_err(RequestError::system("read the clocks of", "pod"));
        let frozen_at = timens::monotonic();
        let Freezer::Freezing(cut, freezing) = self.freezer.take() else { return };
        self.poll.remove(&freezing.events);
        if cut.ids.iter().filter_map(|id| self.task(id).ok()?.cgroup()).any(vfork::is_waiting) {
            return self.freeze_again(cut);
        }
        match reading.and_then(|clocks| self.freeze_each(&cut.ids).map(|()| clocks)) {
            Ok(clocks) => {
                self.release_dumps(Some(&cut.ids));
                self.freezer = Freezer::Frozen { ids: cut.ids, deadline: Some(cut.deadline) };
                let frozen = proto::FreezeResponse {
                    clocks: Some(clocks),
                    froze_at: freezing.froze_at.unsigned_abs(),
                    frozen_at: frozen_at.unsigned_abs(),
                };
                self.answer(cut.asker, response::Result::Freeze(frozen).into());
            }
            Err(error) => self.fail_freeze(&cut, error),
        }
    }

    /// The pod goes on for a moment; dumps keep waiting.
    fn freeze_again(&mut self, mut cut: Cut) {
        match self.sandbox().and_then(|sandbox| {
            cgroup::thaw(sandbox.cgroup()).map_err(RequestError::system("thaw", "pod cgroup"))
        }) {
            Ok(()) => {
                cut.begin_at = timens::monotonic() + VFORK;
                self.freezer = Freezer::Preparing(cut);
            }
            Err(error) => self.fail_freeze(&cut, error),
        }
    }

    /// From the pod's freeze to one of each container.
    fn freeze_each(&self, ids: &[String]) -> Result<(), RequestError> {
        for id in ids {
            if let Some(cgroup) = self.task(id)?.cgroup() {
                cgroup::freeze(cgroup).map_err(RequestError::system("freeze", id.as_str()))?;
                // CRIU makes the tasks themselves work for it.
                cgroup.free_cpu()?;
            }
        }
        cgroup::thaw(self.sandbox()?.cgroup()).map_err(RequestError::system("thaw", "pod cgroup"))
    }

    /// Lets everything run, whatever of it was frozen; dumps that wait for a cut wait for nothing now.
    fn thaw(&mut self, ids: &[String]) {
        for cgroup in ids.iter().filter_map(|id| self.task(id).ok()?.cgroup()) {
            // Errors: an unlimited container is better than a frozen one.
            let _ = cgroup.limit_cpu();
            let _ = cgroup::thaw(cgroup);
        }
        if let Some(sandbox) = &self.sandbox {
            let _ = cgroup::thaw(sandbox.cgroup());
        }
        self.release_dumps(None);
    }

    /// CRIU freezes a cgroup that it finds thawed, and leaves it so: a cut that was given up while CRIU was on its way
    /// would outlast it.
    pub fn thaw_after_dump(&self, id: &str) {
        if self.freezer.stops(id) {
            return;
        }
        if let Some(cgroup) = self.task(id).ok().and_then(Task::cgroup) {
            let _ = cgroup::thaw(cgroup);
        }
    }

    fn fail_freeze(&mut self, cut: &Cut, error: RequestError) {
        self.thaw(&cut.ids);
        self.answer(cut.asker, response::Result::Error(error.into()).into());
    }

    pub fn hold(&mut self) -> Result<Answer, RequestError> {
        match &mut self.freezer {
            Freezer::Frozen { deadline, .. } => *deadline = None,
            Freezer::Off | Freezer::Preparing(_) | Freezer::Freezing(..) => {
                return Err(RequestError::NotFrozen);
            }
        }
        Ok(Answer::done())
    }

    pub fn resume(&mut self, request: &proto::ResumeRequest) -> Result<Answer, RequestError> {
        if !self.freezer.is_frozen() {
            return Err(RequestError::NotFrozen);
        }
        let Freezer::Frozen { ids, .. } = self.freezer.take() else { return Err(RequestError::NotFrozen) };
        if request.kill {
            // A task that a thaw lets run dies before its next instruction.
            ids.iter().filter_map(|id| self.task(id).ok()).for_each(Task::kill);
        }
        self.thaw(&ids);
        Ok(Answer::done())
    }

    pub fn expire_freeze(&mut self, now: i64) {
        match &self.freezer {
            Freezer::Preparing(cut) if now < cut.deadline => self.advance_freeze(),
            Freezer::Freezing(cut, _) if now < cut.deadline => self.check_frozen(),
            freezer if freezer.deadline().is_some_and(|deadline| deadline <= now) => {
                self.end_freeze("the watchdog's time is over");
            }
            _ => {}
        }
    }

    /// Without a daemon nobody finishes what the freeze was for; after Hold the other side may run, so that only the
    /// daemon can say.
    pub fn freezer_lost_daemon(&mut self) {
        if self.freezer.deadline().is_some() {
            self.end_freeze("the daemon is gone");
        }
        self.release_dumps(None);
    }

    pub fn end_freeze(&mut self, reason: &str) {
        match self.freezer.take() {
            Freezer::Off => {}
            Freezer::Preparing(cut) => self.fail_freeze(&cut, cut.timeout()),
            Freezer::Freezing(cut, freezing) => {
                self.poll.remove(&freezing.events);
                self.fail_freeze(&cut, cut.timeout());
            }
            Freezer::Frozen { ids, .. } => {
                self.thaw(&ids);
                self.tell(event::What::Thawed(proto::Thawed { reason: reason.to_owned() }));
            }
        }
    }
}

impl Cut {
    fn timeout(&self) -> RequestError {
        RequestError::FreezeTimeout {
            waited_ms: (timens::monotonic() - self.asked_at).unsigned_abs() / 1_000_000,
        }
    }
}

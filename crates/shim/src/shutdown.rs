//! The end of the shim: kill what is left, wait for it, remove the cgroups, say so, go.

use executor::cgroup;
use sys::timens;

use crate::{
    error::RequestError,
    pod::{Answer, Asker, Pod},
    task::Phase,
};

/// How long killed processes may take to end, in ns. A task in uninterruptible sleep can outlive it; its cgroup is
/// then left to the daemon, which removes what it made.
const PATIENCE: i64 = 5_000_000_000;

pub struct Shutdown {
    asker: Asker,
    pub deadline: i64,
}

impl Pod {
    pub fn begin_shutdown(&mut self, asker: Asker) -> Result<Option<Answer>, RequestError> {
        self.end_freeze("the shim ends");
        self.stop_restores();
        if let Some(sandbox) = &self.sandbox {
            cgroup::kill(sandbox.cgroup()).map_err(RequestError::system("kill", "pod cgroup"))?;
        }
        self.shutdown = Some(Shutdown { asker, deadline: timens::monotonic() + PATIENCE });
        Ok(None)
    }

    /// Ends the shim when the last container and the last helper have ended.
    pub fn advance_shutdown(&mut self, now: i64) {
        let Some(shutdown) = &self.shutdown else { return };
        let alive = self.pod_init_pid().is_some()
            || !self.helpers.is_empty()
            || self.tasks.iter().any(|task| !matches!(task.phase, Phase::Planned(..) | Phase::Exited(..)));
        if alive && now < shutdown.deadline {
            return;
        }
        let asker = shutdown.asker;
        if let Some(sandbox) = &self.sandbox {
            self.tasks.drain(..).for_each(|task| task.remove(sandbox));
            sandbox.remove().iter().for_each(|failure| eprintln!("{failure}"));
        }
        self.answer(asker, Answer::done());
        self.done = true;
    }
}

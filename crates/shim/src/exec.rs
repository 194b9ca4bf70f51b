//! Further processes inside a running container, with stdio that the daemon holds.
//!
//! An exec belongs to the daemon connection that asked for it: without a reader it has no purpose, so it is killed
//! when that connection ends. Its own end is kept until some connection has heard of it.

use std::os::fd::{AsFd, OwnedFd};

use api::shim::v1::{self as proto, event, response};
use executor::{Descriptors, Stdio};
use rustix::process::{Signal, kill_process_group};
use sys::{Pid, pidfd, pidfd::ExitStatus, timens};

use crate::{
    error::RequestError,
    pod::{Answer, Asker, Pod},
    sandbox::pid_number,
    task::{Phase, PhaseName},
};

struct Exec {
    exec_id: String,
    pid: Pid,
    pidfd: OwnedFd,
    connection: u32,
}

#[derive(Default)]
pub struct Execs {
    running: Vec<Exec>,
    /// Ended, and no connection has heard of it.
    unheard: Vec<proto::ExecExit>,
}

impl Execs {
    /// Notes the end of an exec.
    pub fn ended(&mut self, pid: Pid, status: ExitStatus) -> Option<proto::ExecExit> {
        let index = self.running.iter().position(|exec| exec.pid == pid)?;
        let exec = self.running.swap_remove(index);
        Some(proto::ExecExit { exec_id: exec.exec_id, code: status.code(), finished_at: timens::realtime() })
    }

    /// Kills the execs of a connection that is gone, each with its process group. It leads a session of its own and
    /// has not been reaped, so that the number is still its.
    pub fn kill_of(&self, connection: u32) {
        for exec in self.running.iter().filter(|exec| exec.connection == connection) {
            let _ = kill_process_group(exec.pid, Signal::KILL);
            let _ = pidfd::kill(&exec.pidfd, Signal::KILL);
        }
    }

    pub fn take_unheard(&mut self) -> Vec<proto::ExecExit> {
        std::mem::take(&mut self.unheard)
    }
}

impl Pod {
    pub fn exec(
        &mut self,
        asker: Asker,
        request: proto::ExecRequest,
        mut fds: Descriptors,
    ) -> Result<Answer, RequestError> {
        let process = request.process.as_ref().ok_or(RequestError::Missing { field: "process" })?;
        let mut take = |field, index: Option<u32>| index.map(|index| fds.take(field, index)).transpose();
        let stdio = Stdio {
            stdin: take("stdin_fd", request.stdin_fd)?,
            stdout: take("stdout_fd", request.stdout_fd)?,
            stderr: take("stderr_fd", request.stderr_fd)?,
        };
        self.expect_thawed(&request.id)?;
        let sandbox = self.sandbox()?;
        let task = self.task(&request.id)?;
        let Phase::Running(container) = &task.phase else {
            return Err(task.wrong_phase(PhaseName::Running));
        };
        let begun = executor::exec(sandbox, container.pidfd.as_fd(), &container.cgroup, process, &stdio)?;
        let fds: Vec<OwnedFd> = begun.terminal.into_iter().collect();
        let terminal_fd = (!fds.is_empty()).then_some(0);
        let answer = proto::ExecResponse { pid: pid_number(Some(begun.pid)), terminal_fd };
        let Asker { connection, .. } = asker;
        self.execs.running.push(Exec {
            exec_id: request.exec_id,
            pid: begun.pid,
            pidfd: begun.pidfd,
            connection,
        });
        Ok(Answer { result: response::Result::Exec(answer), fds })
    }

    pub fn tell_exec_exit(&mut self, exit: proto::ExecExit) {
        if !self.tell(event::What::ExecExit(exit.clone())) {
            self.execs.unheard.push(exit);
        }
    }
}

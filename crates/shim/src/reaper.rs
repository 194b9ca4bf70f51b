//! Ends: whose it was, why, and that the log is complete before anybody hears of it.
//!
//! Children are buried one by one on SIGCHLD. A container's end goes through three steps: read the OOM counter (the
//! cgroup is still there), end what is left of the container where no pid namespace did, read the pipes empty. A
//! process outside that holds a copy of a pipe's end (an fd passed over a socket) delays the report by [`DRAIN`] at
//! most; what it writes later is lost.

use api::shim::v1::{self as proto, event};
use sys::{Pid, pidfd, pidfd::ExitStatus, timens};

use crate::pod::Pod;

/// How long a container's end waits for its pipes to be closed, in ns.
const DRAIN: i64 = 200_000_000;

impl Pod {
    /// Buries every child that has ended.
    pub fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.next() {}
        self.hear_helpers();
        while let Ok(Some((pid, status))) = pidfd::try_wait_any() {
            self.ended(pid, status);
        }
    }

    /// A child that is nobody's here was an orphan of a container, or a helper whose word has been heard.
    fn ended(&mut self, pid: Pid, status: ExitStatus) {
        if let Some(index) = self.tasks.iter().position(|task| task.is_process(pid)) {
            self.container_ended(index, status);
        } else if let Some(exit) = self.execs.ended(pid, status) {
            self.tell_exec_exit(exit);
        } else if self.pod_init_pid() == Some(pid) {
            self.pod_init_ended = true;
            self.tell(event::What::PodInitExit(proto::PodInitExit {}));
        }
    }

    fn container_ended(&mut self, index: usize, status: ExitStatus) {
        let task = &mut self.tasks[index];
        task.end(status.code(), timens::monotonic() + DRAIN);
        task.output.drain(&mut self.buffer, &self.poll);
        self.settle(index);
    }

    /// Output of a running or ending container.
    pub fn pump(&mut self, number: u32) {
        if let Some(index) = self.tasks.iter().position(|task| task.output.has(number)) {
            self.tasks[index].output.pump(number, &mut self.buffer, &self.poll);
            self.settle(index);
        }
    }

    /// Reports an end once the log is complete.
    fn settle(&mut self, index: usize) {
        if let Some(exit) = self.tasks[index].settle() {
            self.tell(event::What::Exit(exit));
        }
    }

    /// Somebody outside still holds a pipe: takes what is there and closes it.
    pub fn expire_drains(&mut self, now: i64) {
        for index in 0..self.tasks.len() {
            let task = &mut self.tasks[index];
            if task.drain_deadline().is_some_and(|deadline| deadline <= now) {
                task.output.drain(&mut self.buffer, &self.poll);
                task.output.finish(&self.poll);
                self.settle(index);
            }
        }
    }
}

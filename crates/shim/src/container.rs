//! Requests about one container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::{self as proto, response};
use executor::{Cgroup, Descriptors, Sandbox, Stdio};
use rustix::io::Errno;

use crate::{
    error::RequestError,
    helper::Work,
    log::{Log, Stream},
    pod::{Answer, Pod},
    restore::Plan,
    sandbox::pid_number,
    signal::signal_all,
    stdio::{
        Output,
        pipe::{self, Owner, Pipe},
        terminal::Terminal,
    },
    task::{Phase, PhaseName, Task},
};

const KILL: i32 = 9;

/// The shim's and the container's ends of the standard streams.
pub struct Streams {
    pub container: Stdio,
    ours: Ours,
}

/// The shim's ends.
#[derive(Default)]
pub struct Ours {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Pod {
    pub fn task(&self, id: &str) -> Result<&Task, RequestError> {
        let found = self.tasks.iter().find(|task| task.id == id);
        found.ok_or_else(|| RequestError::NoContainer { id: id.to_owned() })
    }

    pub fn task_mut(&mut self, id: &str) -> Result<&mut Task, RequestError> {
        let found = self.tasks.iter_mut().find(|task| task.id == id);
        found.ok_or_else(|| RequestError::NoContainer { id: id.to_owned() })
    }

    pub fn create_container(
        &mut self,
        request: proto::CreateContainerRequest,
        mut fds: Descriptors,
    ) -> Result<Answer, RequestError> {
        let plan = request.plan.ok_or(RequestError::Missing { field: "plan" })?;
        self.expect_thawed(&plan.id)?;
        if self.tasks.iter().any(|task| task.id == plan.id) {
            return Err(RequestError::ContainerExists { id: plan.id });
        }
        let log = plan.stdio.as_ref().and_then(|stdio| stdio.log_fd);
        let log = log.map(|index| fds.take("stdio.log_fd", index)).transpose()?;
        let mut task = Task {
            id: plan.id.clone(),
            cgroup_name: plan.cgroup.clone(),
            pid_mode: plan.pid_mode(),
            phase: Phase::Changing,
            output: Output::new(Log::new(log, self.log_limit)),
            terminal: None,
            stdin: None,
            started_at: 0,
            external: executor::external_keys(&plan),
        };
        if plan.restore.is_some() {
            let cgroup = Cgroup::create(self.sandbox()?, &plan)?;
            // To be back soon, and when that was planned.
            cgroup.free_cpu()?;
            task.phase = Phase::Planned(Box::new(Plan { plan, fds }), cgroup);
        } else {
            let executed = self.execute(&mut task, &plan, &mut fds);
            if let Err(error) = executed {
                // What exists but cannot be watched must not live.
                task.end_unstarted();
                task.remove(self.sandbox()?);
                return Err(error);
            }
        }
        let pid = pid_number(task.process().map(|(pid, _)| pid));
        self.tasks.push(task);
        Ok(response::Result::CreateContainer(proto::CreateContainerResponse { pid }).into())
    }

    /// Refuses to wait for a process that would be frozen: the watchdog could not run meanwhile.
    pub fn expect_thawed(&self, id: &str) -> Result<(), RequestError> {
        let frozen = self.freezer.stops(id) || self.release.is_some();
        if frozen { Err(RequestError::Frozen) } else { Ok(()) }
    }

    pub fn sandbox(&self) -> Result<&Sandbox, RequestError> {
        self.sandbox.as_ref().ok_or(RequestError::NoSandbox)
    }

    /// Makes the container up to its execve.
    fn execute(
        &mut self,
        task: &mut Task,
        plan: &proto::ContainerPlan,
        fds: &mut Descriptors,
    ) -> Result<(), RequestError> {
        let sandbox = self.sandbox()?;
        let target = match plan.target_id.as_str() {
            "" => None,
            id => Some(self.target(id)?),
        };
        let mut streams = Streams::new(sandbox, plan)?;
        let ours = streams.take_ours();
        let mut created = executor::create(sandbox, plan, fds, &streams.container, target)?;
        let terminal = created.terminal.take();
        task.phase = Phase::Created(created);
        self.connect(task, terminal, ours)
            .map_err(RequestError::system("read the output of", plan.id.as_str()))
    }

    /// The process whose pid namespace a debug container joins.
    fn target(&self, id: &str) -> Result<BorrowedFd<'_>, RequestError> {
        let task = self.task(id)?;
        match &task.phase {
            Phase::Running(process) => Ok(process.pidfd.as_fd()),
            _ => Err(task.wrong_phase(PhaseName::Running)),
        }
    }

    /// Watches what the container writes, be it over pipes or a terminal.
    pub fn connect(&mut self, task: &mut Task, terminal: Option<OwnedFd>, ours: Ours) -> Result<(), Errno> {
        if let Some(master) = terminal {
            let terminal = Terminal::new(master);
            task.output.add(terminal.reader()?, Stream::Stdout, self.new_number(), &self.poll)?;
            task.terminal = Some(terminal);
        }
        for (end, stream) in [(ours.stdout, Stream::Stdout), (ours.stderr, Stream::Stderr)] {
            if let Some(end) = end {
                task.output.add(end, stream, self.new_number(), &self.poll)?;
            }
        }
        if ours.stdin.is_some() {
            task.stdin = ours.stdin;
        }
        Ok(())
    }

    /// Takes a task out, to change it beside the rest of the pod.
    pub fn take_task(&mut self, id: &str) -> Result<Task, RequestError> {
        let found = self.tasks.iter().position(|task| task.id == id);
        found
            .map(|index| self.tasks.swap_remove(index))
            .ok_or_else(|| RequestError::NoContainer { id: id.to_owned() })
    }

    pub fn start_container(
        &mut self,
        request: &proto::StartContainerRequest,
    ) -> Result<Answer, RequestError> {
        self.expect_thawed(&request.id)?;
        let task = self.task_mut(&request.id)?;
        task.start()?;
        let started = proto::StartContainerResponse { started_at: task.started_at };
        Ok(response::Result::StartContainer(started).into())
    }

    pub fn kill(&mut self, request: &proto::KillRequest) -> Result<Answer, RequestError> {
        let task = self.task(&request.id)?;
        let bad = || RequestError::Signal { id: request.id.clone(), signal: request.signal };
        let signal = i32::try_from(request.signal).ok().filter(|n| (1..=64).contains(n)).ok_or_else(bad)?;
        let failed = |step: &'static str| RequestError::system(step, request.id.as_str());
        match task.cgroup() {
            Some(cgroup) if request.all && signal == KILL => cgroup.kill().map_err(failed("kill all of"))?,
            Some(cgroup) if request.all => signal_all(cgroup, signal).map_err(failed("signal all of"))?,
            Some(_) | None => task.signal(signal).map_err(failed("signal"))?,
        }
        Ok(Answer::done())
    }

    /// What never started is ended first; nobody hears of its exit.
    pub fn delete_container(
        &mut self,
        request: &proto::DeleteContainerRequest,
    ) -> Result<Answer, RequestError> {
        let task = self.task(&request.id)?;
        if matches!(task.phase, Phase::Running(_) | Phase::Ending { .. }) {
            return Err(task.wrong_phase(PhaseName::Ended));
        }
        self.expect_idle(Work::Restore, &request.id)?;
        task.end_unstarted();
        let mut task = self.take_task(&request.id)?;
        task.output.finish(&self.poll);
        task.remove(self.sandbox()?);
        Ok(Answer::done())
    }

    pub fn resize_tty(&mut self, request: &proto::ResizeTtyRequest) -> Result<Answer, RequestError> {
        let task = self.task(&request.id)?;
        let terminal =
            task.terminal.as_ref().ok_or_else(|| RequestError::NoTerminal { id: request.id.clone() })?;
        let resized = terminal.resize(request.width, request.height);
        resized.map_err(RequestError::system("resize the terminal of", request.id.as_str()))?;
        Ok(Answer::done())
    }

    pub fn reopen_log(
        &mut self,
        request: &proto::ReopenLogRequest,
        mut fds: Descriptors,
    ) -> Result<Answer, RequestError> {
        let task = self.task_mut(&request.id)?;
        task.output.log.reopen(fds.take("log_fd", request.log_fd)?);
        Ok(Answer::done())
    }

    pub fn update_resources(
        &mut self,
        request: &proto::UpdateResourcesRequest,
    ) -> Result<Answer, RequestError> {
        let resources = request.resources.as_ref().ok_or(RequestError::Missing { field: "resources" })?;
        let sandbox = self.sandbox()?;
        if request.id.is_empty() {
            sandbox.limit(resources)?;
        } else if let Some(cgroup) = self.task(&request.id)?.cgroup() {
            cgroup.update(sandbox, resources)?;
        }
        Ok(Answer::done())
    }
}

impl Streams {
    /// Pipes, owned by the user that the container's program runs as. With a terminal there are none.
    pub fn new(sandbox: &Sandbox, plan: &proto::ContainerPlan) -> Result<Self, RequestError> {
        let process = plan.process.as_ref().ok_or(RequestError::Missing { field: "plan.process" })?;
        let mut streams = Self { container: Stdio::default(), ours: Ours::default() };
        if process.tty {
            return Ok(streams);
        }
        let owner = Owner { uid: sandbox.host_uid(process.uid), gid: sandbox.host_gid(process.gid) };
        let failed = || RequestError::system("make a pipe for", plan.id.as_str());
        if plan.stdio.as_ref().is_some_and(|stdio| stdio.stdin) {
            let Pipe { container, shim } = pipe::input(owner).map_err(failed())?;
            (streams.container.stdin, streams.ours.stdin) = (Some(container), Some(shim));
        }
        let Pipe { container, shim } = pipe::output(owner).map_err(failed())?;
        (streams.container.stdout, streams.ours.stdout) = (Some(container), Some(shim));
        let Pipe { container, shim } = pipe::output(owner).map_err(failed())?;
        (streams.container.stderr, streams.ours.stderr) = (Some(container), Some(shim));
        Ok(streams)
    }

    pub fn take_ours(&mut self) -> Ours {
        std::mem::take(&mut self.ours)
    }
}

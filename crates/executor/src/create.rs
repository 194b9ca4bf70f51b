//! Creating and starting a container, from the shim's side.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::ContainerPlan;
use api::shim::v1::container_plan::PidMode;
use namespaces::channel::{Channel, ChannelError, Step};
use namespaces::{Failure, Kinds, NamespaceKind as Kind};
use sys::clone::{Child, Options, fork};
use sys::namespace::setns;
use sys::{Pid, Signal, pidfd};

use crate::cgroup::Cgroup;
use crate::descriptors::Descriptors;
use crate::error::{CreateError, StartError, plan};
use crate::init::Init;
use crate::program::Program;
use crate::rootfs::Rootfs;
use crate::{Sandbox, Stdio, helper};

/// A container whose process 1 exists and waits before its execve.
#[derive(Debug)]
pub struct Created {
    /// Process 1 in the shim's pid namespace.
    pub pid: Pid,
    /// The same, for signals, waiting and exec.
    pub pidfd: OwnedFd,
    /// Master of its terminal, if the plan asked for one.
    pub terminal: Option<OwnedFd>,
    /// Where it and its descendants are.
    pub cgroup: Cgroup,
    channel: Channel,
}

/// Makes a container from a plan, up to execve.
///
/// `target` is process 1 of the container whose pid namespace it joins, for pid mode TARGET. On an error nothing is left
/// behind.
pub fn create(
    sandbox: &Sandbox,
    request: &ContainerPlan,
    fds: &mut Descriptors,
    stdio: &Stdio,
    target: Option<BorrowedFd<'_>>,
) -> Result<Created, CreateError> {
    let process = request.process.as_ref().ok_or_else(|| plan("process", "", "must be set"))?;
    let program = Program::prepare(process)?;
    let rootfs = Rootfs::prepare(sandbox, request, fds)?;
    let pid_mode = request.pid_mode();
    let joins_pid = joined_pid(sandbox, pid_mode, target)?;
    let cgroup = Cgroup::create(sandbox, request)?;
    let spawned = cgroup.v1_entrances().map_err(CreateError::from).and_then(|v1| {
        let (ours, theirs) = Channel::pair().step("socketpair", "")?;
        let init = Init {
            sandbox,
            rootfs: &rootfs,
            program: &program,
            stdio,
            v1: &v1,
            joins_pid,
            channel: &theirs,
            cgroup: cgroup.as_fd(),
        };
        let child = spawn(&init, pid_mode, &cgroup)?;
        drop(theirs);
        await_ready(child, ours)
    });
    match spawned {
        Ok((child, terminal, channel)) => {
            Ok(Created { pid: child.pid, pidfd: child.pidfd, terminal, cgroup, channel })
        }
        Err(error) => {
            let _ = cgroup.kill();
            drop(cgroup.remove(sandbox, &request.cgroup));
            Err(error)
        }
    }
}

impl Created {
    /// Lets process 1 execute its program, and waits until it has.
    ///
    /// # Errors
    /// What kept it from it; it has ended then, and its exit arrives as any other.
    pub fn start(&mut self) -> Result<(), StartError> {
        self.channel.go().map_err(ChannelError::Io)?;
        Ok(self.channel.wait_exec()?)
    }
}

fn joined_pid<'a>(
    sandbox: &'a Sandbox,
    mode: PidMode,
    target: Option<BorrowedFd<'a>>,
) -> Result<Option<BorrowedFd<'a>>, CreateError> {
    match mode {
        PidMode::Container | PidMode::Node => Ok(None),
        PidMode::Pod => match sandbox.pod_init() {
            Some(init) => Ok(Some(init.pidfd.as_fd())),
            None => Err(plan("pid_mode", "POD", "needs a sandbox made with pod_pid")),
        },
        PidMode::Target => {
            target.map(Some).ok_or_else(|| plan("target_id", "", "must name a running container"))
        }
    }
}

fn spawn(init: &Init<'_>, mode: PidMode, cgroup: &Cgroup) -> Result<Child, CreateError> {
    let new = Kinds::NONE
        .with(Kind::Mount)
        .with_if(Kind::Pid, mode == PidMode::Container)
        .with_if(Kind::Cgroup, init.v1.is_empty());
    let options = Options { new, cgroup: Some(cgroup.as_fd()), sibling: false };
    let user = init.sandbox.namespace(Kind::User);
    if user.is_none() && init.joins_pid.is_none() {
        let child = fork(&options, || fail(init, &init.leave_shim().err().unwrap_or_else(|| init.run())));
        return Ok(child.step("clone3", "process 1")?);
    }
    helper::birth(|| {
        init.leave_shim()?;
        // The pid namespace first: a user namespace's capabilities do not reach one that the node's owns.
        if let Some(process) = init.joins_pid {
            setns(process, Kind::Pid).step("setns", "pid")?;
        }
        if let Some(user) = user {
            setns(user, Kind::User).step("setns", "user")?;
        }
        fork(&Options { sibling: true, ..options }, || fail(init, &init.run())).step("clone3", "process 1")
    })
}

fn fail(init: &Init<'_>, failure: &Failure) -> u8 {
    init.channel.failed(failure);
    1
}

fn await_ready(child: Child, channel: Channel) -> Result<(Child, Option<OwnedFd>, Channel), CreateError> {
    match channel.wait_ready() {
        Ok(mut fds) => Ok((child, fds.pop(), channel)),
        Err(error) => {
            let _ = pidfd::kill(&child.pidfd, Signal::KILL);
            let _ = pidfd::wait(&child.pidfd);
            Err(error.into())
        }
    }
}

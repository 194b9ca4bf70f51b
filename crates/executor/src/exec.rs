//! Another program in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::Process;
use namespaces::channel::{Channel, ChannelError, Step};
use namespaces::{Failure, Kinds, NamespaceKind as Kind};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::clone::{Child, Options, fork_into};
use sys::namespace::setns;
use sys::root::Root;
use sys::{Pid, Signal, credentials, pidfd, process, pty};

use crate::cgroup::Cgroup;
use crate::error::{CreateError, ExecError};
use crate::program::Program;
use crate::{Sandbox, Stdio, stdio};

/// A program that runs in a container beside its process 1.
#[derive(Debug)]
pub struct Executed {
    /// Its id in the shim's pid namespace.
    pub pid: Pid,
    /// The same, for signals and waiting: it is the shim's child.
    pub pidfd: OwnedFd,
    /// Master of its terminal, if it asked for one.
    pub terminal: Option<OwnedFd>,
}

/// Runs a program in the namespaces and cgroup of a container's process 1, and waits for its execve.
///
/// `container` is the pidfd of that process: what it was opened for cannot have become another process.
pub fn exec(
    sandbox: &Sandbox,
    container: BorrowedFd<'_>,
    cgroup: &Cgroup,
    request: &Process,
    stdio: &Stdio,
) -> Result<Executed, ExecError> {
    let program = Program::prepare(request)?;
    let v1 = cgroup.v1_entrances().map_err(CreateError::from)?;
    let (ours, theirs) = Channel::pair().step("socketpair", "").map_err(CreateError::from)?;
    let joiner = Joiner { sandbox, container, program: &program, stdio, v1: &v1, channel: &theirs };
    // Inherited: before the container can see the child, through its procfs (CVE-2016-9962).
    process::set_undumpable().step("become undumpable", "").map_err(CreateError::from)?;
    let options = Options { cgroup: Some(cgroup.as_fd()), ..Options::default() };
    let child = fork_into(container, &options, || joiner.fail(&joiner.run()));
    let child = child.step("clone3", "exec").map_err(CreateError::from)?;
    drop(theirs);
    let (child, terminal) = await_exec(child, &ours, program.tty).map_err(CreateError::from)?;
    Ok(Executed { pid: child.pid, pidfd: child.pidfd, terminal })
}

fn await_exec(child: Child, channel: &Channel, tty: bool) -> Result<(Child, Option<OwnedFd>), ChannelError> {
    let terminal = if tty { channel.wait_ready().map(|mut fds| fds.pop()) } else { Ok(None) };
    match terminal.and_then(|terminal| channel.wait_exec().map(|()| terminal)) {
        Ok(terminal) => Ok((child, terminal)),
        Err(error) => {
            let _ = pidfd::kill(&child.pidfd, Signal::KILL);
            let _ = pidfd::wait(&child.pidfd);
            Err(error)
        }
    }
}

struct Joiner<'a> {
    sandbox: &'a Sandbox,
    container: BorrowedFd<'a>,
    program: &'a Program,
    stdio: &'a Stdio,
    v1: &'a [OwnedFd],
    channel: &'a Channel,
}

impl Joiner<'_> {
    fn fail(&self, failure: &Failure) -> u8 {
        self.channel.failed(failure);
        1
    }

    /// The program's process, up to execve. Comes back only with why not.
    fn run(&self) -> Failure {
        match self.prepare() {
            Ok(path) => self.program.run(&path),
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> Result<std::ffi::CString, Failure> {
        self.drop_siblings()?;
        self.program.claim_host_rights()?;
        for entrance in self.v1 {
            rustix::io::write(entrance, b"0").step("enter cgroup", "v1")?;
        }
        process::new_session().step("setsid", "")?;
        self.join()?;
        if self.sandbox.namespace(Kind::User).is_some() {
            credentials::become_root().step("become root of", "user namespace")?;
        }
        let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step("open", "/")?;
        self.attach_streams(Root::new(root.as_fd()))?;
        self.program.enter_cwd(root.as_fd())?;
        self.program.become_user()?;
        let path = self.program.find()?;
        self.program.confine(self.sandbox.proc.as_fd())?;
        Ok(path)
    }

    /// Copies of what belongs to other containers go, their channels above all.
    fn drop_siblings(&self) -> Result<(), Failure> {
        let own =
            [self.channel.as_fd(), self.sandbox.proc.as_fd(), self.sandbox.null.as_fd(), self.container];
        let v1 = self.v1.iter().map(AsFd::as_fd);
        let kept: Vec<_> = own.into_iter().chain(v1).chain(self.stdio.fds()).collect();
        process::close_all_but(&kept).step("close", "siblings' descriptors")
    }

    /// All namespaces but the pid one, which the process was born in, at once.
    fn join(&self) -> Result<(), Failure> {
        // Joining one's own user namespace again is EINVAL.
        let skipped =
            |kind| kind == Kind::Pid || (kind == Kind::User && self.sandbox.namespace(kind).is_none());
        let kinds: Kinds = Kind::ALL.into_iter().filter(|kind| !skipped(*kind)).collect();
        setns(self.container, kinds).step("setns", "the container's namespaces")
    }

    fn attach_streams(&self, root: Root<'_>) -> Result<(), Failure> {
        if !self.program.tty {
            return self.stdio.place(self.sandbox.null.as_fd());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let devpts = root.open_without_symlinks("/dev/pts", flags, Mode::empty()).step("open", "/dev/pts")?;
        let pty = pty::open(&devpts).step("open a terminal of", "/dev/pts")?;
        let owner = rustix::fs::Uid::from_raw(self.program.uid);
        rustix::fs::fchown(&pty.slave, Some(owner), None).step("chown", "terminal")?;
        stdio::place_terminal(pty.slave.as_fd())?;
        self.channel.ready(&[pty.master.as_fd()]).step("send", "terminal")
    }
}

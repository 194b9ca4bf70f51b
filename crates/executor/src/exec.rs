//! Another program in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::Process;
use namespaces::channel::{Channel, ChannelError, Step};
use namespaces::{Failure, Kinds, NamespaceKind as Kind};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::clone::{Child, Options, fork};
use sys::namespace::setns;
use sys::root::Root;
use sys::{Pid, Signal, credentials, pidfd, process, pty};

use crate::cgroup::Cgroup;
use crate::error::{CreateError, ExecError};
use crate::program::Program;
use crate::{Sandbox, Stdio, helper, stdio};

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
    let joiner = Joiner { sandbox, container, cgroup, program: &program, stdio, v1: &v1, channel: &theirs };
    let child = helper::birth(|| joiner.help())?;
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
    cgroup: &'a Cgroup,
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

    /// The helper: leaves the shim, enters the container, and forks, for the pid namespace holds from then on.
    fn help(&self) -> Result<Child, Failure> {
        let own = [
            self.channel.as_fd(),
            self.sandbox.proc.as_fd(),
            self.sandbox.null.as_fd(),
            self.cgroup.as_fd(),
            self.container,
        ];
        let v1 = self.v1.iter().map(AsFd::as_fd);
        let kept: Vec<_> =
            own.into_iter().chain(self.sandbox.time()).chain(v1).chain(self.stdio.fds()).collect();
        process::close_all_but(&kept).step("close", "siblings' descriptors")?;
        // Before the container can see us, through its procfs or a shared pid namespace (CVE-2016-9962).
        process::set_undumpable().step("become undumpable", "")?;
        self.program.claim_host_rights()?;
        for entrance in self.v1 {
            rustix::io::write(entrance, b"0").step("enter cgroup", "v1")?;
        }
        // Where cgroup namespaces are borders (nsdelegate), nobody goes from outside of one to inside while in it.
        let later = [Kind::User, Kind::Time, Kind::Cgroup];
        let kinds: Kinds = Kind::ALL.into_iter().filter(|kind| !later.contains(kind)).collect();
        // Joining one's own user namespace again is EINVAL.
        let kinds = kinds.with_if(Kind::User, self.sandbox.namespace(Kind::User).is_some());
        setns(self.container, kinds).step("setns", "the container's namespaces")?;
        let options = Options { cgroup: Some(self.cgroup.as_fd()), sibling: true, ..Options::default() };
        fork(&options, || self.fail(&self.run())).step("clone3", "exec")
    }

    /// The program's process, up to execve. Comes back only with why not.
    fn run(&self) -> Failure {
        match self.prepare() {
            Ok(path) => self.program.run(&path),
            Err(failure) => failure,
        }
    }

    fn prepare(&self) -> Result<std::ffi::CString, Failure> {
        process::new_session().step("setsid", "")?;
        // Not in the helper: a time namespace takes only processes that share their memory with nobody.
        if let Some(time) = self.sandbox.time() {
            setns(time, Kind::Time).step("setns", "time")?;
        }
        setns(self.container, Kind::Cgroup).step("setns", "cgroup")?;
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

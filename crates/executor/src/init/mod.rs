//! The life of a container's process 1 up to execve: the list of steps, in an order that matters.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use namespaces::channel::{Channel, Step};
use namespaces::{Failure, Kinds, NamespaceKind as Kind};
use sys::namespace::{setns, unshare};
use sys::{credentials, process};

use crate::program::Program;
use crate::rootfs::Rootfs;
use crate::{Sandbox, Stdio, stdio};

/// All that the child needs; nothing is looked up later.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub sandbox: &'a Sandbox,
    pub rootfs: &'a Rootfs,
    pub program: &'a Program,
    pub stdio: &'a Stdio,
    /// `cgroup.procs` of the v1 hierarchies.
    pub v1: &'a [OwnedFd],
    /// Joined by a helper before: so is the user namespace.
    pub joins_pid: Option<BorrowedFd<'a>>,
    pub channel: &'a Channel,
    /// The container's directory in the unified hierarchy.
    pub cgroup: BorrowedFd<'a>,
}

impl Init<'_> {
    /// While every right of the shim's is there: the first steps of the child, or of the helper that forks it.
    pub(crate) fn leave_shim(&self) -> Result<(), Failure> {
        self.drop_siblings()?;
        // Before anything of the container's can be near: nobody may look at us through /proc (CVE-2016-9962).
        process::set_undumpable().step("become undumpable", "")?;
        self.program.claim_host_rights()?;
        // v1 roots the cgroup namespace where a process sits when it makes it: sit first.
        self.enter_v1()
    }

    /// The rest, up to execve. Comes back only with why not.
    pub(crate) fn run(&self) -> Failure {
        match self.prepare().and_then(|path| self.start().map(|()| path)) {
            Ok(path) => self.program.run(&path),
            Err(failure) => failure,
        }
    }

    /// What `create` waits for.
    fn prepare(&self) -> Result<std::ffi::CString, Failure> {
        process::new_session().step("setsid", "")?;
        self.join_namespaces()?;
        // In a user namespace: what is made from here on belongs to its root.
        self.become_root_of_user()?;
        // Mounts before ids: they need CAP_SYS_ADMIN. Masks within, last, over everything that was mounted.
        self.rootfs.assemble()?;
        // From the container's own devpts, while the root is still seen from outside.
        let master = self.attach_streams()?;
        self.rootfs.enter()?;
        // Missing directories are made before the root becomes read-only, and as root.
        self.program.enter_cwd(self.rootfs.root())?;
        self.rootfs.seal()?;
        self.program.become_user()?;
        // As the user: a program that it may not run is an error of create.
        let path = self.program.find()?;
        let fds: Vec<_> = master.iter().map(AsFd::as_fd).collect();
        self.channel.ready(&fds).step("report", "")?;
        Ok(path)
    }

    /// What `start` sets off.
    fn start(&self) -> Result<(), Failure> {
        if !self.channel.wait_go() {
            process::exit_now(1);
        }
        // Last: a filter need not allow what came before, and labels are for the coming execve only.
        self.program.confine(self.sandbox.proc.as_fd())
    }

    /// Copies of what belongs to other containers go, their channels above all.
    fn drop_siblings(&self) -> Result<(), Failure> {
        let own = [self.channel.as_fd(), self.sandbox.proc.as_fd(), self.sandbox.null.as_fd(), self.cgroup];
        let joined = self.sandbox.joined().map(|(_, fd)| fd);
        let user = self.sandbox.namespace(Kind::User);
        let v1 = self.v1.iter().map(AsFd::as_fd);
        let kept: Vec<_> = own
            .into_iter()
            .chain(joined)
            .chain(user)
            .chain(self.joins_pid)
            .chain(v1)
            .chain(self.rootfs.fds())
            .collect();
        let kept: Vec<_> = kept.into_iter().chain(self.stdio.fds()).collect();
        process::close_all_but(&kept).step("close", "siblings' descriptors")
    }

    fn enter_v1(&self) -> Result<(), Failure> {
        for entrance in self.v1 {
            rustix::io::write(entrance, b"0").step("enter cgroup", "v1")?;
        }
        Ok(())
    }

    fn join_namespaces(&self) -> Result<(), Failure> {
        for (kind, fd) in self.sandbox.joined() {
            setns(fd, kind).step("setns", kind.name())?;
        }
        if self.v1.is_empty() {
            return Ok(()); // clone3 made it
        }
        unshare(Kinds::from(Kind::Cgroup)).step("unshare", "cgroup")
    }

    fn become_root_of_user(&self) -> Result<(), Failure> {
        if self.sandbox.namespace(Kind::User).is_none() {
            return Ok(());
        }
        credentials::become_root().step("become root of", "user namespace")
    }

    /// Gives the terminal's master, if there is one.
    fn attach_streams(&self) -> Result<Option<OwnedFd>, Failure> {
        if !self.program.tty {
            self.stdio.place(self.rootfs.null())?;
            return Ok(None);
        }
        let pty = self.rootfs.terminal(self.program.uid)?;
        stdio::place_terminal(pty.slave.as_fd())?;
        Ok(Some(pty.master))
    }
}

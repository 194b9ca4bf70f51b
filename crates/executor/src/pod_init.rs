//! Process 1 of a pid namespace that a pod's containers share. It reaps orphans, forwards nothing, shows nothing.
//!
//! Its death is the death of the namespace: the kernel kills every process in it, and a dead pid namespace takes no
//! new ones, so it can be neither pinned nor replaced.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::Resources;
use namespaces::channel::{Channel, Step};
use namespaces::{Failure, Kinds, NamespaceKind as Kind};
use rustix::fs::{CWD, Mode, OFlags, openat};
use sys::clone::{Child, Options, fork};
use sys::mount::{Attributes, Filesystem, Flags, Propagation, attach, pivot, set_attributes};
use sys::namespace::setns;
use sys::{credentials, pidfd, process, signal};

use crate::error::CreateError;
use crate::{Sandbox, helper};

/// Its cgroup below the pod's, because a cgroup2 directory with controllers for its children holds no processes.
pub const NAME: &str = "pod-init";

pub fn spawn(sandbox: &Sandbox) -> Result<Child, CreateError> {
    let cgroup = sandbox.pod_cgroup.make(NAME, &Resources::default())?;
    let spawned = cgroup.v1_entrances().map_err(CreateError::from).and_then(|v1| {
        let (ours, theirs) = Channel::pair().step("socketpair", "")?;
        let init = PodInit { sandbox, v1: &v1, channel: &theirs, cgroup: cgroup.as_fd() };
        let user = sandbox.namespace(Kind::User);
        let new = Kinds::NONE.with(Kind::Pid).with(Kind::Mount);
        let options = Options { new, cgroup: Some(cgroup.as_fd()), sibling: user.is_some() };
        let child = match user {
            None => fork(&options, || init.report(init.leave_shim().and_then(|()| init.settle())))
                .step("clone3", NAME)?,
            Some(user) => helper::birth(|| {
                init.leave_shim()?;
                setns(user, Kind::User).step("setns", "user")?;
                fork(&options, || init.report(init.settle())).step("clone3", NAME)
            })?,
        };
        drop(theirs);
        match ours.wait_ready() {
            Ok(_) => Ok(child),
            Err(error) => {
                let _ = pidfd::wait(&child.pidfd);
                Err(error.into())
            }
        }
    });
    if spawned.is_err() {
        drop(cgroup);
        sandbox.pod_cgroup.remove(NAME);
    }
    spawned
}

struct PodInit<'a> {
    sandbox: &'a Sandbox,
    v1: &'a [OwnedFd],
    channel: &'a Channel,
    cgroup: BorrowedFd<'a>,
}

impl PodInit<'_> {
    fn leave_shim(&self) -> Result<(), Failure> {
        let own = [self.channel.as_fd(), self.cgroup];
        let joined = self.sandbox.joined().map(|(_, fd)| fd).chain(self.sandbox.namespace(Kind::User));
        let kept: Vec<_> = own.into_iter().chain(joined).chain(self.v1.iter().map(AsFd::as_fd)).collect();
        process::close_all_but(&kept).step("close", "siblings' descriptors")?;
        process::set_undumpable().step("become undumpable", "")?;
        for entrance in self.v1 {
            rustix::io::write(entrance, b"0").step("enter cgroup", "v1")?;
        }
        Ok(())
    }

    /// Into the pod's other namespaces and an empty root.
    fn settle(&self) -> Result<(), Failure> {
        process::new_session().step("setsid", "")?;
        for (kind, fd) in self.sandbox.joined() {
            setns(fd, kind).step("setns", kind.name())?;
        }
        if self.sandbox.namespace(Kind::User).is_some() {
            credentials::become_root().step("become root of", "user namespace")?;
        }
        empty_root().step("enter an empty root", "")?;
        rustix::thread::set_name(c"pod-init").step("set name", NAME)?;
        signal::reset().step("reset signals", "")
    }

    fn report(&self, settled: Result<(), Failure>) -> u8 {
        match settled {
            Err(failure) => {
                self.channel.failed(&failure);
                1
            }
            Ok(()) if self.channel.ready(&[]).is_err() => 1,
            Ok(()) => {
                let _ = process::close_all_but(&[]);
                signal::reap_forever()
            }
        }
    }
}

fn empty_root() -> sys::Result<()> {
    let old = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    set_attributes(&old, true, &private)?;
    let root = Filesystem::open("tmpfs")?
        .set("size", "4k")?
        .set("nr_inodes", "1")?
        .mount(Flags::MOUNT_ATTR_RDONLY)?;
    attach(&root, &old)?;
    pivot(&root)
}

//! What the containers of one pod share: namespaces, the cgroup above theirs, an init process if they share process
//! ids.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::{self as proto, CreateSandboxRequest, Resources};
use namespaces::channel::Step;
use namespaces::{ClockOffsets, IdMapping, IdMaps, Kinds, NamespaceKind as Kind, Request, User, make};
use sys::clone::Child;
use sys::{Signal, pidfd};

use crate::cgroup::PodCgroup;
use crate::descriptors::Descriptors;
use crate::error::{CreateError, plan};
use crate::rootfs::dev;
use crate::{Failure, pod_init, program};

/// A pod without containers.
#[derive(Debug)]
pub struct Sandbox {
    namespaces: Vec<(Kind, OwnedFd)>,
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) pod_cgroup: PodCgroup,
    pod_init: Option<Child>,
    /// The shim's procfs, which no container can reach.
    pub(crate) proc: OwnedFd,
    /// A null device of our own.
    pub(crate) null: OwnedFd,
}

impl Sandbox {
    /// Makes the pod's namespaces and, for pid mode POD, its init process. Beside it come descriptors of the new
    /// namespaces for the daemon to pin.
    pub fn create(
        request: &CreateSandboxRequest,
        fds: &mut Descriptors,
    ) -> Result<(Self, Vec<(Kind, OwnedFd)>), CreateError> {
        let pod_cgroup = PodCgroup::adopt(&request.cgroups, fds)?;
        let id_maps = request.user.as_ref().map(id_maps).transpose()?;
        let namespaces = make_namespaces(request, id_maps.as_ref())?;
        let mut sandbox = Self {
            namespaces,
            id_maps,
            pod_cgroup,
            pod_init: None,
            proc: program::open_proc()?,
            null: dev::null().step("make a null device", "")?,
        };
        if request.pod_pid {
            sandbox.pod_init = Some(pod_init::spawn(&sandbox)?);
        }
        let pins = sandbox.namespaces.iter().map(|(kind, fd)| Ok((*kind, duplicate(fd)?)));
        let pins = pins.collect::<Result<_, CreateError>>()?;
        Ok((sandbox, pins))
    }

    /// The pod's directory in the unified hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> BorrowedFd<'_> {
        self.pod_cgroup.as_fd()
    }

    /// Sets limits of the pod as a whole; fields that are 0 or empty stay as they are.
    pub fn limit(&self, resources: &Resources) -> Result<(), CreateError> {
        self.pod_cgroup.update(resources)
    }

    /// Process 1 of the shared pid namespace; `None` unless the pod was made with one.
    #[must_use]
    pub fn pod_init(&self) -> Option<&Child> {
        self.pod_init.as_ref()
    }

    /// Ends what the sandbox itself runs, when its containers are gone. Tries all, and reports what stays.
    pub fn end(self) -> Vec<Failure> {
        let Some(init) = &self.pod_init else { return Vec::new() };
        // Errors: it has ended and may have been reaped.
        let _ = pidfd::kill(&init.pidfd, Signal::KILL);
        let _ = pidfd::wait(&init.pidfd);
        self.pod_cgroup.remove(pod_init::NAME)
    }

    /// Removes the cgroup of the shared pid namespace's process 1, once that has ended. What stays is reported.
    pub fn remove(&self) -> Vec<Failure> {
        if self.pod_init.is_some() { self.pod_cgroup.remove(pod_init::NAME) } else { Vec::new() }
    }

    /// The pod's own namespace of this kind; `None`: it uses the node's.
    #[must_use]
    pub fn namespace(&self, kind: Kind) -> Option<BorrowedFd<'_>> {
        self.namespaces.iter().find(|(k, _)| *k == kind).map(|(_, fd)| fd.as_fd())
    }

    /// The pod's time namespace.
    #[must_use]
    pub fn time(&self) -> Option<BorrowedFd<'_>> {
        self.namespace(Kind::Time)
    }

    /// Gives the pod a new time namespace, which later containers join; the descriptor is for the daemon to pin.
    ///
    /// Offsets are ns against the initial time namespace.
    pub fn create_time_namespace(&mut self, offsets: ClockOffsets) -> Result<OwnedFd, CreateError> {
        let user = self.namespace(Kind::User).map_or(User::Own, User::Join);
        let made = make(&Request { kinds: Kind::Time.into(), user, offsets, ..Request::default() })?;
        self.namespaces.retain(|(kind, _)| *kind != Kind::Time);
        self.namespaces.extend(made);
        let time = self.time().expect("made just above");
        duplicate(time)
    }

    /// The namespaces that a container joins by descriptor, in this order; the user namespace is joined before.
    pub(crate) fn joined(&self) -> impl Iterator<Item = (Kind, BorrowedFd<'_>)> {
        self.namespaces.iter().filter(|(kind, _)| *kind != Kind::User).map(|(kind, fd)| (*kind, fd.as_fd()))
    }

    /// The host's id of the containers' `uid`, -1 (nobody) where the map has none.
    #[must_use]
    pub fn host_uid(&self, uid: u32) -> u32 {
        self.id_maps.as_ref().map_or(uid, |maps| host_id(&maps.uids, uid))
    }

    /// The host's id of the containers' `gid`, -1 (nobody) where the map has none.
    #[must_use]
    pub fn host_gid(&self, gid: u32) -> u32 {
        self.id_maps.as_ref().map_or(gid, |maps| host_id(&maps.gids, gid))
    }
}

fn make_namespaces(
    request: &CreateSandboxRequest,
    maps: Option<&IdMaps>,
) -> Result<Vec<(Kind, OwnedFd)>, CreateError> {
    let kinds = Kinds::NONE
        .with_if(Kind::Net, request.net)
        .with_if(Kind::Ipc, request.ipc)
        .with_if(Kind::Uts, request.uts)
        .with_if(Kind::Time, request.time);
    if kinds.is_empty() && maps.is_none() {
        return Ok(Vec::new());
    }
    let sysctls: Vec<_> = request.sysctls.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    for (name, value) in &sysctls {
        check_sysctl(name, value, kinds)?;
    }
    Ok(make(&Request {
        kinds,
        user: maps.map_or(User::Own, User::New),
        offsets: ClockOffsets::default(),
        hostname: &request.hostname,
        sysctls: &sysctls,
    })?)
}

/// Only what belongs to a namespace the pod has for itself (CVE-2022-0811). sysctl(8)'s two spellings are one here.
fn check_sysctl(name: &str, value: &str, kinds: Kinds) -> Result<(), CreateError> {
    let spelled = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let parts: Vec<_> = name.split(['.', '/']).collect();
    if !spelled || parts.iter().any(|part| part.is_empty()) || value.contains(['\n', '\0']) {
        return Err(plan("sysctls", name, "must be a name of letters, digits, '-', '_', and single dots"));
    }
    let ipc = ["msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"];
    let kind = match parts.as_slice() {
        ["net", ..] => Some(Kind::Net),
        ["kernel", key] if ipc.contains(key) => Some(Kind::Ipc),
        ["fs", "mqueue", _] => Some(Kind::Ipc),
        _ => None,
    };
    match kind {
        Some(kind) if kinds.contains(kind) => Ok(()),
        Some(_) => Err(plan("sysctls", name, "belongs to a namespace that this pod shares with the node")),
        None => Err(plan(
            "sysctls",
            name,
            "is not namespaced: only net.*, kernel.{msg*,sem,shm*} and fs.mqueue.* are",
        )),
    }
}

fn id_maps(user: &proto::UserNamespace) -> Result<IdMaps, CreateError> {
    Ok(IdMaps { uids: mappings("user.uids", &user.uids)?, gids: mappings("user.gids", &user.gids)? })
}

fn mappings(field: &'static str, lines: &[proto::IdMapping]) -> Result<Vec<IdMapping>, CreateError> {
    let fits = |l: &proto::IdMapping| {
        l.length > 0
            && l.host_id.checked_add(l.length).is_some()
            && l.container_id.checked_add(l.length).is_some()
    };
    if !lines.iter().all(fits) || !lines.iter().any(|l| l.container_id == 0) {
        let text = lines
            .iter()
            .map(|l| format!("{} {} {};", l.container_id, l.host_id, l.length))
            .collect::<String>();
        return Err(plan(field, text, "must map 0, with lengths over 0 within 32 bits"));
    }
    let copy =
        |l: &proto::IdMapping| IdMapping { container: l.container_id, host: l.host_id, length: l.length };
    Ok(lines.iter().map(copy).collect())
}

fn host_id(map: &[IdMapping], id: u32) -> u32 {
    let line = map.iter().find(|line| (line.container..line.container + line.length).contains(&id));
    line.map_or(u32::MAX, |line| line.host + (id - line.container))
}

fn duplicate(fd: impl AsFd) -> Result<OwnedFd, CreateError> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3).step("duplicate", "namespace")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_outside_the_pods_namespaces_are_refused() {
        let kinds = Kinds::NONE.with(Kind::Net).with(Kind::Ipc);
        for good in
            ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/rp_filter", "kernel.shmmax", "fs.mqueue.msg_max"]
        {
            assert!(check_sysctl(good, "1", kinds).is_ok(), "{good}");
        }
        for bad in
            ["kernel.core_pattern", "vm.swappiness", "net..x", "/net/x", "net.x\n", "a+b", "", "kernel.sem.x"]
        {
            assert!(check_sysctl(bad, "1", kinds).is_err(), "{bad}");
        }
        assert!(check_sysctl("net.core.somaxconn", "1\n2", kinds).is_err());
        assert!(check_sysctl("net.core.somaxconn", "1", Kinds::NONE.with(Kind::Ipc)).is_err());
    }

    #[test]
    fn host_ids_follow_the_map() {
        let map = [
            IdMapping { container: 0, host: 100_000, length: 10 },
            IdMapping { container: 10, host: 5, length: 1 },
        ];
        assert_eq!([0, 9, 10, 11].map(|id| host_id(&map, id)), [100_000, 100_009, 5, u32::MAX]);
    }
}

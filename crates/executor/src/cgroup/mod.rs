//! Cgroups of containers, below directories of the pod that the daemon made in every hierarchy.
//!
//! The tree, freezing and killing are always cgroup2's. Limits and the OOM count are cgroup2's where it governs the
//! controller, else the v1 hierarchy's whose directory came with the sandbox. Devices are a BPF program on the
//! cgroup2 directory on every host.

mod devices;
mod freezer;
mod limits;
mod oom_score;
mod tree;

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use api::shim::v1::{CgroupFd, ContainerPlan, Resources};
use namespaces::channel::Step;
use rustix::fs::{Mode, OFlags, openat};
use sys::Errno;
use sys::cgroup::is_cgroup2;

pub use freezer::{freeze, is_frozen, kill, thaw};
pub use oom_score::PRIVILEGED;

use crate::descriptors::Descriptors;
use crate::error::{CreateError, plan};
use crate::{Failure, Sandbox};

/// v1 controllers that count even without a limit, so that every container gets a directory of its own there.
const ACCOUNTING: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// The pod's directories.
#[derive(Debug)]
pub(crate) struct PodCgroup {
    unified: OwnedFd,
    v1: Vec<Hierarchy>,
    /// Controllers that cgroup2 governs in the children of the pod's directory.
    controllers: Vec<String>,
    filters: RefCell<devices::Filters>,
}

/// One container's directories.
#[derive(Debug)]
pub struct Cgroup {
    unified: OwnedFd,
    /// With the pod's directory where the container has none of its own.
    v1: Vec<Hierarchy>,
    controllers: Vec<String>,
    /// What [`Cgroup::free_cpu`] has lifted: file and value.
    lifted: RefCell<Vec<(&'static str, String)>>,
}

/// A directory in one v1 hierarchy.
#[derive(Debug)]
struct Hierarchy {
    controllers: Vec<String>,
    dir: OwnedFd,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// A directory that takes processes: a cpuset needs both its lists for that, whichever of them is limited.
    fn make(&self, name: &str) -> sys::Result<OwnedFd> {
        let dir = tree::make(&self.dir, name)?;
        if self.has("cpuset") {
            limits::inherit_cpuset(&dir)?;
        }
        Ok(dir)
    }
}

impl PodCgroup {
    pub(crate) fn adopt(dirs: &[CgroupFd], fds: &mut Descriptors) -> Result<Self, CreateError> {
        let mut unified = None;
        let mut v1: Vec<Hierarchy> = Vec::new();
        for dir in dirs {
            let fd = fds.take("cgroups.dir_fd", dir.dir_fd)?;
            if dir.controller.is_empty() {
                let on_v2 = is_cgroup2(&fd).step("statfs", "pod cgroup")?;
                unified = if on_v2 { Some(fd) } else { return Err(not_unified()) };
            } else {
                if dir.controller == "cpuset" {
                    limits::inherit_cpuset(&fd).step("inherit cpuset", "pod cgroup")?;
                }
                let inode = identity(&fd).step("stat", &dir.controller)?;
                // Co-mounted controllers, "cpu,cpuacct", are one directory.
                match v1.iter_mut().find(|h| identity(&h.dir) == Ok(inode)) {
                    Some(known) => known.controllers.push(dir.controller.clone()),
                    None => v1.push(Hierarchy { controllers: vec![dir.controller.clone()], dir: fd }),
                }
            }
        }
        let unified = unified.ok_or_else(not_unified)?;
        let controllers = tree::delegate(&unified).step("delegate controllers", "pod cgroup")?;
        Ok(Self { unified, v1, controllers, filters: RefCell::default() })
    }

    /// A container's directory in every hierarchy where it needs one, without limits.
    pub(crate) fn make(&self, name: &str, resources: &Resources) -> Result<Cgroup, Failure> {
        let mut cgroup = Cgroup {
            unified: tree::make(&self.unified, name).step("make cgroup", name)?,
            v1: Vec::with_capacity(self.v1.len()),
            controllers: self.controllers.clone(),
            lifted: RefCell::default(),
        };
        for pod in &self.v1 {
            let wanted = |c: &String| ACCOUNTING.contains(&c.as_str()) || limits::concerns(resources, c);
            let own = pod.controllers.iter().any(wanted);
            let dir = if own { pod.make(name) } else { tree::reopen(&pod.dir) };
            match dir {
                Ok(dir) => cgroup.v1.push(Hierarchy { controllers: pod.controllers.clone(), dir }),
                Err(errno) => {
                    self.remove(name);
                    let object = format!("{}/{name}", pod.controllers.join(","));
                    return Err(Failure::new("make cgroup", object, errno));
                }
            }
        }
        Ok(cgroup)
    }

    /// Sets limits of the pod as a whole; fields that are 0 or empty stay as they are.
    pub(crate) fn update(&self, resources: &Resources) -> Result<(), CreateError> {
        limits::check(resources)?;
        make_room(&self.unified, &self.controllers, resources)?;
        Ok(limit(&self.unified, &self.v1, &self.controllers, resources)?)
    }

    /// Removes what [`PodCgroup::make`] made; what still has processes stays, and is reported.
    pub(crate) fn remove(&self, name: &str) -> Vec<Failure> {
        let dirs = self.v1.iter().map(|h| &h.dir).chain([&self.unified]);
        let removed = dirs.map(|dir| tree::remove(dir, name).step("remove cgroup", name));
        removed.filter_map(Result::err).collect()
    }
}

impl AsFd for PodCgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.unified.as_fd()
    }
}

impl Cgroup {
    /// Makes the container's directories, sets its limits and puts its device filter in force. [`crate::create()`] does
    /// it by itself; call it before a restore.
    pub fn create(sandbox: &Sandbox, plan: &ContainerPlan) -> Result<Self, CreateError> {
        check_name(&plan.cgroup)?;
        let resources = plan.resources.clone().unwrap_or_default();
        limits::check(&resources)?;
        let program = devices::rules(plan)?;
        let cgroup = sandbox.pod_cgroup.make(&plan.cgroup, &resources)?;
        let limited = limit(&cgroup.unified, &cgroup.v1, &cgroup.controllers, &resources);
        let outcome = limited.and_then(|()| {
            let mut filters = sandbox.pod_cgroup.filters.borrow_mut();
            filters.attach(&program, &cgroup.unified).step("attach device filter", &plan.cgroup)
        });
        match outcome {
            Ok(()) => Ok(cgroup),
            Err(failure) => {
                sandbox.pod_cgroup.remove(&plan.cgroup);
                Err(failure.into())
            }
        }
    }

    /// Sets new limits; fields that are 0 or empty stay as they are.
    pub fn update(&self, sandbox: &Sandbox, resources: &Resources) -> Result<(), CreateError> {
        limits::check(resources)?;
        self.limit_cpu()?;
        make_room(&self.unified, &self.controllers, resources)?;
        limit(&self.unified, &self.v1, &self.controllers, resources)?;
        if let Some(score) = resources.oom_score_adj {
            oom_score::set(self.unified.as_fd(), sandbox.proc.as_fd(), score)?;
        }
        Ok(())
    }

    /// Lifts its limits of processor time, until [`Cgroup::limit_cpu`]: while a pod is captured or restored it stands
    /// still for work that is done in its cgroup.
    pub fn free_cpu(&self) -> Result<(), CreateError> {
        let Some((dir, most)) = self.cpu() else { return Ok(()) };
        let mut lifted = self.lifted.borrow_mut();
        for (file, value) in most {
            let now = tree::read(dir, file).step("read", file)?.trim().to_owned();
            if now != value {
                tree::write(dir, file, value).step("lift", file)?;
                lifted.push((file, now));
            }
        }
        Ok(())
    }

    /// Sets what [`Cgroup::free_cpu`] has lifted.
    pub fn limit_cpu(&self) -> Result<(), CreateError> {
        let Some((dir, _)) = self.cpu() else { return Ok(()) };
        while let Some((file, value)) = self.lifted.borrow_mut().pop() {
            tree::write(dir, file, &value).step("limit", format!("{file} = {value}"))?;
        }
        Ok(())
    }

    /// Where processor time is shared out, if anywhere, and what lets through most of it.
    fn cpu(&self) -> Option<(&OwnedFd, [(&'static str, &'static str); 2])> {
        if self.controllers.iter().any(|c| c == "cpu") {
            return Some((&self.unified, limits::MOST_CPU));
        }
        let hierarchy = self.v1.iter().find(|h| h.has("cpu"))?;
        Some((&hierarchy.dir, limits::MOST_CPU_V1))
    }

    /// How many of its processes the kernel killed for lack of memory, 0 when nobody counts.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let v2 = tree::read(&self.unified, "memory.events");
        let text = v2.or_else(|_| match self.v1.iter().find(|h| h.has("memory")) {
            Some(hierarchy) => tree::read(&hierarchy.dir, "memory.oom_control"),
            None => Err(Errno::NODEV),
        });
        text.ok().and_then(|text| tree::value(&text, "oom_kill")).unwrap_or(0)
    }

    /// Kills every process in it.
    pub fn kill(&self) -> sys::Result<()> {
        kill(&self.unified)
    }

    /// Whether a process is left in it, zombies aside.
    pub fn is_populated(&self) -> sys::Result<bool> {
        Ok(tree::value(&tree::read(&self.unified, "cgroup.events")?, "populated") == Some(1))
    }

    /// Removes the container's directories, `name` being its plan's `cgroup`. Tries all, and reports those that stay.
    pub fn remove(self, sandbox: &Sandbox, name: &str) -> Vec<Failure> {
        drop(self);
        sandbox.pod_cgroup.remove(name)
    }

    /// Its directory in each v1 hierarchy.
    pub fn legacy(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.v1.iter().map(|h| h.dir.as_fd())
    }

    /// Its directory in the v1 hierarchy that shares out the processors, if cgroup2 does not.
    #[must_use]
    pub fn legacy_cpu(&self) -> Option<BorrowedFd<'_>> {
        self.v1.iter().find(|h| h.has("cpu")).map(|h| h.dir.as_fd())
    }

    /// `cgroup.procs` of each v1 directory. A child that writes `0` there moves itself, whatever its rights: the
    /// kernel asks who opened the file.
    pub(crate) fn v1_entrances(&self) -> Result<Vec<OwnedFd>, Failure> {
        let open = |h: &Hierarchy| {
            openat(&h.dir, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .step("open cgroup.procs", h.controllers.join(","))
        };
        self.v1.iter().map(open).collect()
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.unified.as_fd()
    }
}

/// Below what is in use v1 refuses a limit, after it has tried to free enough; cgroup2 takes it and kills. Here both refuse:
/// for the moment that it takes, `memory.high` makes the kernel free what it can.
fn make_room(unified: &OwnedFd, controllers: &[String], resources: &Resources) -> Result<(), Failure> {
    let Ok(limit @ 1..) = u64::try_from(resources.memory_limit) else { return Ok(()) };
    let number = |file: &str| tree::read(unified, file).map(|text| text.trim().parse().unwrap_or(u64::MAX));
    if !controllers.iter().any(|c| c == "memory") || number("memory.max").is_ok_and(|old| limit >= old) {
        return Ok(());
    }
    let high = tree::read(unified, "memory.high").step("read", "memory.high")?;
    tree::write(unified, "memory.high", &limit.to_string()).step("limit", "memory.high")?;
    let used = number("memory.current");
    tree::write(unified, "memory.high", high.trim()).step("limit", "memory.high")?;
    match used.step("read", "memory.current")? {
        used if used > limit => {
            Err(Failure::new("limit", format!("memory.max = {limit}, {used} are in use"), Errno::BUSY))
        }
        _ => Ok(()),
    }
}

/// Writes limits to a cgroup's directories; `controllers` are those that cgroup2 governs there.
fn limit(
    unified: &OwnedFd,
    v1: &[Hierarchy],
    controllers: &[String],
    resources: &Resources,
) -> Result<(), Failure> {
    for setting in limits::settings(resources) {
        let on_unified = controllers.iter().any(|c| c == setting.controller);
        let (dir, writes) = match v1.iter().find(|h| h.has(setting.controller)) {
            _ if on_unified || setting.controller.is_empty() => (unified, &setting.unified),
            Some(hierarchy) => (&hierarchy.dir, &setting.v1),
            None if setting.dispensable => continue,
            None => return Err(Failure::new("limit", setting.controller, Errno::NODEV)),
        };
        // v1 keeps memory at most memory plus swap at every step: raising both begins with the second.
        match write_all(dir, writes.iter()) {
            Err((Errno::INVAL, _)) if writes.len() > 1 => write_all(dir, writes.iter().rev()),
            written => written,
        }
        .map_err(|(errno, object)| Failure::new("limit", object, errno))?;
    }
    Ok(())
}

fn write_all<'a>(
    dir: &OwnedFd,
    writes: impl Iterator<Item = &'a (String, String)>,
) -> Result<(), (Errno, String)> {
    for (file, value) in writes {
        let written = tree::write(dir, file, value);
        // A file that is not there is a controller that is not, or a kernel without this one of its files.
        let written = written.map_err(|e| if e == Errno::NOENT { Errno::NODEV } else { e });
        written.map_err(|e| (e, format!("{file} = {value}")))?;
    }
    Ok(())
}

fn identity(fd: &OwnedFd) -> sys::Result<(u64, u64)> {
    rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

fn not_unified() -> CreateError {
    plan("cgroups", "", "must hold the pod's directory in the cgroup2 hierarchy, with an empty controller")
}

fn check_name(name: &str) -> Result<(), CreateError> {
    let good =
        !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && !name.contains(['/', '\0', '\n']);
    // "memory.max" and the like would name a file of the parent.
    if good && !name.contains('.') {
        Ok(())
    } else {
        Err(plan("cgroup", name, "must be one file name without dots"))
    }
}

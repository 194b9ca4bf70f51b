//! The program of a container or an exec, and who it runs as. Checked and allocated before the child exists; put in
//! force by the child, in the order of [`crate::init`].

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use api::shim::v1::Process;
use namespaces::channel::Step;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, accessat, openat2, stat};
use sys::credentials::{self, Capabilities};
use sys::process::{self, Image};
use sys::root::Root;
use sys::seccomp::Filter;
use sys::{Errno, signal};

use crate::Failure;
use crate::error::{CreateError, plan};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SETPCAP: u64 = 1 << 8;
/// Ids beyond it are -1, or negative to somebody (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Everything about a program but its streams.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    path: String,
    image: Image,
    cwd: PathBuf,
    pub uid: u32,
    gid: u32,
    groups: Vec<u32>,
    umask: Mode,
    capabilities: Capabilities,
    no_new_privileges: bool,
    filter: Option<Filter>,
    limits: Vec<Limit>,
    oom_score_adj: Option<i32>,
    oom_score_adj_clamp: bool,
    apparmor: String,
    selinux: String,
    pub tty: bool,
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    resource: u32,
    soft: u64,
    hard: u64,
}

impl Program {
    pub(crate) fn prepare(process: &Process) -> Result<Self, CreateError> {
        let name = process.args.first().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| plan("process.args", "", "must name a program"))?;
        let image = Image::new(&process.args, &process.env).map_err(|_| {
            plan("process.args", name.as_str(), "arguments and environment must hold no NUL byte")
        })?;
        let filter = match process.seccomp.as_slice() {
            [] => None,
            bytes => Some(Filter::decode(bytes).map_err(|_| {
                plan("process.seccomp", format!("{} bytes", bytes.len()), "must be 1 to 4096 sock_filter")
            })?),
        };
        let path = process.env.iter().rev().find_map(|v| v.strip_prefix("PATH="));
        let caps = process.capabilities.unwrap_or_default();
        Ok(Self {
            name: name.clone(),
            path: path.unwrap_or(DEFAULT_PATH).to_owned(),
            image,
            cwd: checked_cwd(&process.cwd)?,
            uid: checked_id("process.uid", process.uid)?,
            gid: checked_id("process.gid", process.gid)?,
            groups: checked_ids(&process.additional_gids)?,
            umask: Mode::from_raw_mode(if process.umask == 0 { 0o022 } else { process.umask & 0o777 }),
            capabilities: Capabilities {
                bounding: caps.bounding,
                effective: caps.effective,
                permitted: caps.permitted,
                inheritable: caps.inheritable,
                ambient: caps.ambient,
            },
            no_new_privileges: process.no_new_privileges,
            filter,
            limits: checked_limits(process)?,
            oom_score_adj: process.oom_score_adj,
            oom_score_adj_clamp: process.oom_score_adj_clamp,
            apparmor: process.apparmor_profile.clone(),
            selinux: process.selinux_label.clone(),
            tty: process.tty,
        })
    }

    /// What needs the host's rights and is inherited: the OOM score, and room for the resource limits to be set
    /// later. Before a user namespace is joined and while `/proc` is the shim's.
    pub(crate) fn claim_host_rights(&self) -> Result<(), Failure> {
        if let Some(score) = self.oom_score_adj {
            self.set_oom_score(score)?;
        }
        for limit in &self.limits {
            let object = || format!("{} to {}", limit.resource, limit.hard);
            process::raise_limit(limit.resource, limit.hard).step("raise limit", object())?;
        }
        Ok(())
    }

    fn set_oom_score(&self, score: i32) -> Result<(), Failure> {
        let write = |score: i32| fs::write("/proc/self/oom_score_adj", score.to_string());
        match write(score) {
            // Lowering needs CAP_SYS_RESOURCE; what we have already is the lowest there is.
            Err(e) if self.oom_score_adj_clamp && sys::errno_of(&e) == Errno::ACCESS => Ok(()),
            other => other.step("set oom_score_adj", score.to_string()),
        }
    }

    /// Makes the working directory if it is missing and goes there; `root` is the container's root, which is ours
    /// by now.
    pub(crate) fn enter_cwd(&self, root: BorrowedFd<'_>) -> Result<(), Failure> {
        let object: String = self.cwd.to_string_lossy().chars().take(200).collect();
        let dir = Root::new(root).mkdir_all(&self.cwd).step("open working directory", &object)?;
        rustix::process::fchdir(&dir).step("chdir", &object)?;
        // A directory that a rename or a magic link put outside has no path here (CVE-2024-21626).
        let here = rustix::process::getcwd(Vec::new()).step("getcwd", &object)?;
        if here.as_bytes().first() != Some(&b'/') {
            return Err(Failure::new("stay inside the root", object, Errno::XDEV));
        }
        Ok(())
    }

    /// Limits, bounding set, groups and ids. CAP_SYS_ADMIN and CAP_SETPCAP stay until [`Program::confine`].
    pub(crate) fn become_user(&self) -> Result<(), Failure> {
        for limit in &self.limits {
            let object = || format!("{} to {}:{}", limit.resource, limit.soft, limit.hard);
            process::set_limit(limit.resource, limit.soft, limit.hard).step("set limit", object())?;
        }
        credentials::limit_bounding(self.capabilities.bounding).step("limit bounding set", "")?;
        let who = || format!("{}:{}", self.uid, self.gid);
        credentials::set_ids(self.uid, self.gid, &self.groups).step("set ids", who())?;
        rustix::process::umask(self.umask);
        Ok(())
    }

    /// The file that execve will run, found as execvp(3) does, with the rights of the user.
    pub(crate) fn find(&self) -> Result<CString, Failure> {
        let mut worst = Errno::NOENT;
        for candidate in self.candidates() {
            match is_program(&candidate) {
                Ok(()) => {
                    let path = CString::new(candidate.as_os_str().as_bytes());
                    return path.map_err(|_| Failure::new("find program", &self.name, Errno::INVAL));
                }
                Err(Errno::ACCESS) => worst = Errno::ACCESS,
                Err(_) => {}
            }
        }
        Err(Failure::new("find program", &self.name, worst))
    }

    fn candidates(&self) -> Vec<PathBuf> {
        if self.name.contains('/') {
            return vec![self.name.clone().into()];
        }
        self.path
            .split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(&self.name))
            .collect()
    }

    /// The last steps. Without no-new-privileges a filter needs CAP_SYS_ADMIN, so it comes before the capabilities
    /// go; else it comes last and never meets a call of ours but execve.
    pub(crate) fn confine(&self, proc: BorrowedFd<'_>) -> Result<(), Failure> {
        self.label(proc)?;
        if !self.no_new_privileges {
            self.load_filter(CAP_SYS_ADMIN)?;
        }
        credentials::set_capabilities(&self.capabilities).step("set capabilities", "")?;
        if self.no_new_privileges {
            credentials::forbid_new_privileges().step("set no_new_privs", "")?;
            self.load_filter(0)?;
        }
        Ok(())
    }

    fn load_filter(&self, needed: u64) -> Result<(), Failure> {
        let Some(filter) = &self.filter else { return Ok(()) };
        if needed != 0 {
            // A change of user emptied the effective set; the permitted one was kept.
            let keep = needed | CAP_SETPCAP | credentials::effective().step("read capabilities", "")?;
            credentials::set_effective(keep).step("set capabilities", "")?;
        }
        filter.load().step("load seccomp filter", "")
    }

    /// Labels for the coming execve, through a procfs that the container has never seen (CVE-2025-52881).
    fn label(&self, proc: BorrowedFd<'_>) -> Result<(), Failure> {
        if !self.selinux.is_empty() {
            write_attribute(proc, "exec", &self.selinux).step("set selinux label", &self.selinux)?;
        }
        if !self.apparmor.is_empty() {
            let text = format!("exec {}", self.apparmor);
            write_attribute(proc, "apparmor/exec", &text)
                .or_else(|errno| match errno {
                    Errno::NOENT => write_attribute(proc, "exec", &text),
                    other => Err(other),
                })
                .step("set apparmor profile", &self.apparmor)?;
        }
        Ok(())
    }

    /// Becomes the program; comes back only with why not.
    pub(crate) fn run(&self, path: &CString) -> Failure {
        let object = path.to_string_lossy();
        if let Err(failure) = signal::reset().step("reset signals", "") {
            return failure;
        }
        if let Err(failure) = process::close_on_exec_from(3).step("close_range", "") {
            return failure;
        }
        Failure::new("execve", object.clone(), self.image.exec(path))
    }
}

/// A procfs of the shim's, to be kept as a descriptor.
pub(crate) fn open_proc() -> Result<OwnedFd, Failure> {
    let proc =
        rustix::fs::openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .step("open", "/proc")?;
    let magic = rustix::fs::fstatfs(&proc).step("statfs", "/proc")?.f_type;
    if magic != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Failure::new("verify procfs", "/proc", Errno::NODEV));
    }
    Ok(proc)
}

fn write_attribute(proc: BorrowedFd<'_>, name: &str, text: &str) -> sys::Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let path = format!("thread-self/attr/{name}");
    let file = openat2(proc.as_fd(), path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    match rustix::io::write(&file, text.as_bytes())? {
        n if n == text.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

fn is_program(path: &Path) -> sys::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

fn checked_cwd(cwd: &str) -> Result<PathBuf, CreateError> {
    match cwd {
        "" => Ok("/".into()),
        path if path.starts_with('/') && !path.contains('\0') => Ok(path.into()),
        other => Err(plan("process.cwd", other, "must be an absolute path")),
    }
}

fn checked_id(field: &'static str, id: u32) -> Result<u32, CreateError> {
    if id > MAX_ID { Err(plan(field, id.to_string(), "must be within 0..=2147483647")) } else { Ok(id) }
}

fn checked_ids(ids: &[u32]) -> Result<Vec<u32>, CreateError> {
    ids.iter().map(|id| checked_id("process.additional_gids", *id)).collect()
}

fn checked_limits(process: &Process) -> Result<Vec<Limit>, CreateError> {
    let check = |limit: &api::shim::v1::Rlimit| {
        if limit.resource > 15 || limit.soft > limit.hard {
            let value = format!("{}: {}/{}", limit.resource, limit.soft, limit.hard);
            return Err(plan("process.rlimits", value, "must be a RLIMIT_* of 0..=15 with soft <= hard"));
        }
        Ok(Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard })
    };
    process.rlimits.iter().map(check).collect()
}

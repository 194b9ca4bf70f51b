//! Making a pod's namespaces in a short-lived child.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::clone::{Options, fork};
use sys::namespace::{Kind, Kinds, own, setns, unshare};
use sys::{Errno, Pid, credentials, netns, pidfd, timens};

use crate::channel::{Channel, ChannelError, Failure, Step};

/// One line of `/proc/PID/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// The maps of a new user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// The user namespace that will own the new namespaces.
#[derive(Debug, Clone, Copy, Default)]
pub enum User<'a> {
    /// The caller's.
    #[default]
    Own,
    /// A new one with these maps.
    New(&'a IdMaps),
    /// One that exists.
    Join(BorrowedFd<'a>),
}

/// What to make.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// Among net, ipc, uts and time.
    pub kinds: Kinds,
    /// Their owner.
    pub user: User<'a>,
    /// For the new time namespace.
    pub offsets: timens::Offsets,
    /// For the new uts namespace; empty: as the caller's.
    pub hostname: &'a str,
    /// `net.ipv4.ip_forward`-style names with their values, written inside. The caller has checked that each belongs
    /// to one of the new namespaces.
    pub sysctls: &'a [(String, String)],
}

/// Why namespaces could not be made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// No child.
    #[error("fork the namespace helper")]
    Fork(#[source] Errno),
    /// The maps were refused.
    #[error("write {map} of the new user namespace as {text:?}")]
    Map {
        /// `uid_map` or `gid_map`.
        map: &'static str,
        /// What was written.
        text: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The child failed.
    #[error(transparent)]
    Helper(#[from] ChannelError),
}

/// Makes the namespaces and gives a descriptor of each: the user namespace first if it is new, then net, ipc, uts and
/// time as asked. They live as long as a descriptor, a bind mount or a process does.
///
/// The caller is single-threaded.
///
/// # References
/// namespaces(7), user_namespaces(7), time_namespaces(7).
pub fn make(request: &Request<'_>) -> Result<Vec<(Kind, OwnedFd)>, MakeError> {
    let (parent_end, child_end) = Channel::pair().map_err(MakeError::Fork)?;
    let maps = match request.user {
        User::New(maps) => Some(maps),
        _ => None,
    };
    let options = Options { new: Kinds::NONE.with_if(Kind::User, maps.is_some()), ..Options::default() };
    let child = fork(&options, || {
        let kept = [Some(child_end.as_fd()), joined(request)];
        let kept: Vec<_> = kept.into_iter().flatten().collect();
        match sys::process::close_all_but(&kept).step("close", "").and_then(|()| helper(request, &child_end))
        {
            Ok(()) => 0,
            Err(failure) => {
                child_end.failed(&failure);
                1
            }
        }
    })
    .map_err(MakeError::Fork)?;
    drop(child_end);
    let fds = converse(&parent_end, child.pid, maps);
    // On an error above the closed channel ends a child that still waits.
    drop(parent_end);
    let _ = pidfd::wait(&child.pidfd);
    Ok(made(request).into_iter().zip(fds?).collect())
}

fn converse(channel: &Channel, pid: Pid, maps: Option<&IdMaps>) -> Result<Vec<OwnedFd>, MakeError> {
    if let Some(maps) = maps {
        write_map(pid, "uid_map", &maps.uids)?;
        write_map(pid, "gid_map", &maps.gids)?;
        channel.go().map_err(ChannelError::Io)?;
    }
    Ok(channel.wait_ready()?)
}

fn write_map(pid: Pid, map: &'static str, lines: &[IdMapping]) -> Result<(), MakeError> {
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{} {} {}", line.container, line.host, line.length);
    }
    fs::write(format!("/proc/{}/{map}", pid.as_raw_nonzero()), &text).map_err(|source| MakeError::Map {
        map,
        text,
        source,
    })
}

/// The kinds whose descriptors the helper sends, in its order.
fn made(request: &Request<'_>) -> Vec<Kind> {
    let new_user = matches!(request.user, User::New(_));
    let sent = |k: &Kind| request.kinds.contains(*k) || (*k == Kind::User && new_user);
    Kind::ALL.into_iter().filter(sent).collect()
}

fn joined<'a>(request: &Request<'a>) -> Option<BorrowedFd<'a>> {
    match request.user {
        User::Join(fd) => Some(fd),
        _ => None,
    }
}

/// The child's whole life.
fn helper(request: &Request<'_>, channel: &Channel) -> Result<(), Failure> {
    match request.user {
        User::Own => {}
        User::New(_) => {
            if !channel.wait_go() {
                return Err(Failure::new("wait for the id maps", "", Errno::PIPE));
            }
        }
        User::Join(fd) => setns(fd, Kind::User).step("setns", "user")?,
    }
    unshare(request.kinds).step("unshare", "net, ipc, uts, time")?;
    // Before the ids change: a process that changed them is not dumpable, and its /proc files are the host root's.
    if request.kinds.contains(Kind::Time) {
        timens::write_offsets(request.offsets).step("write offsets", "time")?;
    }
    if !matches!(request.user, User::Own) {
        credentials::become_root().step("become root of", "user")?;
    }
    if request.kinds.contains(Kind::Uts) && !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes()).step("sethostname", request.hostname)?;
    }
    if request.kinds.contains(Kind::Net) {
        netns::bring_up_loopback().step("set up", "lo")?;
    }
    for (name, value) in request.sysctls {
        write_sysctl(name, value)?;
    }
    let fds = made(request).into_iter().map(|k| own(k).step("open namespace", k.name()));
    let fds = fds.collect::<Result<Vec<_>, _>>()?;
    channel.ready(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).step("send", "namespaces")
}

fn write_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    // "net/ipv4/conf/eth0.100/rp_filter" keeps its dot: sysctl(8) swaps the two separators.
    let path = match name.find(['.', '/']).map(|i| name.as_bytes()[i]) {
        Some(b'/') => name.to_owned(),
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    if path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(Failure::new("write sysctl", name, Errno::INVAL));
    }
    fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/sys/{path}"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        .step("write sysctl", name)
}

//! Room and limits of the machine.

use std::fs;
use std::path::Path;

use api::meridian::v1::{Check, Verdict};
use rustix::fs::{FsWord, statfs, statvfs};
use rustix::process::{Resource, getrlimit};

use super::{check, fail, ok, scarce, warn};

/// statfs(2).
const TMPFS_MAGIC: FsWord = 0x0102_1994;
/// A daemon with 500 pods has some 2,000 open.
const DESCRIPTORS: u64 = 8192;
/// The kernel's own defaults; less leaves the kubelet and containers without.
const INOTIFY: [(&str, u64); 2] = [("max_user_instances", 128), ("max_user_watches", 8192)];

/// Everything here; `root` and `run` are the daemon's directories.
pub fn checks(root: &Path, run: &Path) -> Vec<Check> {
    let mut checks = vec![run_is_tmpfs(run), clock(), descriptors(), tasks(), keys(), memory()];
    checks.extend(INOTIFY.map(inotify));
    for directory in [root, run] {
        checks.extend(room(directory));
    }
    checks
}

fn run_is_tmpfs(run: &Path) -> Check {
    let (name, object) = ("run-tmpfs", run.display().to_string());
    let cure = "keep --run on a tmpfs, as /run: what is there must be gone after a reboot";
    match statfs(run) {
        Ok(found) if found.f_type == TMPFS_MAGIC => ok(name, object, "a tmpfs"),
        Ok(found) => warn(name, object, format!("file system {:#x}, no tmpfs", found.f_type), cure),
        Err(error) => fail(name, object, error.to_string(), cure),
    }
}

/// Space and inodes. File systems that count no inodes say 0.
fn room(directory: &Path) -> Vec<Check> {
    let object = directory.display().to_string();
    let found = match statvfs(directory) {
        Ok(found) => found,
        Err(error) => {
            return vec![fail("disk-space", object, error.to_string(), "mount it, and start again")];
        }
    };
    let gib = |blocks: u64| blocks.saturating_mul(found.f_frsize) as f64 / f64::from(1 << 30);
    let cure = "remove what is not used (crictl rmi --prune, old checkpoints), or enlarge the file system";
    let text = format!("{:.1} of {:.1} GiB free", gib(found.f_bavail), gib(found.f_blocks));
    let mut checks =
        vec![judged("disk-space", &object, text, cure, scarce(found.f_bavail, found.f_blocks, 10, 2))];
    if found.f_files > 0 {
        let text = format!("{} of {} inodes free", found.f_favail, found.f_files);
        let verdict = scarce(found.f_favail, found.f_files, 10, 2);
        checks.push(judged("disk-inodes", &object, text, cure, verdict));
    }
    checks
}

fn judged(name: &str, object: &str, found: String, cure: &str, verdict: Verdict) -> Check {
    let cure = if verdict == Verdict::Ok { "" } else { cure };
    check(verdict, name, object, found, cure)
}

fn clock() -> Check {
    let (name, object) = ("clock-sync", "CLOCK_REALTIME");
    let cure = "start chrony or systemd-timesyncd: certificates, logs and moves need the right time";
    match sys::timex::is_synchronised() {
        Ok(true) => ok(name, object, "synchronised"),
        Ok(false) => warn(name, object, "nothing steers it", cure),
        Err(error) => warn(name, object, error.to_string(), cure),
    }
}

fn descriptors() -> Check {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    let verdict = match scarce(most.saturating_sub(open), most, 30, 10) {
        Verdict::Ok if most < DESCRIPTORS => Verdict::Warn,
        verdict => verdict,
    };
    let cure = "set LimitNOFILE=1048576 in the daemon's unit, and restart it";
    judged("descriptors", "meridiand", format!("{open} open, at most {most}"), cure, verdict)
}

/// Processes and threads of the whole machine.
fn tasks() -> Check {
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(number);
    let most = limits.into_iter().flatten().min().unwrap_or(u64::MAX);
    let loadavg = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let now = running(&loadavg).unwrap_or(0);
    let cure = "find what forks (ps -eLf), or raise sysctl kernel.pid_max and kernel.threads-max";
    let verdict = scarce(most.saturating_sub(now), most, 30, 10);
    judged("tasks", "node", format!("{now} of at most {most}"), cure, verdict)
}

/// All tasks, from "0.00 0.01 0.05 1/123 4567": proc_loadavg(5).
fn running(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn inotify((limit, least): (&str, u64)) -> Check {
    let object = format!("fs.inotify.{limit}");
    let cure = format!("sysctl -w {object}={}: else watches of kubelet and containers fail", least * 8);
    match number(&format!("/proc/sys/fs/inotify/{limit}")) {
        Some(found) if found >= least => ok("inotify", object, found.to_string()),
        Some(found) => warn("inotify", object, found.to_string(), &cure),
        None => warn("inotify", object, "cannot be read", "mount /proc"),
    }
}

/// Keys of root: each container that joins a session keyring has one. proc_key_users(5).
fn keys() -> Check {
    let text = fs::read_to_string("/proc/key-users").unwrap_or_default();
    let Some((used, most)) = text.lines().find_map(root_keys) else {
        return ok("keyrings", "node", "the kernel keeps no keys");
    };
    let cure = "raise sysctl kernel.keys.root_maxkeys: containers cannot get a session keyring";
    let verdict = scarce(most.saturating_sub(used), most, 20, 5);
    judged("keyrings", "kernel.keys.root_maxkeys", format!("{used} of at most {most}"), cure, verdict)
}

/// From "    0:     9 8/8 3/1000000 40/25000000".
fn root_keys(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    if words.next()? != "0:" {
        return None;
    }
    let (used, most) = words.nth(2)?.split_once('/')?;
    Some((used.parse().ok()?, most.parse().ok()?))
}

fn memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (Some(left), Some(all)) = (kib(&text, "MemAvailable:"), kib(&text, "MemTotal:")) else {
        return warn("memory", "node", "/proc/meminfo cannot be read", "mount /proc");
    };
    let found = format!("{} of {} MiB available", left / 1024, all / 1024);
    let cure = "end or move pods, or give them limits: the kernel kills processes when memory runs out";
    judged("memory", "node", found, cure, scarce(left, all, 10, 3))
}

fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        assert_eq!(running("2.10 1.91 1.79 3/1234 4567"), Some(1234));
        assert_eq!(root_keys("    0:     9 8/8 3/1000000 40/25000000"), Some((3, 1_000_000)));
        assert_eq!(root_keys(" 1000:     1 1/1 1/200 9/20000"), None);
        assert_eq!(kib("MemTotal:       16 kB\nMemAvailable:    8 kB\n", "MemAvailable:"), Some(8));
    }
}

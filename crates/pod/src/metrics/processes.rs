//! What a container's processes hold: descriptors, sockets, threads, and the limit of the first.

use std::fs;
use std::path::Path;

use super::Sheet;
use crate::container::Container;
use crate::pod::Pod;
use crate::usage::Files;

/// Processes that end meanwhile are left out.
pub(super) fn read(pod: &Pod, container: &Container, sheet: &mut Sheet) {
    let files = Files::new(pod, container);
    let Some(pids) = files.text("", "cgroup.procs") else { return };
    let (mut processes, mut descriptors, mut sockets) = (0, 0, 0);
    for pid in pids.lines() {
        processes += 1;
        let (all, of_them_sockets) = held(&Path::new("/proc").join(pid).join("fd"));
        descriptors += all;
        sockets += of_them_sockets;
    }
    let threads = files.text("", "cgroup.threads").map(|threads| threads.lines().count() as u64);
    sheet.put("container_processes", &[], Some(processes));
    sheet.put("container_file_descriptors", &[], Some(descriptors));
    sheet.put("container_sockets", &[], Some(sockets));
    sheet.put("container_threads", &[], threads.or_else(|| files.number("pids", "pids.current")));
    // "max" stands for no limit, which cAdvisor's consumers know as 0.
    let limit = files.text("pids", "pids.max").map(|text| text.trim().parse().unwrap_or(0));
    sheet.put("container_threads_max", &[], limit);
    let limits = fs::read_to_string(format!("/proc/{}/limits", container.status.pid)).unwrap_or_default();
    sheet.put("container_ulimits_soft", &["max_open_files"], soft_limit(&limits, "Max open files"));
}

/// How many descriptors a process has open, and how many of them are sockets.
fn held(directory: &Path) -> (u64, u64) {
    let (mut all, mut sockets) = (0, 0);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        all += 1;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
    }
    (all, sockets)
}

/// A line of /proc/PID/limits, proc_pid_limits(5): name, soft limit, hard limit, unit.
fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    values.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n";
        assert_eq!(soft_limit(text, "Max open files"), Some(1024));
        assert_eq!(soft_limit(text, "Max processes"), None);
    }

    #[test]
    fn sockets_are_told_from_files() {
        let (all, sockets) = held(Path::new("/proc/self/fd"));
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let (more, of_them) = held(Path::new("/proc/self/fd"));
        assert!(all > 0 && more > 0 && of_them >= 2, "{all} {sockets}, then {more} {of_them}");
    }
}

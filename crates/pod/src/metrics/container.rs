//! A container's cgroup, file system and limits, on cgroup2 and on the v1 hierarchies.

use std::path::Path;

use super::Sheet;
use crate::container::Container;
use crate::pod::Pod;
use crate::usage::{Files, Resource, field};

pub(super) fn read(pod: &Pod, container: &Container, sheet: &mut Sheet) {
    let files = Files::new(pod, container);
    cpu(&files, sheet);
    memory(&files, sheet);
    pressure(&files, sheet);
    huge_pages(&files, sheet);
    disk(pod, container, &files, sheet);
    spec(&files, container, sheet);
    sheet.put("container_last_seen", &[], Some(seconds(sheet.at)));
}

fn cpu(files: &Files<'_>, sheet: &mut Sheet) {
    let unified = files.on_unified("cpu");
    let stat = files.text("cpu", "cpu.stat").unwrap_or_default();
    let [usage, user, system, throttled] = if unified {
        let spent = |name| field(&stat, name).map(|us| us / 1_000_000);
        [spent("usage_usec"), spent("user_usec"), spent("system_usec"), spent("throttled_usec")]
    } else {
        let spent = |name| files.number("cpuacct", name).map(|ns| ns / 1_000_000_000);
        let throttled = field(&stat, "throttled_time").map(|ns| ns / 1_000_000_000);
        [spent("cpuacct.usage"), spent("cpuacct.usage_user"), spent("cpuacct.usage_sys"), throttled]
    };
    sheet.put("container_cpu_usage_seconds_total", &["total"], usage);
    sheet.put("container_cpu_user_seconds_total", &[], user);
    sheet.put("container_cpu_system_seconds_total", &[], system);
    sheet.put("container_cpu_cfs_periods_total", &[], field(&stat, "nr_periods"));
    sheet.put("container_cpu_cfs_throttled_periods_total", &[], field(&stat, "nr_throttled"));
    sheet.put("container_cpu_cfs_throttled_seconds_total", &[], throttled);
}

fn memory(files: &Files<'_>, sheet: &mut Sheet) {
    let unified = files.on_unified("memory");
    let name = |v2, v1| if unified { v2 } else { v1 };
    let stat = files.text("memory", "memory.stat").unwrap_or_default();
    let of = |v2, v1| field(&stat, name(v2, v1));
    let number = |v2, v1| files.number("memory", name(v2, v1));
    let events = files.text("memory", name("memory.events", "memory.oom_control")).unwrap_or_default();
    let usage = number("memory.current", "memory.usage_in_bytes");
    let inactive = of("inactive_file", "total_inactive_file").unwrap_or(0);
    let failed = if unified { field(&events, "max") } else { files.number("memory", "memory.failcnt") };
    let kernel =
        if unified { field(&stat, "kernel") } else { files.number("memory", "memory.kmem.usage_in_bytes") };
    let swap =
        if unified { files.number("memory", "memory.swap.current") } else { field(&stat, "total_swap") };
    sheet.put("container_memory_usage_bytes", &[], usage);
    sheet.put("container_memory_working_set_bytes", &[], usage.map(|usage| usage.saturating_sub(inactive)));
    sheet.put("container_memory_max_usage_bytes", &[], number("memory.peak", "memory.max_usage_in_bytes"));
    sheet.put("container_memory_cache", &[], of("file", "total_cache"));
    sheet.put("container_memory_rss", &[], of("anon", "total_rss"));
    sheet.put("container_memory_mapped_file", &[], of("file_mapped", "total_mapped_file"));
    sheet.put("container_memory_kernel_usage", &[], kernel);
    sheet.put("container_memory_swap", &[], swap.or(Some(0))); // a kernel without swap counts none
    sheet.put("container_memory_failcnt", &[], failed);
    for (kind, total) in [("pgfault", "total_pgfault"), ("pgmajfault", "total_pgmajfault")] {
        sheet.put("container_memory_failures_total", &[kind, "container"], field(&stat, kind));
        sheet.put("container_memory_failures_total", &[kind, "hierarchy"], of(kind, total));
    }
    sheet.put("container_oom_events_total", &[], field(&events, "oom_kill"));
}

/// Where the kernel keeps it: Documentation/accounting/psi.rst.
fn pressure(files: &Files<'_>, sheet: &mut Sheet) {
    for (resource, name) in [(Resource::Cpu, "cpu"), (Resource::Io, "io"), (Resource::Memory, "memory")] {
        let Some(psi) = files.psi(resource) else { continue };
        for (word, data) in [("waiting", psi.some), ("stalled", psi.full)] {
            let name = format!("container_pressure_{name}_{word}_seconds_total");
            sheet.put(&name, &[], data.map(|data| data.total / 1_000_000_000));
        }
    }
}

/// One file for each size that the kernel has: `hugetlb.2MB.current`.
fn huge_pages(files: &Files<'_>, sheet: &mut Sheet) {
    let Some(directory) = files.file("hugetlb", "") else { return };
    let unified = files.on_unified("hugetlb");
    let (now, most) = if unified { ("current", "current") } else { ("usage_in_bytes", "max_usage_in_bytes") };
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(now)?.strip_suffix('.'));
        let Some(size) = size.filter(|size| !size.contains('.')) else { continue };
        let number = |kind: &str| files.number("hugetlb", &format!("hugetlb.{size}.{kind}"));
        sheet.put("container_hugetlb_usage_bytes", &[size], number(now));
        sheet.put("container_hugetlb_max_usage_bytes", &[size], number(most));
    }
}

fn disk(pod: &Pod, container: &Container, files: &Files<'_>, sheet: &mut Sheet) {
    let directory = pod.node.container_dir(container.id()).join("upper");
    let device = device_of(&directory);
    let (used, _) = pod.node.samples.disk(container.id().as_str(), &directory);
    sheet.put("container_fs_usage_bytes", &[&device], Some(used));
    if let Ok(whole) = rustix::fs::statvfs(&directory) {
        sheet.put(
            "container_fs_limit_bytes",
            &[&device],
            Some(whole.f_blocks.saturating_mul(whole.f_frsize)),
        );
        sheet.put("container_fs_inodes_total", &[&device], Some(whole.f_files));
        sheet.put("container_fs_inodes_free", &[&device], Some(whole.f_ffree));
    }
    for line in files.text("io", "io.stat").unwrap_or_default().lines() {
        device_io(line, sheet);
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`: Documentation/admin-guide/cgroup-v2.rst, io.stat.
fn device_io(line: &str, sheet: &mut Sheet) {
    let Some((device, counts)) = line.split_once(' ') else { return };
    let Some((major, minor)) = device.split_once(':') else { return };
    let count = |name: &str| {
        let mut pairs = counts.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok())
    };
    let (read, written) = (count("rbytes"), count("wbytes"));
    sheet.put("container_blkio_device_usage_total", &[device, major, minor, "Read"], read);
    sheet.put("container_blkio_device_usage_total", &[device, major, minor, "Write"], written);
    sheet.put("container_fs_reads_bytes_total", &[device], read);
    sheet.put("container_fs_writes_bytes_total", &[device], written);
    sheet.put("container_fs_reads_total", &[device], count("rios"));
    sheet.put("container_fs_writes_total", &[device], count("wios"));
}

/// `major:minor` of the file system below a directory.
fn device_of(directory: &Path) -> String {
    let device = rustix::fs::stat(directory).map_or(0, |stat| stat.st_dev);
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// What is in force now, not what was asked for: it may have been changed since. 0 stands for none.
fn spec(files: &Files<'_>, container: &Container, sheet: &mut Sheet) {
    let (quota, period) = cpu_quota(files);
    let limit = |v2, v1| {
        let name = if files.on_unified("memory") { v2 } else { v1 };
        // v1 spells "no limit" as the largest multiple of a page, cgroup2 as "max".
        files
            .text("memory", name)
            .map(|text| text.trim().parse().unwrap_or(0))
            .map(|n: u64| if n < 1 << 62 { n } else { 0 })
    };
    let memory = limit("memory.max", "memory.limit_in_bytes");
    let swap = if files.on_unified("memory") {
        let own = limit("memory.swap.max", "").unwrap_or(0);
        memory.map(|memory| if own == 0 { own } else { memory.saturating_add(own) })
    } else {
        limit("", "memory.memsw.limit_in_bytes")
    };
    let shares = container
        .metadata
        .config
        .linux
        .as_ref()
        .and_then(|l| l.resources.as_ref())
        .map_or(0, |r| r.cpu_shares);
    let shares = files.number("cpu", "cpu.shares").or_else(|| u64::try_from(shares).ok());
    sheet.put("container_spec_cpu_quota", &[], Some(quota));
    sheet.put("container_spec_cpu_period", &[], Some(period));
    sheet.put("container_spec_cpu_shares", &[], shares);
    sheet.put("container_spec_memory_limit_bytes", &[], memory);
    sheet.put(
        "container_spec_memory_reservation_limit_bytes",
        &[],
        limit("memory.low", "memory.soft_limit_in_bytes"),
    );
    sheet.put("container_spec_memory_swap_limit_bytes", &[], swap.or(Some(0)));
    sheet.put("container_start_time_seconds", &[], Some(seconds(container.status.started_at)));
}

/// Microseconds of quota, 0 for none, and of period.
fn cpu_quota(files: &Files<'_>) -> (u64, u64) {
    const PERIOD: u64 = 100_000; // the kernel's default
    if files.on_unified("cpu") {
        let text = files.text("cpu", "cpu.max").unwrap_or_default();
        let mut words = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        return (words.next().unwrap_or(0), words.next().unwrap_or(PERIOD));
    }
    let quota = files.number("cpu", "cpu.cfs_quota_us").unwrap_or(0); // -1, for none, is no u64
    (quota, files.number("cpu", "cpu.cfs_period_us").unwrap_or(PERIOD))
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000_000
}

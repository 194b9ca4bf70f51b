//! What a container or pod uses, read straight from the files of its cgroup.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::cri::v1::{CpuUsage, IoUsage, MemoryUsage, PsiData, PsiStats, SwapUsage, UInt64Value};
use rustix::fs::{Mode, OFlags};

use crate::container::Container;
use crate::headroom;
use crate::pod::Pod;

/// The files of one cgroup that are read again and again, kept open: opening one costs several times what reading does.
#[derive(Debug, Default)]
pub(crate) struct Gauges(Mutex<Vec<(&'static str, OwnedFd)>>);

impl Gauges {
    fn read(&self, file: &'static str, path: impl FnOnce() -> Option<PathBuf>) -> Option<String> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(name, _)| *name == file) {
            if let Some(text) = read(&open[at].1) {
                return Some(text);
            }
            open.swap_remove(at); // its cgroup is gone
        }
        let fd = self::open(&path()?)?;
        let text = read(&fd);
        if text.is_some() && headroom::is_plenty() {
            open.push((file, fd));
        }
        text
    }
}

/// What a process can wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Resource {
    Cpu,
    Io,
    Memory,
}

/// The cgroup files of one container, or of a pod.
pub(crate) struct Files<'a> {
    pod: &'a Pod,
    path: String,
    gauges: Arc<Gauges>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(pod: &'a Pod, container: &Container) -> Self {
        let id = container.id();
        Self { pod, path: pod.container_cgroup(id), gauges: pod.node.samples.gauges(id.as_str()) }
    }

    /// Those of the pod as a whole.
    pub(crate) fn of_pod(pod: &'a Pod) -> Self {
        Self { pod, path: pod.cgroup.clone(), gauges: pod.node.samples.gauges(pod.id.as_str()) }
    }

    pub(crate) fn on_unified(&self, controller: &str) -> bool {
        self.pod.node.cgroups.on_unified(controller)
    }

    pub(crate) fn text(&self, controller: &str, file: &str) -> Option<String> {
        read(&open(&self.file(controller, file)?)?)
    }

    /// As [`text`](Self::text), of a file that every reading of the usage looks at.
    pub(crate) fn gauge(&self, controller: &str, file: &'static str) -> Option<String> {
        self.gauges.read(file, || self.file(controller, file))
    }

    fn count(&self, controller: &str, file: &'static str) -> Option<u64> {
        self.gauge(controller, file)?.trim().parse().ok()
    }

    pub(crate) fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        Some(self.pod.node.cgroups.directory(controller, &self.path)?.join(file))
    }

    pub(crate) fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    pub(crate) fn cpu(&self, id: &str, at: i64) -> Option<CpuUsage> {
        let usage = if self.pod.node.cgroups.on_unified("cpu") {
            field(&self.gauge("", "cpu.stat")?, "usage_usec")?.saturating_mul(1000)
        } else {
            self.count("cpuacct", "cpuacct.usage")?
        };
        Some(CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(usage),
            usage_nano_cores: value(self.pod.node.samples.rate(id, at, usage)),
            psi: self.psi(Resource::Cpu),
        })
    }

    /// Read once for all that is in it: the kernel sums up every CPU's counts for it.
    pub(crate) fn memory_stat(&self) -> Option<String> {
        self.gauge("memory", "memory.stat")
    }

    pub(crate) fn memory(&self, at: i64, stat: Option<&str>) -> Option<MemoryUsage> {
        let unified = self.pod.node.cgroups.on_unified("memory");
        let stat = stat?;
        let get = |v2: &str, v1: &str| field(stat, if unified { v2 } else { v1 }).unwrap_or(0);
        let usage = self.count("memory", if unified { "memory.current" } else { "memory.usage_in_bytes" })?;
        let limit = self.count("memory", if unified { "memory.max" } else { "memory.limit_in_bytes" });
        let working = usage.saturating_sub(get("inactive_file", "total_inactive_file"));
        // v1 spells "no limit" as the largest multiple of a page.
        let limit = limit.filter(|limit| *limit < 1 << 62);
        Some(MemoryUsage {
            timestamp: at,
            working_set_bytes: value(working),
            available_bytes: limit.and_then(|limit| value(limit.saturating_sub(working))),
            usage_bytes: value(usage),
            rss_bytes: value(get("anon", "total_rss")),
            page_faults: value(get("pgfault", "total_pgfault")),
            major_page_faults: value(get("pgmajfault", "total_pgmajfault")),
            psi: self.psi(Resource::Memory),
        })
    }

    pub(crate) fn io(&self, at: i64) -> Option<IoUsage> {
        self.psi(Resource::Io).map(|psi| IoUsage { timestamp: at, psi: Some(psi) })
    }

    pub(crate) fn swap(&self, at: i64, stat: Option<&str>) -> Option<SwapUsage> {
        let (usage, limit) = if self.pod.node.cgroups.on_unified("memory") {
            (self.count("memory", "memory.swap.current")?, self.count("memory", "memory.swap.max"))
        } else {
            (field(stat?, "total_swap")?, None)
        };
        let available = limit.and_then(|limit| value(limit.saturating_sub(usage)));
        Some(SwapUsage { timestamp: at, swap_available_bytes: available, swap_usage_bytes: value(usage) })
    }

    /// Pressure stall information, where the kernel keeps it (Documentation/accounting/psi.rst).
    pub(crate) fn psi(&self, resource: Resource) -> Option<PsiStats> {
        let file = match resource {
            Resource::Cpu => "cpu.pressure",
            Resource::Io => "io.pressure",
            Resource::Memory => "memory.pressure",
        };
        let text = self.gauge("", file)?;
        Some(PsiStats { some: psi_line(&text, "some"), full: psi_line(&text, "full") })
    }
}

fn open(path: &Path) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// A whole file. The kernel makes these up as they are read, in one piece for up to a page: asking for size and position
/// and growing a buffer from a few bytes, as std does, costs more than the reading.
fn read(file: &OwnedFd) -> Option<String> {
    let (mut text, mut page) = (Vec::new(), [0; 4096]);
    loop {
        match rustix::io::pread(file, &mut page, text.len() as u64).ok()? {
            0 => return String::from_utf8(text).ok(),
            length => text.extend_from_slice(&page[..length]),
        }
    }
}

#[allow(clippy::unnecessary_wraps, reason = "the proto's optional numbers")]
pub(crate) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// The number after `name` in a file of `name number` lines.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn psi_line(text: &str, kind: &str) -> Option<PsiData> {
    let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    let mut data = PsiData::default();
    for (key, text) in line.split(' ').filter_map(|pair| pair.split_once('=')) {
        match key {
            "avg10" => data.avg10 = text.parse().ok()?,
            "avg60" => data.avg60 = text.parse().ok()?,
            "avg300" => data.avg300 = text.parse().ok()?,
            "total" => data.total = text.parse::<u64>().ok()?.saturating_mul(1000),
            _ => {}
        }
    }
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        let text = "usage_usec 12\nuser_usec 7\nusage_usec_total 9\n";
        assert_eq!(field(text, "usage_usec"), Some(12));
        assert_eq!(field(text, "usage"), None);
    }

    #[test]
    fn pressure_is_in_nanoseconds() {
        let text = "some avg10=0.12 avg60=1.00 avg300=2.50 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let some = psi_line(text, "some").unwrap();
        assert_eq!((some.avg10, some.avg300, some.total), (0.12, 2.5, 42_000));
        assert_eq!(psi_line(text, "full").unwrap().total, 7000);
    }

    #[test]
    fn a_file_of_several_pages_is_read_whole() {
        let kallsyms = read(&open(Path::new("/proc/kallsyms")).unwrap()).unwrap();
        assert!(kallsyms.len() > 3 * 4096 && kallsyms.ends_with('\n'), "{}", kallsyms.len());
    }

    #[test]
    fn a_gauge_is_opened_once_and_again_when_it_fails() {
        let gauges = Gauges::default();
        let file = || Some(PathBuf::from("/proc/self/comm"));
        assert!(gauges.read("comm", file).is_some());
        assert!(gauges.read("comm", || panic!("it is open")).is_some());
        let broken = std::fs::File::create(std::env::temp_dir().join("meridian-gauge")).unwrap();
        gauges.0.lock().unwrap()[0].1 = broken.into(); // open for writing alone
        assert!(gauges.read("comm", file).is_some());
    }
}

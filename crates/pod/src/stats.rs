//! What containers use, read straight from the files of their cgroups.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage,
    MemoryUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
};
use api::id::ContainerId;

use crate::container::Container;
use crate::error::LookupError;
use crate::node::now;
use crate::pod::Pod;
use crate::pods::Pods;

/// How long the size of a writable layer is believed: finding it out walks the layer.
const DISK_AGE: Duration = Duration::from_secs(10);

/// Earlier readings, by the id of a container or pod, for what only two of them tell.
#[derive(Debug, Default)]
pub(crate) struct Samples(Mutex<HashMap<String, Sample>>);

#[derive(Debug, Clone, Default)]
struct Sample {
    /// (ns since the epoch, CPU time in ns).
    cpu: Option<(i64, u64)>,
    /// The rate between the last two readings, in billionths of a CPU.
    rate: u64,
    disk: Option<(Instant, u64, u64)>,
}

impl Samples {
    pub(crate) fn forget(&self, id: &str) {
        self.with(|samples| samples.remove(id));
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Sample>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The CPU rate since the reading before this one.
    fn rate(&self, id: &str, at: i64, usage: u64) -> u64 {
        self.with(|samples| {
            let sample = samples.entry(id.to_owned()).or_default();
            if let Some((then, used)) = sample.cpu
                && let Ok(elapsed @ 1..) = u64::try_from(at - then)
            {
                let rate = u128::from(usage.saturating_sub(used)) * 1_000_000_000 / u128::from(elapsed);
                sample.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            }
            sample.cpu = Some((at, usage));
            sample.rate
        })
    }

    /// Bytes and files of a writable layer.
    pub(crate) fn disk(&self, id: &str, upper: &Path) -> (u64, u64) {
        let known = self.with(|samples| samples.get(id).and_then(|sample| sample.disk));
        if let Some((when, bytes, files)) = known
            && when.elapsed() < DISK_AGE
        {
            return (bytes, files);
        }
        let (mut bytes, mut files) = (0, 0);
        measure(upper, 0, &mut bytes, &mut files);
        self.with(|samples| {
            samples.entry(id.to_owned()).or_default().disk = Some((Instant::now(), bytes, files))
        });
        (bytes, files)
    }
}

impl Pods {
    /// What one container uses. Blocks for a few file reads.
    pub fn stats(&self, id: &ContainerId) -> Result<ContainerStats, LookupError> {
        let handle = self.registry.pod_of(id)?;
        Ok(stats(&handle.pod, &*self.container(id)?))
    }

    /// What several containers use; those that are gone meanwhile are left out.
    pub async fn list_stats(&self, ids: Vec<ContainerId>) -> Vec<ContainerStats> {
        let pods = self.clone();
        let read = move || ids.iter().filter_map(|id| pods.stats(id).ok()).collect();
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }
}

impl Pods {
    /// Bytes and files of all writable layers. Blocks: those that were not measured of late are walked.
    #[must_use]
    pub fn writable_layers(&self) -> (u64, u64) {
        let containers = self.containers();
        let layers = containers.iter().map(|container| {
            let id = container.id();
            self.node.samples.disk(id.as_str(), &self.node.container_dir(id).join("upper"))
        });
        layers.fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1))
    }
}

pub(crate) fn stats(pod: &Pod, container: &Container) -> ContainerStats {
    let id = container.id();
    let config = &container.metadata.config;
    let files = Files::new(pod, container);
    let at = now();
    let attributes = ContainerAttributes {
        id: id.to_string(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    };
    let upper = pod.node.container_dir(id).join("upper");
    let (used, inodes) = pod.node.samples.disk(id.as_str(), &upper);
    let mountpoint = pod.node.config.root.to_string_lossy().into_owned();
    ContainerStats {
        attributes: Some(attributes),
        cpu: files.cpu(id.as_str(), at),
        memory: files.memory(at),
        writable_layer: Some(FilesystemUsage {
            timestamp: at,
            fs_id: Some(FilesystemIdentifier { mountpoint }),
            used_bytes: value(used),
            inodes_used: value(inodes),
        }),
        swap: files.swap(at),
        io: files.io(at),
    }
}

/// The cgroup files of one container, or of a pod.
pub(crate) struct Files<'a> {
    pod: &'a Pod,
    path: String,
}

impl<'a> Files<'a> {
    pub(crate) fn new(pod: &'a Pod, container: &Container) -> Self {
        Self { pod, path: pod.container_cgroup(container.id()) }
    }

    /// Those of the pod as a whole.
    pub(crate) fn of_pod(pod: &'a Pod) -> Self {
        Self { pod, path: pod.cgroup.clone() }
    }

    pub(crate) fn on_unified(&self, controller: &str) -> bool {
        self.pod.node.cgroups.on_unified(controller)
    }

    pub(crate) fn text(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.file(controller, file)?).ok()
    }

    pub(crate) fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        Some(self.pod.node.cgroups.directory(controller, &self.path)?.join(file))
    }

    pub(crate) fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    pub(crate) fn cpu(&self, id: &str, at: i64) -> Option<CpuUsage> {
        let usage = if self.pod.node.cgroups.on_unified("cpu") {
            field(&self.text("", "cpu.stat")?, "usage_usec")?.saturating_mul(1000)
        } else {
            self.number("cpuacct", "cpuacct.usage")?
        };
        Some(CpuUsage {
            timestamp: at,
            usage_core_nano_seconds: value(usage),
            usage_nano_cores: value(self.pod.node.samples.rate(id, at, usage)),
            psi: self.psi("cpu"),
        })
    }

    pub(crate) fn memory(&self, at: i64) -> Option<MemoryUsage> {
        let unified = self.pod.node.cgroups.on_unified("memory");
        let stat = self.text("memory", "memory.stat")?;
        let get = |v2: &str, v1: &str| field(&stat, if unified { v2 } else { v1 }).unwrap_or(0);
        let usage =
            self.number("memory", if unified { "memory.current" } else { "memory.usage_in_bytes" })?;
        let limit = self.number("memory", if unified { "memory.max" } else { "memory.limit_in_bytes" });
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
            psi: self.psi("memory"),
        })
    }

    pub(crate) fn io(&self, at: i64) -> Option<IoUsage> {
        self.psi("io").map(|psi| IoUsage { timestamp: at, psi: Some(psi) })
    }

    fn swap(&self, at: i64) -> Option<SwapUsage> {
        let (usage, limit) = if self.pod.node.cgroups.on_unified("memory") {
            (self.number("memory", "memory.swap.current")?, self.number("memory", "memory.swap.max"))
        } else {
            (field(&self.text("memory", "memory.stat")?, "total_swap")?, None)
        };
        let available = limit.and_then(|limit| value(limit.saturating_sub(usage)));
        Some(SwapUsage { timestamp: at, swap_available_bytes: available, swap_usage_bytes: value(usage) })
    }

    /// Pressure stall information, where the kernel keeps it (Documentation/accounting/psi.rst).
    pub(crate) fn psi(&self, resource: &str) -> Option<PsiStats> {
        let text = self.text("", &format!("{resource}.pressure"))?;
        Some(PsiStats { some: psi_line(&text, "some"), full: psi_line(&text, "full") })
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

/// Adds up allocated bytes and files below `dir`. Deeper than the kernel's own limit on paths nothing is counted.
fn measure(dir: &Path, depth: u32, bytes: &mut u64, files: &mut u64) {
    use std::os::unix::fs::MetadataExt;
    if depth > 256 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        *files += 1;
        *bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            measure(&entry.path(), depth + 1, bytes, files);
        }
    }
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
    fn rates_need_two_readings() {
        let samples = Samples::default();
        let id = "c0ffee";
        assert_eq!(samples.rate(id, 1_000_000_000, 5), 0);
        assert_eq!(samples.rate(id, 2_000_000_000, 500_000_005), 500_000_000);
        assert_eq!(samples.rate(id, 2_000_000_000, 600_000_005), 500_000_000, "no time went by");
    }
}

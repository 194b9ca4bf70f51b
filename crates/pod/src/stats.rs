//! What containers use, now and since the reading before.

use std::collections::HashMap;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::cri::v1::{ContainerAttributes, ContainerStats, FilesystemIdentifier, FilesystemUsage};
use api::id::ContainerId;

use crate::container::Container;
use crate::error::LookupError;
use crate::node::now;
use crate::pod::Pod;
use crate::pods::Pods;
use crate::usage::{Files, Gauges, value};

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
    gauges: Arc<Gauges>,
}

impl Samples {
    /// The open files of its cgroup.
    pub(crate) fn gauges(&self, id: &str) -> Arc<Gauges> {
        self.with(|samples| match samples.get(id) {
            Some(sample) => Arc::clone(&sample.gauges),
            None => Arc::clone(&samples.entry(id.to_owned()).or_default().gauges),
        })
    }

    pub(crate) fn forget(&self, id: &str) {
        self.with(|samples| samples.remove(id));
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<String, Sample>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The CPU rate since the reading before this one.
    pub(crate) fn rate(&self, id: &str, at: i64, usage: u64) -> u64 {
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
    /// What one container uses.
    pub async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, LookupError> {
        let gone = || LookupError::NotFound { kind: "container", id: id.to_string() };
        self.list_stats(vec![id.clone()]).await.pop().ok_or_else(gone)
    }

    /// What several containers use; those that are gone meanwhile are left out.
    pub async fn list_stats(&self, ids: Vec<ContainerId>) -> Vec<ContainerStats> {
        let pods = self.clone();
        let one = move |id: &ContainerId| {
            let handle = pods.registry.pod_of(id).ok()?;
            Some(stats(&handle.pod, &*pods.container(id).ok()?))
        };
        by_shares(ids, move |ids| ids.iter().filter_map(&one).collect()).await
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

/// Fewer objects than this are not worth another thread.
const SHARE: usize = 50;

/// Reads what `all` use on as many threads as there are processors: reading is computing, the kernel's. In order.
pub(crate) async fn by_shares<T: Send + 'static, R: Send + 'static>(
    mut all: Vec<T>,
    read: impl Fn(&[T]) -> Vec<R> + Clone + Send + 'static,
) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = all.len().div_ceil(processors).max(SHARE);
    let mut shares = Vec::new();
    while !all.is_empty() {
        let rest = all.split_off(share.min(all.len()));
        let (share, read) = (std::mem::replace(&mut all, rest), read.clone());
        shares.push(tokio::task::spawn_blocking(move || read(&share)));
    }
    let mut answers = Vec::new();
    for share in shares {
        answers.extend(share.await.unwrap_or_default());
    }
    answers
}

pub(crate) fn stats(pod: &Pod, container: &Container) -> ContainerStats {
    let id = container.id();
    let config = &container.metadata.config;
    let (files, at) = (Files::new(pod, container), now());
    let memory = files.memory_stat();
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
        memory: files.memory(at, memory.as_deref()),
        writable_layer: Some(FilesystemUsage {
            timestamp: at,
            fs_id: Some(FilesystemIdentifier { mountpoint }),
            used_bytes: value(used),
            inodes_used: value(inodes),
        }),
        swap: files.swap(at, memory.as_deref()),
        io: files.io(at),
    }
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

    #[tokio::test]
    async fn shares_keep_their_order() {
        for length in [0, 1, 49, 51, 1000] {
            let all: Vec<usize> = (0..length).collect();
            assert_eq!(by_shares(all.clone(), <[usize]>::to_vec).await, all);
        }
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

//! Figures for Prometheus. RPCs are counted as they are answered; what the node has is counted when it is asked for.

mod moves;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use image::Images;
use pod::Pods;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tonic::Code;

pub use moves::Moves;
pub use serve::{ListenError, serve};

/// Bounds of the latency histogram, in seconds: a list takes 1 ms, a pod some 10 ms, a stop or a pull many seconds.
const BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    rpc: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

/// How often each RPC was answered with which code, and how fast.
#[derive(Debug, Clone)]
pub struct Rpcs(Family<Answer, Histogram, fn() -> Histogram>);

impl Rpcs {
    fn new() -> Self {
        Self(Family::new_with_constructor(|| Histogram::new(BUCKETS)))
    }

    /// Counts one answer. Names that are no RPCs come from the client and count as one.
    pub fn answered(&self, rpc: String, code: Code, elapsed: Duration) {
        let rpc = if code == Code::Unimplemented { "unimplemented".to_owned() } else { rpc };
        let answer = Answer { rpc, code: format!("{code:?}") };
        self.0.get_or_create(&answer).observe(elapsed.as_secs_f64());
    }
}

/// All figures of this daemon.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Shared>);

struct Shared {
    registry: Registry,
    rpcs: Rpcs,
    moves: Moves,
    pulled: Counter,
    checkpoints: Counter,
    frozen: Counter<f64, AtomicU64>,
    pods: Family<InState, Gauge>,
    containers: Family<InState, Gauge>,
    images: Gauge,
    image_bytes: Gauge,
    resident: Gauge,
    descriptors: Gauge,
    sources: (Pods, Images),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Figures of what `pods` and `images` hold.
    pub fn new(pods: Pods, images: Images) -> Self {
        let mut registry = Registry::default();
        let mut shared = Shared {
            rpcs: Rpcs::new(),
            moves: Moves::register(&mut registry),
            pulled: Counter::default(),
            checkpoints: Counter::default(),
            frozen: Counter::default(),
            pods: Family::default(),
            containers: Family::default(),
            images: Gauge::default(),
            image_bytes: Gauge::default(),
            resident: Gauge::default(),
            descriptors: Gauge::default(),
            sources: (pods, images),
            registry,
        };
        let registry = &mut shared.registry;
        let help = "Time until an RPC was answered, by RPC and gRPC code";
        registry.register_with_unit("meridian_rpc", help, Unit::Seconds, shared.rpcs.0.clone());
        registry.register("meridian_pods", "Pods by state", shared.pods.clone());
        registry.register("meridian_containers", "Containers by state", shared.containers.clone());
        registry.register("meridian_images", "Images", shared.images.clone());
        let help = "Disk that images take";
        registry.register_with_unit("meridian_images", help, Unit::Bytes, shared.image_bytes.clone());
        let help = "Bytes received from registries";
        registry.register_with_unit("meridian_image_received", help, Unit::Bytes, shared.pulled.clone());
        let help = "Checkpoints of pods and containers that froze them";
        registry.register("meridian_checkpoints", help, shared.checkpoints.clone());
        let help = "Time that pods were frozen for checkpoints";
        registry.register_with_unit("meridian_checkpoint_frozen", help, Unit::Seconds, shared.frozen.clone());
        let help = "Resident memory of the daemon";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, shared.resident.clone());
        registry.register("process_open_fds", "Descriptors of the daemon", shared.descriptors.clone());
        Self(Arc::new(shared))
    }

    /// What the RPC layer counts with.
    pub fn rpcs(&self) -> Rpcs {
        self.0.rpcs.clone()
    }

    /// What moves are counted with.
    pub fn moves(&self) -> Moves {
        self.0.moves.clone()
    }

    /// All figures as text (OpenMetrics 1.0). Blocks for some reads of /proc/self.
    pub fn text(&self) -> Result<String, fmt::Error> {
        self.count();
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }

    fn count(&self) {
        let (pods, images) = &self.0.sources;
        let sandboxes = pods.sandboxes();
        let ready = sandboxes.iter().filter(|sandbox| sandbox.state == pod::SandboxState::Ready).count();
        set(&self.0.pods, "ready", ready);
        set(&self.0.pods, "notready", sandboxes.len() - ready);
        let containers = pods.containers();
        for (state, name) in STATES {
            set(&self.0.containers, name, containers.iter().filter(|c| c.status.state == state).count());
        }
        self.0.images.set(signed(images.list().len()));
        self.0.image_bytes.set(i64::try_from(images.fs_info().used_bytes).unwrap_or(i64::MAX));
        self.0.pulled.inner().store(image::received_bytes(), Relaxed);
        let captures = pods.captures();
        self.0.checkpoints.inner().store(captures.count, Relaxed);
        self.0.frozen.inner().store(captures.frozen.as_secs_f64().to_bits(), Relaxed);
        self.0.resident.set(resident());
        self.0.descriptors.set(std::fs::read_dir("/proc/self/fd").map_or(0, |fds| signed(fds.count())));
    }
}

const STATES: [(pod::ContainerState, &str); 4] = [
    (pod::ContainerState::Created, "created"),
    (pod::ContainerState::Running, "running"),
    (pod::ContainerState::Exited, "exited"),
    (pod::ContainerState::Unknown, "unknown"),
];

fn set(family: &Family<InState, Gauge>, state: &'static str, count: usize) {
    family.get_or_create(&InState { state }).set(signed(count));
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// In bytes; VmRSS of proc_pid_status(5), which is in KiB.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: i64 = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_rpcs_do_not_grow_the_table() {
        let rpcs = Rpcs::new();
        for n in 0..100 {
            rpcs.answered(format!("Nonesuch{n}"), Code::Unimplemented, Duration::ZERO);
        }
        rpcs.answered("Version".to_owned(), Code::Ok, Duration::from_millis(2));
        let mut registry = Registry::default();
        registry.register_with_unit("meridian_rpc", "time", Unit::Seconds, rpcs.0.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("_count{")).count(), 2, "{text}");
        assert!(
            text.contains("meridian_rpc_seconds_bucket{le=\"0.003\",rpc=\"Version\",code=\"Ok\"} 1"),
            "{text}"
        );
    }
}

//! Moves that began here, told by their source: it learns of both sides' phases.

use std::time::Duration;

use migration::transport::Report;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Bounds for phases and downtime, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0, 120.0];
/// Bounds for what a clock gained, in seconds: a good move is below a millisecond.
const JUMPS: [f64; 7] = [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.1, 1.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    role: String,
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Clock {
    clock: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// How moves ended, and how long what took. Clones are the same.
#[derive(Debug, Clone)]
pub struct Moves {
    outcomes: Family<Outcome, Counter>,
    phases: Histograms<Phase>,
    downtime: Histogram,
    jumps: Histograms<Clock>,
    bytes: Counter,
}

impl Moves {
    /// Registers all with `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let moves = Self {
            outcomes: Family::default(),
            phases: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            downtime: Histogram::new(BUCKETS),
            jumps: Family::new_with_constructor(|| Histogram::new(JUMPS)),
            bytes: Counter::default(),
        };
        let seconds = Unit::Seconds;
        registry.register(
            "meridian_moves",
            "Moves to other nodes that ended, by outcome",
            moves.outcomes.clone(),
        );
        let help = "Time of the phases of moves to other nodes, by role and phase";
        registry.register_with_unit("meridian_move_phase", help, seconds.clone(), moves.phases.clone());
        let help = "Time from the freeze to the release of pods that were moved";
        registry.register_with_unit("meridian_move_downtime", help, seconds.clone(), moves.downtime.clone());
        let help = "What the clocks of pods that were moved gained beyond the policy";
        registry.register_with_unit("meridian_move_clock_jump", help, seconds, moves.jumps.clone());
        let help = "Bytes sent to other nodes";
        registry.register_with_unit("meridian_move_sent", help, Unit::Bytes, moves.bytes.clone());
        moves
    }

    /// The pod runs elsewhere.
    pub fn moved(&self, report: &Report) {
        self.ended("moved");
        for record in &report.phases {
            let phase = Phase { role: record.role.name().to_owned(), phase: record.name.clone() };
            self.phases.get_or_create(&phase).observe(record.duration.as_secs_f64());
        }
        self.bytes.inc_by(report.bytes);
        // A source whose confirmation was lost learns that the pod runs, and nothing of how it went.
        if report.downtime == 0 {
            return;
        }
        self.downtime.observe(Duration::from_nanos(report.downtime).as_secs_f64());
        for (clock, gained) in [("monotonic", report.monotonic_jump), ("boottime", report.boottime_jump)] {
            let gained = Duration::from_nanos(gained.unsigned_abs());
            self.jumps.get_or_create(&Clock { clock }).observe(gained.as_secs_f64());
        }
    }

    /// The pod runs on here: `stayed`; or nobody knows yet: `unknown`.
    pub fn ended(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&Outcome { outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use migration::transport::{Record, Role};
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn report(downtime: u64) -> Report {
        let ms = Duration::from_millis;
        let record = |role, name: &str, frozen| Record {
            role,
            name: name.into(),
            start: ms(0),
            duration: ms(20),
            frozen,
        };
        Report {
            migration: String::new(),
            source_pod: String::new(),
            destination_pod: String::new(),
            phases: vec![record(Role::Source, "dump", true), record(Role::Destination, "restore", true)],
            downtime,
            monotonic_jump: -200_000,
            boottime_jump: 2_000_000,
            late: 0,
            bytes: 4096,
            namespaces: Vec::new(),
        }
    }

    #[test]
    fn a_move_is_told_with_its_phases_and_jumps() {
        let mut registry = Registry::default();
        let moves = Moves::register(&mut registry);
        moves.moved(&report(45_000_000));
        moves.moved(&report(0)); // its confirmation was lost
        moves.ended("stayed");
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "meridian_moves_total{outcome=\"moved\"} 2",
            "meridian_moves_total{outcome=\"stayed\"} 1",
            "meridian_move_phase_seconds_bucket{le=\"0.03\",role=\"source\",phase=\"dump\"} 2",
            "meridian_move_phase_seconds_count{role=\"destination\",phase=\"restore\"} 2",
            "meridian_move_downtime_seconds_sum 0.045",
            "meridian_move_downtime_seconds_count 1",
            "meridian_move_clock_jump_seconds_bucket{le=\"0.0003\",clock=\"monotonic\"} 1",
            "meridian_move_clock_jump_seconds_bucket{le=\"0.001\",clock=\"boottime\"} 0",
            "meridian_move_sent_bytes_total 8192",
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
    }
}

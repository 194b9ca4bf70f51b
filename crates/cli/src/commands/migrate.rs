use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use api::meridian::v1::{
    ClockPolicy, MigrateEvent, MigrateRequest, MigrateResult, Progress, migrate_event::Event,
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tonic::Streaming;

use super::Context;
use crate::{
    duration,
    error::Error,
    find, format, json,
    output::{self, Format, Table},
};

/// Move a pod to another node while its clocks stand still
///
/// The pod is frozen, sent, and goes on over there; here it is removed once the other node runs it. If anything goes
/// wrong before that, it goes on here.
#[derive(Debug, Args)]
pub struct Migrate {
    /// The other node's daemon
    #[arg(long, value_name = "HOST:PORT")]
    to: String,
    /// What the pod's clocks do in between
    #[arg(long, value_enum, default_value = "freeze")]
    clock: Clock,
    /// Give up, with the pod running here, after this long
    #[arg(long, value_parser = duration::parse, default_value = "2m", value_name = "DURATION")]
    timeout: Duration,
    /// The pod
    pod: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Clock {
    /// MONOTONIC and BOOTTIME resume where they stopped
    Freeze,
    /// MONOTONIC resumes where it stopped, BOOTTIME advances as over a suspend
    Suspend,
}

impl Migrate {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let pod = find::pod(&node, &self.pod).await?;
        let clock = match self.clock {
            Clock::Freeze => ClockPolicy::Freeze,
            Clock::Suspend => ClockPolicy::Suspend,
        };
        let request = MigrateRequest {
            pod_id: pod.id,
            destination: self.to.clone(),
            clock: clock.into(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let what = format!("move pod {} to {}", self.pod, self.to);
        let events = node.meridian.migrate(request).await.map_err(Error::refused(what.clone()))?.into_inner();
        let result = follow(events, what).await?;
        match cx.output {
            Format::Json => output::json(&json::message("meridian.v1.MigrateResult", &result)),
            Format::Text => {
                output::print(format_args!(
                    "{} now runs on {} as {}\n",
                    self.pod, self.to, result.destination_pod
                ))?;
                output::print(summary(&result))?;
                output::print(phases(&result))
            }
        }
    }
}

/// Shows the phases as they come, and returns what the last event says.
async fn follow(mut events: Streaming<MigrateEvent>, what: String) -> Result<MigrateResult, Error> {
    let bar = Bar::new();
    loop {
        match events.message().await {
            Ok(Some(MigrateEvent { event: Some(Event::Progress(progress)) })) => bar.show(&progress),
            Ok(Some(MigrateEvent { event: Some(Event::Result(result)) })) => {
                bar.0.finish_and_clear();
                return Ok(result);
            }
            Ok(Some(MigrateEvent { event: None })) => {}
            Ok(None) => {
                return Err(Error::Usage(format!(
                    "cannot {what}: the daemon ended the stream without a result"
                )));
            }
            Err(status) => {
                bar.0.finish_and_clear();
                return Err(Error::refused(what)(status));
            }
        }
    }
}

/// A line on standard error that names the phase; none where that is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        if !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(80));
        Self(bar)
    }

    fn show(&self, progress: &Progress) {
        let known = progress.total > 0;
        let template = match (known, progress.bytes) {
            (true, _) => "{spinner} {msg:<10} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec}",
            (false, 0) => "{spinner} {msg:<10} {elapsed}",
            (false, _) => "{spinner} {msg:<10} {bytes}",
        };
        self.0.set_style(ProgressStyle::with_template(template).expect("a template of this file"));
        self.0.set_message(progress.phase.clone());
        if known {
            self.0.set_length(progress.total);
        }
        self.0.set_position(progress.bytes);
    }
}

fn summary(result: &MigrateResult) -> String {
    format!(
        "downtime {}, clock jump monotonic {} boottime {} (released {} late), {} sent\n\n",
        format::duration(Duration::from_nanos(result.downtime_ns)),
        format::signed_ms(result.monotonic_jump_ns),
        format::signed_ms(result.boottime_jump_ns),
        format::signed_ms(result.late_ns),
        format::bytes(result.bytes),
    )
}

fn phases(result: &MigrateResult) -> Table {
    let mut table = Table::new(["PHASE", "NODE", "BEGIN", "DURATION", "POD"]);
    for phase in &result.phases {
        table.row([
            phase.name.clone(),
            phase.role.clone(),
            format::duration(Duration::from_nanos(phase.start_ns)),
            format::duration(Duration::from_nanos(phase.duration_ns)),
            if phase.frozen { "frozen" } else { "running" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use api::meridian::v1::Phase;

    use super::*;

    #[test]
    fn the_result_is_readable_at_a_glance() {
        let phase = |name: &str, start_ns, duration_ns, frozen| Phase {
            role: "source".into(),
            name: name.into(),
            start_ns,
            duration_ns,
            frozen,
        };
        let result = MigrateResult {
            phases: vec![phase("Negotiate", 0, 800_000, false), phase("Dump", 1_200_000, 40_000_000, true)],
            downtime_ns: 61_000_000,
            monotonic_jump_ns: 310_000,
            bytes: 64 << 20,
            ..Default::default()
        };
        assert_eq!(
            summary(&result),
            "downtime 61.0 ms, clock jump monotonic +0.31 ms boottime +0.00 ms (released +0.00 ms late), 64.0 MiB sent\n\n"
        );
        assert_eq!(
            phases(&result).to_string(),
            "PHASE      NODE    BEGIN   DURATION  POD\n\
             Negotiate  source  0 us    800 us    running\n\
             Dump       source  1.2 ms  40.0 ms   frozen\n"
        );
    }
}

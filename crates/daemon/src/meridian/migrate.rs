//! Migrate: moves a pod to another node and tells how it goes.

use std::pin::Pin;
use std::time::Duration;

use api::meridian::v1::{ClockPolicy, MigrateEvent, MigrateRequest, Progress, migrate_event};
use migration::clock::Policy;
use migration::transport::{FailureKind, MoveError};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::Instrument;

use super::namespaces::find;
use crate::chain;
use crate::migrate::{Event, MigrateError, Migrations};

/// What a request without a timeout gets.
const TIMEOUT: Duration = Duration::from_secs(120);
/// More is a mistake.
const LONGEST: Duration = Duration::from_secs(3600);
/// Events that wait for a slow client.
const QUEUED: usize = 64;

pub type Events = Pin<Box<dyn Stream<Item = Result<MigrateEvent, Status>> + Send>>;

pub fn migrate(
    migrations: Option<&Migrations>,
    pods: &pod::Pods,
    request: &MigrateRequest,
) -> Result<Events, Status> {
    let migrations = migrations.ok_or_else(|| {
        Status::failed_precondition("this node moves no pods: set [peer] in the configuration")
    })?;
    let pod = find(pods, &request.pod_id)?;
    let policy = match ClockPolicy::try_from(request.clock) {
        Ok(ClockPolicy::Freeze) => Policy::Freeze,
        Ok(ClockPolicy::Suspend) => Policy::Suspend,
        Err(_) => return Err(Status::invalid_argument(format!("clock: {} is no policy", request.clock))),
    };
    let destination = destination(&request.destination)?;
    let timeout = match request.timeout_ms {
        0 => TIMEOUT,
        ms => Duration::from_millis(ms).min(LONGEST),
    };
    let (events, mut told) = mpsc::channel(QUEUED);
    let (answers, stream) = mpsc::channel(QUEUED);
    let migrations = migrations.clone();
    // The move does not depend on its caller's patience.
    let work = async move { migrations.migrate(&pod, destination, policy, timeout, events).await };
    let work = tokio::spawn(work.in_current_span());
    tokio::spawn(async move {
        while let Some(event) = told.recv().await {
            let _nobody_listens = answers.send(Ok(wire(event))).await;
        }
        let end = match work.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => status(&error),
            Err(panic) => Status::internal(panic.to_string()),
        };
        let _nobody_listens = answers.send(Err(end)).await;
    });
    Ok(Box::pin(ReceiverStream::new(stream)))
}

fn destination(text: &str) -> Result<String, Status> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => Err(Status::invalid_argument(format!(
            "destination: {:?} must be HOST:PORT of another node's daemon",
            text.chars().take(200).collect::<String>()
        ))),
    }
}

fn wire(event: Event) -> MigrateEvent {
    let event = match event {
        Event::Progress(step) => migrate_event::Event::Progress(Progress {
            phase: step.phase.name().to_owned(),
            bytes: step.bytes,
            total: step.total,
        }),
        Event::Result(result) => migrate_event::Event::Result(*result),
    };
    MigrateEvent { event: Some(event) }
}

fn status(error: &MigrateError) -> Status {
    let code = |error: &MoveError| match error.kind() {
        FailureKind::Internal => Code::Internal,
        FailureKind::Precondition => Code::FailedPrecondition,
        FailureKind::Exhausted => Code::ResourceExhausted,
        FailureKind::Deadline => Code::DeadlineExceeded,
        FailureKind::Invalid => Code::InvalidArgument,
    };
    match error {
        MigrateError::Claim(claim) => Status::failed_precondition(chain(claim)),
        MigrateError::Stayed(cause) => Status::new(code(cause), chain(error)),
        MigrateError::Unknown(cause) => Status::new(Code::Unavailable, chain(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::destination;

    #[test]
    fn a_destination_is_host_and_port() {
        for good in ["10.0.0.2:7070", "node-b.example:1", "[fd00::2]:7070"] {
            assert_eq!(destination(good).unwrap(), good);
        }
        for bad in ["", "host", "host:", ":7070", "host:0", "host:65536", "host:http"] {
            assert!(destination(bad).unwrap_err().message().starts_with("destination: "), "{bad}");
        }
    }
}

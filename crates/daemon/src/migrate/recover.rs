//! Moves that a daemon which ended left open. Can run twice; waits for no other node.

use std::time::Duration;

use migration::transport::{Epoch, EpochState, JournalError, Outcome, resolve};

use super::Migrations;
use crate::chain;

/// Between two questions to a node that does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Settles what this node can alone; asks about the rest in tasks.
pub async fn all(migrations: &Migrations) -> Result<(), JournalError> {
    for epoch in migrations.journal.unfinished()? {
        tracing::info!(migration = epoch.migration, pod = epoch.pod, state = ?epoch.state, "an open move");
        match epoch.state {
            EpochState::SourceCommitting => {
                tokio::spawn(settle(migrations.clone(), epoch));
            }
            EpochState::SourceCommitted => retire(migrations, &epoch).await,
            EpochState::DestinationReceiving => {
                remove(migrations, &epoch).await;
                migrations.journal.give_up(&epoch)?;
            }
            EpochState::DestinationCommitted => release(migrations, &epoch).await,
            EpochState::DestinationGivenUp => {}
        }
    }
    Ok(())
}

/// Asks the other node until it answers; the pod stays frozen meanwhile.
pub async fn settle(migrations: Migrations, mut epoch: Epoch) {
    let mut pause = PAUSE;
    let outcome = loop {
        match resolve(&epoch, &migrations.identity).await {
            Ok(outcome) => break outcome,
            Err(error) => tracing::warn!(peer = epoch.peer, pod = epoch.pod, "{}", chain(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    tracing::info!(migration = epoch.migration, pod = epoch.pod, ?outcome, "an open move is settled");
    match outcome {
        Outcome::Committed(_) => {
            epoch.state = EpochState::SourceCommitted;
            report(migrations.journal.put(&epoch));
            retire(&migrations, &epoch).await;
        }
        Outcome::GivenUp => {
            if let Ok(pod) = epoch.pod.parse() {
                report(migrations.pods.thaw_held(&pod).await);
            }
            report(migrations.journal.remove(&epoch.migration));
        }
    }
}

/// The pod runs elsewhere.
async fn retire(migrations: &Migrations, epoch: &Epoch) {
    if remove(migrations, epoch).await {
        report(migrations.journal.remove(&epoch.migration));
    }
}

async fn remove(migrations: &Migrations, epoch: &Epoch) -> bool {
    let Ok(pod) = epoch.pod.parse() else { return true };
    let removed = migrations.pods.remove_sandbox(&pod).await;
    let ok = removed.is_ok();
    report(removed);
    ok
}

async fn release(migrations: &Migrations, epoch: &Epoch) {
    if let Ok(pod) = epoch.pod.parse()
        && migrations.pods.sandbox(&pod).is_ok()
    {
        report(migrations.pods.release_received(&pod).await);
    }
}

fn report<E: std::error::Error>(result: Result<(), E>) {
    if let Err(error) = result {
        tracing::error!("settling an open move: {}", chain(&error));
    }
}

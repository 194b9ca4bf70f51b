//! Two nodes on loopback, real TLS and real journals, pods that keep a diary: who may run the pod when something fails
//! at each step, and what arrives. Real pods move in e2e/move.

#![allow(clippy::unwrap_used, reason = "a test")]

mod transport {
    pub mod node;
    pub mod pod;
}

use std::fs;
use std::time::Duration;

use migration::transport::{DestinationPod, EpochState, MoveError, Outcome, Role, resolve};
use transport::node::{Node, Pair, request};
use transport::pod::{MEMORY, Step};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_arrives_whole_and_leaves() {
    let pair = Pair::start().await;
    let report = pair.move_pod(&request(&pair)).await.unwrap();
    let (source, target) = (&pair.source, pair.target());
    assert_eq!(
        source.diary(),
        ["start dumps", "freeze", "dumps", "diffs", "shm", "hold", "retire"].map(str::to_owned)
    );
    let kept: Vec<String> = target.diary().into_iter().filter(|line| !line.starts_with("images")).collect();
    assert_eq!(
        kept,
        [
            "receive two containers",
            "apply 0 [\"/gone\"] diff 0",
            "apply 1 [\"/gone\"] diff 1",
            "shm",
            "clocks",
            "restore",
            "release",
        ]
        .map(str::to_owned)
    );
    for index in [0_u8, 1] {
        let dir = target.images(index.into());
        assert_eq!(fs::read(dir.join("core-1.img")).unwrap(), vec![index; 300_000]);
        assert_eq!(fs::read(dir.join("pages-1.img")).unwrap().len() as u64, MEMORY);
        assert!(!dir.join("dump.log").exists());
    }
    assert_eq!((report.source_pod.as_str(), report.destination_pod), ("at-source", pair.target().id()));
    assert!(report.bytes > 2 * MEMORY && report.late >= 0 && report.monotonic_jump >= report.late);
    let names =
        |role| report.phases.iter().filter(|p| p.role == role).map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(Role::Source), ["negotiate", "freeze", "dump", "diff", "send", "confirm", "release"]);
    assert_eq!(names(Role::Destination), ["prepare", "receive", "clocks", "restore", "resume"]);
    assert!(pair.source_node.journal.unfinished().unwrap().is_empty());
}

/// Any failure before the commit: the source runs on, the destination keeps nothing, and the reason is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_step_leaves_the_pod_where_it_is() {
    for step in [
        Step::StartDumps,
        Step::Freeze,
        Step::Dumps,
        Step::Diffs,
        Step::Shm,
        Step::Hold,
        Step::Receive,
        Step::Images,
        Step::Apply,
        Step::ApplyShm,
        Step::Clocks,
        Step::Restore,
    ] {
        let pair = Pair::failing(step).await;
        let error = pair.move_pod(&request(&pair)).await.expect_err(&format!("{step:?}"));
        let told = chain(&error);
        assert!(told.contains(&format!("no luck with {step:?}")), "{step:?}: {told}");
        assert_eq!(pair.source.diary().last().unwrap(), "thaw", "{step:?}");
        pair.settled(step).await;
        assert!(pair.source_node.journal.unfinished().unwrap().is_empty(), "{step:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_thaws() {
    for step in [Step::Receive, Step::Freeze, Step::Dumps, Step::Restore] {
        let pair = Pair::hanging(step).await;
        let mut short = request(&pair);
        short.timeout = Duration::from_millis(300);
        let error = pair.move_pod(&short).await.unwrap_err();
        assert!(chain(&error).contains("the deadline of 0.300 s passed"), "{step:?}: {}", chain(&error));
        assert_eq!(pair.source.diary().last().unwrap(), "thaw", "{step:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_told_by_address() {
    let pair = Pair::start().await;
    let mut nowhere = request(&pair);
    nowhere.peer = "127.0.0.1:1".into();
    let error = pair.move_pod(&nowhere).await.unwrap_err();
    assert!(matches!(&error, MoveError::Connect { peer, .. } if peer == "127.0.0.1:1"), "{error}");
    assert!(pair.source.diary().is_empty());
}

/// What the destination prepares for a source that gives up, or is gone, it stops at once and forgets.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_prepared_for_nobody() {
    for patience in [300, 20_000] {
        let pair = Pair::hanging(Step::Receive).await;
        let mut short = request(&pair);
        short.timeout = Duration::from_millis(patience);
        let gave_up = tokio::time::timeout(Duration::from_millis(600), pair.move_pod(&short)).await;
        assert_eq!(gave_up.is_ok(), patience == 300, "the other source is dropped with its connection");
        for _ in 0..100 {
            if pair.target().diary().last().is_some_and(|line| line == "unwanted") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(pair.target().diary().last().unwrap(), "unwanted", "{patience} ms");
        while !pair.target_node.journal.unfinished().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

/// The destination commits and the answer is lost: the source asks, and removes its pod.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_confirmation_is_asked_for() {
    let pair = Pair::failing(Step::Release).await;
    let report = pair.move_pod(&request(&pair)).await.unwrap();
    assert_eq!(report.destination_pod, pair.target().id());
    assert_eq!(pair.source.diary().last().unwrap(), "retire");
}

/// A source that comes back after a crash learns that its move was given up, for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_gives_an_open_move_up() {
    let pair = Pair::start().await;
    let epoch = pair.epoch(EpochState::SourceCommitting);
    let identity = &pair.source_node.identity;
    assert_eq!(resolve(&epoch, identity).await.unwrap(), Outcome::GivenUp);
    let committed = pair.target_node.journal.commit(&pair.epoch(EpochState::DestinationCommitted));
    assert!(!committed.unwrap());
    assert_eq!(resolve(&epoch, identity).await.unwrap(), Outcome::GivenUp);
}

/// Strangers get nothing: another authority, no certificate, another name.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let (pair, stranger) = (Pair::start().await, Node::new("stranger"));
    let mut to = request(&pair);
    let error = pair.move_as(&to, &stranger.identity).await.unwrap_err();
    assert!(matches!(error, MoveError::Connect { .. } | MoveError::Lost { .. }), "{error}");
    // The certificate is for 127.0.0.1, not for this name of the same address.
    to.peer = to.peer.replace("127.0.0.1", "127.0.0.2");
    assert!(matches!(pair.move_pod(&to).await, Err(MoveError::Connect { .. })));
    assert!(!pair.target().diary().iter().any(|line| line.starts_with("receive")));
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

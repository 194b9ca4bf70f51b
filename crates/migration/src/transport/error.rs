//! Why a pod was not moved, and where it is.

use std::io;

use api::peer::v1::{Abort, abort};

use super::journal::JournalError;
use super::pod::{Failure, FailureKind};
use crate::clock::ClockError;
use crate::manifest::UnmetNeed;

/// A move that did not happen, but for [`MoveError::Unresolved`].
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Nobody there, or not one of ours.
    #[error("connect to {peer}")]
    Connect {
        /// Address.
        peer: String,
        /// What came back.
        source: io::Error,
    },
    /// The connection broke before the commit.
    #[error("lost the connection to {peer} during {during}")]
    Lost {
        /// Address.
        peer: String,
        /// What was under way.
        during: &'static str,
        /// What came back, if anything.
        source: Option<io::Error>,
    },
    /// The other side said so.
    #[error("{peer}: {reason}")]
    Refused {
        /// Address.
        peer: String,
        /// Its words.
        reason: String,
        /// Its judgement.
        kind: FailureKind,
    },
    /// The peer does not speak as agreed.
    #[error("{peer} sent {found} when {wanted} was due")]
    Protocol {
        /// Address.
        peer: String,
        /// What came.
        found: String,
        /// What was due.
        wanted: &'static str,
    },
    /// Something that cannot be right.
    #[error("{peer} sent {what}")]
    Malformed {
        /// Address.
        peer: String,
        /// What.
        what: String,
    },
    /// What arrived is not what was sent.
    #[error("digest of {what} differs between the nodes")]
    Digest {
        /// Of what.
        what: String,
    },
    /// A container's standard streams are not what the other node prepared for.
    #[error("a container replaced its standard streams while it was about to be moved: they are {now:?} now")]
    Redirected {
        /// What they are.
        now: Vec<String>,
    },
    /// The user's time is over.
    #[error("the deadline of {seconds:.3} s passed")]
    Deadline {
        /// How long it was.
        seconds: f64,
    },
    /// A pod or node failed.
    #[error("{step}")]
    Pod {
        /// What was asked.
        step: &'static str,
        /// What came back.
        source: Failure,
    },
    /// This node cannot take it.
    #[error(transparent)]
    Needs(#[from] UnmetNeed),
    /// Numbers that are no clock's.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// The outcome could not be made durable.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A file of the transfer.
    #[error("{step}")]
    File {
        /// What was tried.
        step: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// The commit was sent and no answer came: the pod stays frozen here until the other node is reached again.
    #[error("{peer} did not confirm the move {migration}: the pod stays frozen until {peer} can be asked")]
    Unresolved {
        /// Address.
        peer: String,
        /// The migration's id.
        migration: String,
    },
}

impl MoveError {
    /// Whose fault it is.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Pod { source, .. } => source.kind,
            Self::Refused { kind, .. } => *kind,
            Self::Deadline { .. } => FailureKind::Deadline,
            Self::Connect { .. }
            | Self::Lost { .. }
            | Self::Needs(_)
            | Self::Redirected { .. }
            | Self::Unresolved { .. } => FailureKind::Precondition,
            Self::Clock(_) => FailureKind::Invalid,
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                FailureKind::Exhausted
            }
            Self::Protocol { .. }
            | Self::Malformed { .. }
            | Self::Digest { .. }
            | Self::Journal(_)
            | Self::File { .. } => FailureKind::Internal,
        }
    }

    pub(super) fn pod(step: &'static str) -> impl Fn(Failure) -> Self {
        move |source| Self::Pod { step, source }
    }

    pub(super) fn file(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { step, source }
    }

    /// For the other side.
    pub(super) fn to_abort(&self) -> Abort {
        let mut reason = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        let kind = match self.kind() {
            FailureKind::Internal => abort::Kind::Internal,
            FailureKind::Precondition => abort::Kind::Precondition,
            FailureKind::Exhausted => abort::Kind::Exhausted,
            FailureKind::Deadline => abort::Kind::Deadline,
            FailureKind::Invalid => abort::Kind::Invalid,
        };
        Abort { reason, kind: kind.into() }
    }

    pub(super) fn from_abort(peer: &str, abort: &Abort) -> Self {
        let kind = match abort.kind() {
            abort::Kind::Internal => FailureKind::Internal,
            abort::Kind::Precondition => FailureKind::Precondition,
            abort::Kind::Exhausted => FailureKind::Exhausted,
            abort::Kind::Deadline => FailureKind::Deadline,
            abort::Kind::Invalid => FailureKind::Invalid,
        };
        let reason = abort.reason.chars().filter(|c| !c.is_control()).take(2000).collect();
        Self::Refused { peer: peer.to_owned(), reason, kind }
    }
}

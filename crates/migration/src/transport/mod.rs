//! Moving a pod from one node to another.
//!
//! ```text
//! source: meridiand                                  destination: meridiand
//! SourcePod (shim, frozen pod)                       Destination, DestinationPod (shim, held pod)
//!     │ move_pod()                                       │ serve()
//!     └── connection ════ mutual TLS 1.3, peer.v1 ═══════┘
//!         journal (who may run it)                       journal, estimate (when it can be released)
//! ```
//!
//! The conversation is drawn in [`protocol`], its steps are named in [`phase`], what the pods must do is in [`pod`].
//! [`move_pod`] runs the source's side, [`serve`] the destination's; [`resolve`] asks a destination what became of a
//! move whose confirmation was lost.
//!
//! **Never two runnable copies.** Before the source sends Commit, any error on either side lets the source run on and
//! removes what the destination has. Once it was sent, the source can only be told: committed (it removes its pod) or
//! given up (it thaws). Both sides keep that decision on disk ([`journal`]) before they act on it.

mod connection;
mod destination;
mod error;
mod estimate;
mod files;
mod journal;
mod pages;
mod phase;
mod pieces;
mod pod;
mod protocol;
mod report;
mod source;
mod tls;

pub use destination::{Host, serve};
pub use error::MoveError;
pub use estimate::{Estimate, weight};
pub use journal::{Epoch, EpochState, Journal, JournalError};
pub use pages::{PageError, PageReceiver};
pub use phase::{Phase, Progress, Record, Role};
pub use pod::{Cut, Destination, DestinationPod, Diff, Dumped, Failure, FailureKind, SourcePod, Unwanted};
pub use report::Report;
pub use source::{Move, Outcome, move_pod, resolve};
pub use tls::{Identity, IdentityError};

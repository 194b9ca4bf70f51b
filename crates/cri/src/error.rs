//! Where errors become gRPC codes; nothing else in the daemon knows the codes.
//!
//! The kubelet tests NotFound, DeadlineExceeded and Unimplemented, and looks for two prefixes in messages of pulls. A
//! message holds the error and its causes, each once, on one line.

use std::error::Error;

use pod::{CheckpointError, Class, Classify};
use tonic::{Code, Status};

use crate::check::{Field, Invalid};

/// Why an RPC failed.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    fn new(code: Code, error: &dyn Error) -> Self {
        Self { code, message: chain(error) }
    }

    /// The failure, with the field of the request that led to it.
    pub(crate) fn at(self, field: &Field<'_>) -> Self {
        Self { message: format!("{field}: {}", self.message), ..self }
    }

    /// A subscriber read too slowly and lost what it had not read.
    pub(crate) fn behind(events: u64) -> Self {
        let message = format!(
            "{events} events were dropped because they were not read in time: list the objects and subscribe again"
        );
        Self { code: Code::ResourceExhausted, message }
    }

    /// A failed pull. The kubelet looks at the beginning of the text of errors, and sees it unadorned for code Unknown
    /// alone (cri-api pkg/errors).
    pub(crate) fn of_pull(error: &image::PullError) -> Self {
        match error.class() {
            image::Class::Unavailable => {
                Self { code: Code::Unknown, message: format!("RegistryUnavailable: {}", chain(error)) }
            }
            class => Self::new(image_code(class), error),
        }
    }

    /// The node's image store failed.
    pub(crate) fn of_image_store(error: &dyn Error) -> Self {
        Self::new(Code::Internal, error)
    }

    /// A failed checkpoint; `field` is the one that says where to write.
    pub(crate) fn of_checkpoint(error: CheckpointError, field: &Field<'_>) -> Self {
        let about_destination = matches!(error, CheckpointError::Destination { .. });
        let failure = Self::from(error);
        if about_destination { failure.at(field) } else { failure }
    }
}

impl<E: Classify> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(code(error.class()), &error)
    }
}

impl Classify for Invalid {
    fn class(&self) -> Class {
        Class::InvalidArgument
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::new(failure.code, failure.message)
    }
}

fn code(class: Class) -> Code {
    match class {
        Class::InvalidArgument => Code::InvalidArgument,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::DataLoss => Code::DataLoss,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::Unimplemented => Code::Unimplemented,
        // As for a failed pull: the kubelet reads the text of code Unknown.
        Class::ImageVolume => Code::Unknown,
        Class::Internal => Code::Internal,
    }
}

fn image_code(class: image::Class) -> Code {
    match class {
        image::Class::InvalidArgument => Code::InvalidArgument,
        image::Class::NotFound => Code::NotFound,
        image::Class::PermissionDenied => Code::PermissionDenied,
        image::Class::ResourceExhausted => Code::ResourceExhausted,
        image::Class::DataLoss => Code::DataLoss,
        image::Class::Unavailable => Code::Unavailable,
        image::Class::Internal => Code::Internal,
    }
}

/// The status of an error of crate `pod`, for services beside CRI.
pub fn status(error: impl Classify) -> Status {
    Failure::from(error).into()
}

/// Whether a code says that Meridian or the node is at fault rather than the caller.
#[must_use]
pub fn is_internal(code: Code) -> bool {
    matches!(code, Code::Internal | Code::DataLoss | Code::Unknown)
}

/// The error and its causes. A cause whose words the text before it already has is left out.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text.replace(['\n', '\r'], " ")
}

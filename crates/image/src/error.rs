//! What kind of failure an error is, for those who answer callers.

use crate::import::ImportError;
use crate::ingest::LayerError;
use crate::install::InstallError;
use crate::manifest::ManifestError;
use crate::pull::PullError;
use crate::registry::FetchError;
use crate::store::CommitError;
use crate::unpack::UnpackError;

/// Kinds of failure; the names are gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What was asked for, or what came, is not allowed.
    InvalidArgument,
    /// It does not exist.
    NotFound,
    /// The credential is missing or wrong.
    PermissionDenied,
    /// A limit, or the disk is full.
    ResourceExhausted,
    /// Content does not have its digest.
    DataLoss,
    /// The registry cannot be reached or does not serve; kubelet's `RegistryUnavailable`.
    Unavailable,
    /// This node.
    Internal,
}

impl PullError {
    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Reference(_) => Class::InvalidArgument,
            Self::Fetch { source, .. } => fetch(source),
            Self::Manifest { source, .. } => manifest(source),
            Self::Install { source, .. } => install(source),
        }
    }
}

impl ImportError {
    /// What kind of failure it is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Read(source) => io(source),
            Self::Digest { .. } => Class::DataLoss,
            Self::Manifest(source) => manifest(source),
            Self::Install { source, .. } => install(source),
            _ => Class::InvalidArgument,
        }
    }
}

fn fetch(error: &FetchError) -> Class {
    match error {
        FetchError::Client(_) | FetchError::Hosts { .. } => Class::Internal,
        FetchError::Address { .. } => Class::InvalidArgument,
        FetchError::NotFound { .. } => Class::NotFound,
        FetchError::Unauthorized { .. } => Class::PermissionDenied,
        FetchError::TooLarge { .. } => Class::ResourceExhausted,
        FetchError::Digest { .. } | FetchError::Length { .. } => Class::DataLoss,
        _ => Class::Unavailable,
    }
}

fn manifest(error: &ManifestError) -> Class {
    match error {
        ManifestError::Limit(_) => Class::ResourceExhausted,
        ManifestError::Platform => Class::NotFound,
        _ => Class::InvalidArgument,
    }
}

fn install(error: &InstallError) -> Class {
    match error {
        InstallError::Layer { source, .. } => layer(source),
        InstallError::Commit(CommitError::Store(error)) => io(&error.source),
        InstallError::Commit(CommitError::Metadata(_)) => Class::Internal,
    }
}

fn layer(error: &LayerError) -> Class {
    match error {
        LayerError::Fetch(error) => fetch(error),
        LayerError::Size { .. } | LayerError::Digest { .. } => Class::DataLoss,
        LayerError::Limit(_) | LayerError::Unpack(UnpackError::Limit(_)) => Class::ResourceExhausted,
        LayerError::Unpack(UnpackError::Entry { source, .. }) => entry(source),
        LayerError::Store(error) => io(&error.source),
        _ => Class::InvalidArgument,
    }
}

fn io(error: &std::io::Error) -> Class {
    let limit = error.get_ref().is_some_and(|inner| inner.is::<crate::limits::LimitExceeded>());
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Class::ResourceExhausted,
        _ if limit => Class::ResourceExhausted,
        _ => Class::Internal,
    }
}

/// Making an entry fails because the archive asked for nonsense, unless the disk is at fault.
fn entry(error: &std::io::Error) -> Class {
    use rustix::io::Errno;
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO | Errno::ROFS | Errno::ACCESS | Errno::PERM | Errno::NOMEM | Errno::MFILE) => {
            Class::Internal
        }
        Some(Errno::NOSPC | Errno::DQUOT) => Class::ResourceExhausted,
        _ => Class::InvalidArgument,
    }
}

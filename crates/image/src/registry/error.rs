//! Why a registry did not give what was asked. No text here holds a credential, a query string or a reply's body.

use crate::digest::Digest;

/// A failed request to a registry.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The HTTP client cannot be set up.
    #[error("cannot set up the registry client")]
    Client(#[source] reqwest::Error),
    /// An address out of a name or the configuration is not a URL.
    #[error("{url:?} is not an address of a registry: use http:// or https:// and a host")]
    Address {
        /// The address.
        url: String,
    },
    /// A file that says how a registry is reached.
    #[error("cannot use {}: {reason}", file.display())]
    Hosts {
        /// The file.
        file: std::path::PathBuf,
        /// What is wrong with it; holds no secret.
        reason: String,
    },
    /// A part of a blob that is not the one asked for.
    #[error("{url} sent another part than bytes {offset} and on")]
    Range {
        /// What was asked.
        url: String,
        /// First byte that was asked for.
        offset: u64,
    },
    /// No answer.
    #[error("cannot reach {url}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The client's error, without its URL.
        #[source]
        source: reqwest::Error,
    },
    /// The answer broke off.
    #[error("the transfer of {url} broke off")]
    Interrupted {
        /// What was asked.
        url: String,
        /// The client's error, without its URL.
        #[source]
        source: reqwest::Error,
    },
    /// No progress.
    #[error("{url} sent nothing of use for {seconds} s")]
    Stalled {
        /// What was asked.
        url: String,
        /// How long.
        seconds: u64,
    },
    /// It does not exist there, or not for this user.
    #[error("{url} does not exist")]
    NotFound {
        /// What was asked.
        url: String,
    },
    /// The credential is missing or refused.
    #[error("{url} needs a valid credential: {reason}")]
    Unauthorized {
        /// What was asked.
        url: String,
        /// Why it was not given or not accepted.
        reason: &'static str,
    },
    /// Another status.
    #[error("{url} answered {status}{codes}")]
    Status {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// Error codes of the distribution specification, if given.
        codes: String,
    },
    /// Larger than allowed.
    #[error("{url} is larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was asked.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// A document that is not the one asked for.
    #[error("the registry sent {actual} for {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A document of another length than its descriptor says.
    #[error("{digest} has {actual} bytes, its descriptor says {expected}")]
    Length {
        /// The document.
        digest: Digest,
        /// Length in the descriptor.
        expected: u64,
        /// Length that came.
        actual: u64,
    },
}

impl FetchError {
    pub(super) fn unreachable(url: &str, source: reqwest::Error) -> Self {
        Self::Unreachable { url: url.to_owned(), source: source.without_url() }
    }

    pub(super) fn interrupted(url: &str, source: reqwest::Error) -> Self {
        Self::Interrupted { url: url.to_owned(), source: source.without_url() }
    }

    /// True if the rest of a blob may still come.
    pub(super) fn is_break(&self) -> bool {
        matches!(self, Self::Interrupted { .. })
    }

    /// True if the same request may well succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 429 | 500 | 502 | 503 | 504),
            Self::Unreachable { source, .. } => {
                !source.is_redirect() && !source.is_builder() && !source.is_connect()
            }
            _ => false,
        }
    }
}

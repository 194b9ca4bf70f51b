//! Image names as users write them, and the one spelling under which they are stored.
//!
//! `busybox` means `docker.io/library/busybox:latest`, as in every other runtime; the grammar is that of the OCI
//! distribution specification. A name with both tag and digest means the digest.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::grammar::{GrammarError, parse};

/// Longest name accepted, in bytes: repository 255, host 255, tag 128, digest 71 and separators.
const LONGEST: usize = 720;

/// A text that does not name an image.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The grammar does not allow it.
    #[error("{name:?} is not an image name: use [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:HEX]")]
    Grammar {
        /// The name, shortened.
        name: String,
        /// What the grammar missed.
        #[source]
        source: GrammarError,
    },
    /// Longer than any valid name.
    #[error("image name {name:?}... has {length} bytes, at most {LONGEST} are allowed")]
    TooLong {
        /// Its beginning.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// The digest part is not a SHA-256.
    #[error("image name {name:?} has an unusable digest")]
    Digest {
        /// The name.
        name: String,
        /// What is wrong with the digest.
        #[source]
        source: crate::digest::InvalidDigest,
    },
}

/// A complete image name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host, with port if one was written, that the name belongs to; `docker.io` when none was written.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest, when one was written.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest, else the tag.
    #[must_use]
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The name under which a pull of this reference is listed: none for a pull by digest, which sets no tag.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match &self.digest {
            Some(_) => None,
            None => Some(format!("{}:{}", self.name(), self.target())),
        }
    }

    /// `REGISTRY/REPOSITORY@DIGEST`.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(name: &str) -> Result<Self, ReferenceError> {
        if name.len() > LONGEST {
            return Err(ReferenceError::TooLong { name: shorten(name), length: name.len() });
        }
        let parts = parse(name).map_err(|source| ReferenceError::Grammar { name: shorten(name), source })?;
        let digest = parts
            .digest
            .map(Digest::from_str)
            .transpose()
            .map_err(|source| ReferenceError::Digest { name: shorten(name), source })?;
        Ok(Self {
            registry: parts.host.to_owned(),
            repository: parts.repository,
            tag: parts.tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.digest {
            Some(digest) => f.write_str(&self.with_digest(digest)),
            None => write!(f, "{}:{}", self.name(), self.target()),
        }
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_host_library_and_tag() {
        for (written, stored) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("me/app", "docker.io/me/app:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app:2", "localhost/app:2"),
            ("127.0.0.1:5000/a/b:3", "127.0.0.1:5000/a/b:3"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ] {
            assert_eq!(written.parse::<Reference>().unwrap().to_string(), stored);
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("busybox:1@{digest}").parse().unwrap();
        assert_eq!(reference.target(), digest.as_str());
        assert_eq!(reference.tagged(), None);
        assert_eq!(reference.to_string(), format!("docker.io/library/busybox@{digest}"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(2000);
        let upper = format!("a@sha256:{}", "A".repeat(64));
        for bad in [
            "",
            " ",
            "Upper",
            "a b",
            "../x",
            "a/../b",
            "a:",
            "a@sha256:12",
            "a\nb",
            "http://h/a",
            &long,
            &upper,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}

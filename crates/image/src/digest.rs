//! Content addresses: SHA-256 digests, and the three ids that are digests of different things.
//!
//! Only `sha256:` with 64 lower-case hexadecimal digits is a digest here. Other algorithms, upper case and shorter
//! texts are refused before anything touches a path or a URL (CVE-2024-3727).

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "sha256:";

/// A text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: use sha256: and 64 lower-case hexadecimal digits")]
pub struct InvalidDigest {
    text: String,
}

/// The SHA-256 of some content, written `sha256:HEX`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(content))
    }

    /// The whole text, algorithm included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }

    fn finish(hasher: Sha256) -> Self {
        Self(format!("{ALGORITHM}{}", hex::encode(hasher.finalize())))
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let valid = text.strip_prefix(ALGORITHM).is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        match valid {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidDigest { text: text.chars().take(100).collect() }),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! digest_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// The whole text, `sha256:HEX`.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }

            /// The digest itself.
            #[must_use]
            pub fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl From<Digest> for $name {
            fn from(digest: Digest) -> Self {
                Self(digest)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                text.parse().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

digest_of!(
    /// An image: the digest of its configuration, so that the same image from two registries is one image.
    ImageId
);
digest_of!(
    /// The content of one layer: the digest of its uncompressed archive.
    DiffId
);
digest_of!(
    /// A layer together with everything below it (OCI image specification, "Layer ChainID").
    ChainId
);

impl ChainId {
    /// The chain that ends with `diff` on top of `below`; no `below` for the bottom layer.
    #[must_use]
    pub fn on(below: Option<&ChainId>, diff: &DiffId) -> Self {
        match below {
            None => Self(diff.0.clone()),
            Some(below) => Self(Digest::of(format!("{below} {diff}").as_bytes())),
        }
    }
}

/// Reads through to `R`, hashing and counting what passes.
pub(crate) struct Hashing<R> {
    reader: R,
    hasher: Sha256,
    count: Arc<AtomicU64>,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, hasher: Sha256::new(), count: Arc::default() }
    }

    /// Bytes that have passed so far, readable while the reader itself is inside another.
    pub(crate) fn meter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }

    /// Reads to the end; the digest of everything.
    pub(crate) fn drain(&mut self) -> io::Result<Digest> {
        io::copy(self, &mut io::sink())?;
        Ok(self.digest())
    }

    /// The digest of what has passed so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::finish(self.hasher.clone())
    }

    /// Bytes that have passed so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The reader below.
    pub(crate) fn into_inner(self) -> R {
        self.reader
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_sha256_of_full_length_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(good.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(good.as_str().parse::<Digest>(), Ok(good.clone()));
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            good.hex(),
            &format!("md5:{}", &good.hex()[..32]),
            &good.as_str()[..70],
            &good.as_str().to_uppercase(),
            &format!("SHA256:{}", good.hex()),
            &format!("{good}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_depends_on_order() {
        let (a, b) = (DiffId(Digest::of(b"a")), DiffId(Digest::of(b"b")));
        let bottom = ChainId::on(None, &a);
        assert_eq!(bottom.as_str(), a.as_str());
        let top = ChainId::on(Some(&bottom), &b);
        assert_eq!(*top.digest(), Digest::of(format!("{a} {b}").as_bytes()));
        assert_ne!(top, ChainId::on(Some(&ChainId::on(None, &b)), &a));
    }

    #[test]
    fn hashing_covers_what_was_not_read() {
        let mut reader = Hashing::new(&b"some content"[..]);
        let mut first = [0; 4];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(reader.drain().unwrap(), Digest::of(b"some content"));
        assert_eq!(reader.count(), 12);
    }
}

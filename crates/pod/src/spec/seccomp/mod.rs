//! System call filters: a profile in, a BPF program out.
//!
//! libseccomp knows the calls' numbers; the program is our own, a search among ranges of numbers: a fifth of what
//! libseccomp writes for the default profile, which every start and every exec has the kernel translate and check.
//! Programs are kept by the digest of the profile, since a node knows a handful of profiles and starts thousands of
//! containers.

mod calls;
mod program;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::cri::v1::{SecurityProfile, security_profile::ProfileType};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSyscall};
use sha2::{Digest, Sha256};

use super::default_seccomp;
use super::security::Set;

/// Largest profile file, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// Most programs kept.
const CACHE_LIMIT: usize = 64;

/// Why a profile gives no program. A container is never started with less than its profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The profile's file.
    #[error("seccomp profile {path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Too large.
    #[error("seccomp profile {path} is larger than {FILE_LIMIT} bytes")]
    Size {
        /// The file.
        path: PathBuf,
    },
    /// Not a profile.
    #[error("seccomp profile {path} is not in the format of the OCI runtime specification")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A profile that asks for what is not supported.
    #[error("seccomp profile uses {0}, which is not supported")]
    Unsupported(String),
    /// Longer than the kernel takes.
    #[error("seccomp profile gives more than the 4096 instructions that the kernel takes")]
    Length,
}

/// A compiled profile.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    /// Array of `struct sock_filter`, little endian.
    pub program: Arc<[u8]>,
}

/// Compiled profiles.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    by_digest: Mutex<HashMap<[u8; 32], Filter>>,
}

impl Filters {
    /// The filter of a container, `None` for unconfined. No profile at all means unconfined, as CRI says.
    pub(crate) fn of(
        &self,
        profile: Option<&SecurityProfile>,
        privileged: bool,
        capabilities: Set,
    ) -> Result<Option<Filter>, ProfileError> {
        let Some(profile) = profile.filter(|_| !privileged) else { return Ok(None) };
        match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::Unconfined) => Ok(None),
            Ok(ProfileType::Localhost) => {
                let text = read(Path::new(&profile.localhost_ref))?;
                let path = || PathBuf::from(&profile.localhost_ref);
                self.cached(&text, || {
                    serde_json::from_slice(&text)
                        .map_err(|source| ProfileError::Format { path: path(), source })
                })
                .map(Some)
            }
            // An unknown type is refused at the door; here the safe reading is the default one.
            Ok(ProfileType::RuntimeDefault) | Err(_) => {
                let relevant = default_seccomp::relevant(capabilities);
                let key = [b"runtime default ".as_slice(), &relevant.0.to_le_bytes()].concat();
                self.cached(&key, || Ok(default_seccomp::profile(relevant))).map(Some)
            }
        }
    }

    fn cached(
        &self,
        identity: &[u8],
        profile: impl FnOnce() -> Result<LinuxSeccomp, ProfileError>,
    ) -> Result<Filter, ProfileError> {
        let digest: [u8; 32] = Sha256::digest(identity).into();
        if let Some(filter) = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Ok(filter.clone());
        }
        let filter = Filter { program: compile(&profile()?)?.into() };
        let mut cache = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_LIMIT {
            cache.clear();
        }
        cache.insert(digest, filter.clone());
        Ok(filter)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ProfileError> {
    let failed = |source| ProfileError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::InvalidInput)));
    }
    file.take(FILE_LIMIT + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(ProfileError::Size { path: path.to_owned() });
    }
    Ok(text)
}

/// The program of a profile for this machine's own ABI and the foreign ones that the profile lists.
fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, ProfileError> {
    if profile.listener_path().is_some() {
        return Err(ProfileError::Unsupported("a listener".to_owned()));
    }
    program::assemble(&calls::tables(profile)?, calls::FOREIGN).ok_or(ProfileError::Length)
}

/// One rule of a profile.
pub(super) fn rule(names: &[&str], action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(ToString::to_string).collect());
    rule.set_action(action);
    if !args.is_empty() {
        rule.set_args(Some(args));
    }
    rule
}

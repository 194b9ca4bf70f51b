//! System call filters: a profile in, a BPF program out.
//!
//! Programs are made by libseccomp with its binary tree over call numbers (63 instead of 687 instructions for the
//! default profile: 28 us instead of 307 to load) and kept by the digest of the profile, since a node knows a
//! handful of profiles and starts thousands of containers.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::cri::v1::{SecurityProfile, security_profile::ProfileType};
use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
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
    /// libseccomp refuses it.
    #[error("seccomp profile cannot be compiled")]
    Compile(#[source] SeccompError),
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
    let mut whole = filter(profile)?;
    add_rules(&mut whole, profile, true)?;
    let native = ScmpArch::native();
    let listed = profile.architectures().iter().flatten().filter_map(|a| arch(*a));
    let foreign: Vec<_> = listed.filter(|a| *a != native && *a != ScmpArch::Native).collect();
    if !foreign.is_empty() {
        // A filter of its own: calls newer than libseccomp are known by number, which it cannot translate.
        let mut other = filter(profile)?;
        for arch in foreign {
            other.add_arch(arch).map_err(ProfileError::Compile)?;
        }
        other.remove_arch(native).map_err(ProfileError::Compile)?;
        add_rules(&mut other, profile, false)?;
        whole.merge(other).map_err(ProfileError::Compile)?;
    }
    whole.export_bpf_mem_or_file()
}

fn filter(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, ProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(ProfileError::Compile)?;
    // 2: binary tree. Not known before libseccomp 2.5: then the program is longer, not different.
    let _ = filter.set_ctl_optimize(2);
    filter.set_act_badarch(ScmpAction::Errno(libc_errno::EPERM)).map_err(ProfileError::Compile)?;
    Ok(filter)
}

fn add_rules(
    filter: &mut ScmpFilterContext,
    profile: &LinuxSeccomp,
    native: bool,
) -> Result<(), ProfileError> {
    for rule in profile.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret())?;
        if filter.get_act_default().is_ok_and(|default| default == verdict) {
            continue;
        }
        let conditions: Vec<_> = rule.args().iter().flatten().map(compare).collect::<Result<_, _>>()?;
        for name in rule.names() {
            let number = match ScmpSyscall::from_name(name) {
                Ok(call) => call,
                Err(_) => match default_seccomp::newer(name).filter(|_| native) {
                    Some(number) => ScmpSyscall::from(number),
                    None => continue,
                },
            };
            filter.add_rule_conditional(verdict, number, &conditions).map_err(ProfileError::Compile)?;
        }
    }
    Ok(())
}

/// Exporting to memory needs libseccomp 2.6; an unlinked file does with any.
trait Export {
    fn export_bpf_mem_or_file(&self) -> Result<Vec<u8>, ProfileError>;
}

impl Export for ScmpFilterContext {
    fn export_bpf_mem_or_file(&self) -> Result<Vec<u8>, ProfileError> {
        let path = || PathBuf::from("(memory)");
        let failed = |source| ProfileError::Read { path: path(), source };
        let fd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| failed(e.into()))?;
        self.export_bpf(&fd).map_err(ProfileError::Compile)?;
        let mut file = File::from(fd);
        let mut program = Vec::new();
        std::io::Seek::rewind(&mut file).and_then(|()| file.read_to_end(&mut program)).map_err(failed)?;
        Ok(program)
    }
}

/// The one errno that the filters themselves answer with.
mod libc_errno {
    pub(super) const EPERM: i32 = 1;
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, ProfileError> {
    let errno = i32::try_from(errno.unwrap_or(1)).unwrap_or(libc_errno::EPERM);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).unwrap_or(1)),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(ProfileError::Unsupported("SCMP_ACT_NOTIFY".to_owned()));
        }
    })
}

fn compare(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare, ProfileError> {
    let op = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
    };
    let datum = match arg.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
        _ => arg.value(),
    };
    let index = u32::try_from(arg.index()).ok().filter(|i| *i < 6);
    let index = index.ok_or_else(|| ProfileError::Unsupported(format!("argument {}", arg.index())))?;
    Ok(ScmpArgCompare::new(index, op, datum))
}

fn arch(arch: Arch) -> Option<ScmpArch> {
    Some(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        _ => return None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(kind: ProfileType, path: &str) -> SecurityProfile {
        SecurityProfile { profile_type: kind as i32, localhost_ref: path.to_owned() }
    }

    #[test]
    fn the_default_profile_compiles_to_a_short_program_once() {
        let filters = Filters::default();
        let default = profile(ProfileType::RuntimeDefault, "");
        let filter = filters.of(Some(&default), false, Set::default()).unwrap().unwrap();
        let instructions = filter.program.len() / 8;
        assert_eq!(filter.program.len() % 8, 0);
        assert!((50..4096).contains(&instructions), "{instructions}");
        let again = filters.of(Some(&default), false, Set(1)).unwrap().unwrap();
        assert!(Arc::ptr_eq(&filter.program, &again.program), "CAP_CHOWN changes nothing in it");
        let admin = filters.of(Some(&default), false, Set(1 << 21)).unwrap().unwrap();
        assert_ne!(filter.program, admin.program);
    }

    #[test]
    fn no_profile_unconfined_and_privileged_have_no_filter() {
        let filters = Filters::default();
        let default = profile(ProfileType::RuntimeDefault, "");
        let unconfined = profile(ProfileType::Unconfined, "");
        assert!(filters.of(None, false, Set::default()).unwrap().is_none());
        assert!(filters.of(Some(&unconfined), false, Set::default()).unwrap().is_none());
        assert!(filters.of(Some(&default), true, Set::default()).unwrap().is_none());
    }

    #[test]
    fn profiles_from_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let path_text = path.to_str().unwrap();
        let filters = Filters::default();
        let localhost = profile(ProfileType::Localhost, path_text);
        let of = || filters.of(Some(&localhost), false, Set::default());
        assert!(matches!(of(), Err(ProfileError::Read { .. })));
        std::fs::write(&path, "{").unwrap();
        assert!(matches!(of(), Err(ProfileError::Format { .. })));
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
            "syscalls":[{"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":5,
            "args":[{"index":1,"value":7,"valueTwo":0,"op":"SCMP_CMP_EQ"}]}]}"#;
        std::fs::write(&path, text).unwrap();
        assert!(!of().unwrap().unwrap().program.is_empty());
        std::fs::write(&path, text.replace("ERRNO\"", "NOTIFY\"")).unwrap();
        assert!(matches!(of(), Err(ProfileError::Unsupported(_))));
    }
}

//! Who a process is: ids, groups, capability sets, no-new-privileges. All calls concern the calling thread alone,
//! without glibc's broadcast to other threads: the callers are single-threaded.

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{Errno, Result, check};

pub use rustix::fs::{Gid, Uid};

/// The five sets; bit N is capability number N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Upper bound for what execve can give.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept over execve of a file that lists them.
    pub inheritable: u64,
    /// Kept over execve of an ordinary file.
    pub ambient: u64,
}

/// Takes every capability out of the bounding set that is not in `keep`. Needs CAP_SETPCAP.
///
/// # References
/// `PR_CAPBSET_DROP` in prctl(2).
pub fn limit_bounding(keep: u64) -> Result<()> {
    for capability in (0..64).filter(|n| keep & (1 << n) == 0) {
        // SAFETY: plain numbers.
        match check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Err(Errno::INVAL) => break, // past the last one this kernel knows
            other => drop(other?),
        }
    }
    Ok(())
}

/// Sets group, supplementary groups and user, real, effective and saved alike. Permitted capabilities survive the
/// change of user (until execve), so that the sets can be put in place afterwards.
pub fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    let groups: Vec<_> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)
}

/// Becomes root of the user namespace one is in, without supplementary groups: for helpers that joined one.
pub fn become_root() -> Result<()> {
    set_ids(0, 0, &[])
}

/// Puts effective, permitted, inheritable and ambient in place. The bounding set is [`limit_bounding`]'s.
///
/// # References
/// capset(2), `PR_CAP_AMBIENT` in prctl(2).
pub fn set_capabilities(wanted: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    for capability in (0..64).filter(|n| wanted.ambient & (1 << n) != 0) {
        let raise = libc::PR_CAP_AMBIENT_RAISE;
        // SAFETY: plain numbers.
        check(unsafe { libc::syscall(libc::SYS_prctl, libc::PR_CAP_AMBIENT, raise, capability, 0, 0) })?;
    }
    Ok(())
}

/// The effective set of the calling thread.
pub fn effective() -> Result<u64> {
    Ok(rustix::thread::capabilities(None)?.effective.bits())
}

/// From now on execve grants nothing (`PR_SET_NO_NEW_PRIVS`). Cannot be undone.
pub fn forbid_new_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true)
}

/// Changes the effective set alone, within the permitted one.
pub fn set_effective(effective: u64) -> Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = CapabilitySet::from_bits_retain(effective) & sets.permitted;
    rustix::thread::set_capabilities(None, sets)
}

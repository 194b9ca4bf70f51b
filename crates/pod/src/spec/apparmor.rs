//! Which AppArmor profile a container runs under, and the default one.
//!
//! Localhost names a profile that an administrator has loaded. RuntimeDefault is a profile of ours, put into the kernel
//! by `apparmor_parser` when the first container wants it; where AppArmor or the parser is missing it is nothing, as
//! it is with the peers. The old field `apparmor_profile` counts where the new one is not set.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use api::cri::v1::LinuxContainerSecurityContext;
use api::cri::v1::security_profile::ProfileType;

use super::SpecError;

const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// One line for each profile: `name (mode)`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";
const DEFAULT: &str = "meridian-default";

/// What an escape would be made of: the kernel's memory and handlers, and mounts. All else is left to capabilities,
/// seccomp and masked paths.
const POLICY: &str = "
profile meridian-default flags=(attach_disconnected, mediate_deleted) {
  capability, file, network, umount, unix,
  signal (receive),
  signal (send) peer=meridian-default,
  ptrace (trace, read, tracedby, readby) peer=meridian-default,
  deny mount,
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/sys/kernel/{core_pattern,hotplug,modprobe,poweroff_cmd} wklx,
  deny /proc/sys/fs/binfmt_misc/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/{debug,security,tracing}/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
";

/// The profile to run under; `None`: as the daemon itself.
///
/// # Errors
/// A profile is asked for by name where AppArmor is off, or which is not loaded.
pub(crate) fn profile(context: &LinuxContainerSecurityContext) -> Result<Option<String>, SpecError> {
    if context.privileged {
        return Ok(None);
    }
    match wanted(context) {
        Wanted::Unconfined => Ok(None),
        Wanted::Default if !is_enabled() => Ok(None),
        Wanted::Default => Ok(default_profile()),
        Wanted::Local(name) if !is_enabled() => Err(SpecError::NoAppArmor { profile: name.to_owned() }),
        Wanted::Local(name) if is_loaded(name) == Some(false) => {
            Err(SpecError::AppArmorProfile { profile: name.to_owned() })
        }
        Wanted::Local(name) => Ok(Some(name.to_owned())),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Default,
    Unconfined,
    Local(&'a str),
}

fn wanted(context: &LinuxContainerSecurityContext) -> Wanted<'_> {
    if let Some(profile) = &context.apparmor {
        return match profile.profile_type() {
            ProfileType::RuntimeDefault => Wanted::Default,
            ProfileType::Unconfined => Wanted::Unconfined,
            ProfileType::Localhost => Wanted::Local(bare(&profile.localhost_ref)),
        };
    }
    #[allow(deprecated, reason = "older kubelets set nothing else")]
    match context.apparmor_profile.as_str() {
        "" | "runtime/default" => Wanted::Default,
        "unconfined" => Wanted::Unconfined,
        name => Wanted::Local(bare(name)),
    }
}

fn bare(name: &str) -> &str {
    name.strip_prefix("localhost/").unwrap_or(name)
}

fn is_enabled() -> bool {
    fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y")
}

/// `None` where the kernel does not tell: securityfs need not be mounted, and then it decides at start.
fn is_loaded(name: &str) -> Option<bool> {
    let listed = fs::read_to_string(LOADED).ok()?;
    Some(listed.lines().filter_map(|line| line.rsplit_once(" (")).any(|(profile, _)| profile == name))
}

/// Loaded once in a daemon's life; kept by the kernel.
fn default_profile() -> Option<String> {
    static USABLE: OnceLock<bool> = OnceLock::new();
    let usable = USABLE.get_or_init(|| match load() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "containers run without a default AppArmor profile: install apparmor_parser");
            false
        }
    });
    usable.then(|| DEFAULT.to_owned())
}

fn load() -> std::io::Result<()> {
    let mut parser = Command::new("apparmor_parser")
        .args(["--replace", "--skip-cache", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = parser.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(POLICY.as_bytes()));
    let output = parser.wait_with_output()?;
    if output.status.success() {
        return written;
    }
    Err(std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use api::cri::v1::SecurityProfile;

    use super::*;

    fn context(apparmor: Option<(ProfileType, &str)>, old: &str) -> LinuxContainerSecurityContext {
        #[allow(deprecated, reason = "the old field is what is tested")]
        LinuxContainerSecurityContext {
            apparmor: apparmor.map(|(kind, name)| SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: name.to_owned(),
            }),
            apparmor_profile: old.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn the_new_field_wins_over_the_old() {
        for (apparmor, old, want) in [
            (None, "", Wanted::Default),
            (None, "runtime/default", Wanted::Default),
            (None, "unconfined", Wanted::Unconfined),
            (None, "localhost/web", Wanted::Local("web")),
            (Some((ProfileType::RuntimeDefault, "")), "unconfined", Wanted::Default),
            (Some((ProfileType::Unconfined, "")), "localhost/web", Wanted::Unconfined),
            (Some((ProfileType::Localhost, "db")), "localhost/web", Wanted::Local("db")),
        ] {
            assert_eq!(wanted(&context(apparmor, old)), want, "{apparmor:?} {old:?}");
        }
    }

    #[test]
    fn a_privileged_container_is_not_confined() {
        let mut context = context(Some((ProfileType::Localhost, "absent")), "");
        context.privileged = true;
        assert_eq!(profile(&context).unwrap(), None);
    }
}

//! SELinux: the label that a container's processes run under, on nodes where it is enabled. Files and volumes keep the
//! labels they have, and no categories are made up: a container that asks for no label runs as its shim does.

use std::path::Path;

use api::cri::v1::SeLinuxOption;

/// There when SELinux is enabled (selinuxfs is mounted); its content says whether it also enforces.
const ENFORCE: &str = "/sys/fs/selinux/enforce";

/// The label asked for; `None` where SELinux is off, as other runtimes have it, or where nothing is asked for.
pub(super) fn label(asked: Option<&SeLinuxOption>) -> Option<String> {
    let asked = asked.filter(|option| **option != SeLinuxOption::default())?;
    Path::new(ENFORCE).exists().then(|| complete(asked))
}

/// What is not said is what the reference policy has for containers.
fn complete(asked: &SeLinuxOption) -> String {
    let parts = [
        (asked.user.as_str(), "system_u"),
        (asked.role.as_str(), "system_r"),
        (asked.r#type.as_str(), "container_t"),
        (asked.level.as_str(), "s0"),
    ];
    parts.map(|(given, usual)| if given.is_empty() { usual } else { given }).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_completed() {
        let asked = SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() };
        assert_eq!(complete(&asked), "system_u:system_r:container_t:s0:c1,c2");
        let asked = SeLinuxOption { r#type: "spc_t".into(), user: "u".into(), ..Default::default() };
        assert_eq!(complete(&asked), "u:system_r:spc_t:s0");
    }

    #[test]
    fn nothing_asked_is_no_label() {
        assert_eq!(label(None), None);
        assert_eq!(label(Some(&SeLinuxOption::default())), None);
    }
}

//! The files that a pod's containers find in /etc and the memory they share in /dev/shm.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use api::cri::v1::{DnsConfig, PodSandboxConfig};
use sys::Errno;
use sys::mount::{self, Attributes, Filesystem, Flags, Propagation};

use crate::error::RunError;
use crate::node::make_dir;

/// Size of a pod's /dev/shm in bytes, as Docker and its users expect.
const SHM_SIZE: &str = "67108864";

/// Makes the directory of a pod with its files, and mounts its /dev/shm. `owner` is the host id of the pod's root.
pub(crate) fn make(
    dir: &Path,
    config: &PodSandboxConfig,
    ips: &[IpAddr],
    own_shm: bool,
    owner: u32,
) -> Result<(), RunError> {
    let write = |name, text| write(dir, owner, name, text);
    if !config.hostname.is_empty() {
        write("hostname", format!("{}\n", line(&config.hostname)))?;
    }
    write_hosts(dir, config, ips, owner)?;
    write("resolv.conf", resolv_conf(config.dns_config.as_ref()))?;
    if own_shm {
        let path = dir.join("shm");
        mount_shm(&path, owner).map_err(|source| RunError::File { what: "/dev/shm at", path, source })?;
    }
    Ok(())
}

/// Writes the hosts file of a pod with these addresses.
pub(crate) fn write_hosts(
    dir: &Path,
    config: &PodSandboxConfig,
    ips: &[IpAddr],
    owner: u32,
) -> Result<(), RunError> {
    write(dir, owner, "hosts", hosts(&config.hostname, ips))
}

fn write(dir: &Path, owner: u32, name: &str, text: String) -> Result<(), RunError> {
    let path = dir.join(name);
    let written = fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
        .and_then(|()| if owner == 0 { Ok(()) } else { chown(&path, Some(owner), Some(owner)) });
    written.map_err(|e| RunError::File { what: "file", path, source: sys::errno_of(&e) })
}

/// Removes the directory and what is mounted in it; returns what stayed, and why.
pub(crate) fn remove(dir: &Path) -> Vec<String> {
    let shm = dir.join("shm");
    let mut left = Vec::new();
    match mount::detach(&shm) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(error) => left.push(format!("mount {}: {error}", shm.display())),
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            left.push(format!("directory {}: {error}", dir.display()));
        }
        _ => {}
    }
    left
}

fn mount_shm(path: &Path, owner: u32) -> Result<(), Errno> {
    make_dir(path, 0o755).map_err(|e| sys::errno_of(&e))?;
    let shm = Filesystem::open("tmpfs")?;
    shm.set("source", "shm")?.set("mode", "1777")?.set("size", SHM_SIZE)?;
    if owner != 0 {
        shm.set("uid", owner.to_string())?.set("gid", owner.to_string())?;
    }
    let shm = shm.mount(Flags::MOUNT_ATTR_NOSUID | Flags::MOUNT_ATTR_NODEV | Flags::MOUNT_ATTR_NOEXEC)?;
    mount::attach_at(&shm, path)?;
    let private = Attributes { propagation: Some(Propagation::Private), ..Attributes::default() };
    mount::set_attributes(&shm, false, &private)
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    if ips.is_empty() {
        // On the node's network the node's names hold.
        return fs::read_to_string("/etc/hosts").unwrap_or_default();
    }
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in ips.iter().filter(|_| !hostname.is_empty()) {
        let _ = writeln!(text, "{ip}\t{}", line(hostname));
    }
    text
}

fn resolv_conf(dns: Option<&DnsConfig>) -> String {
    let Some(dns) = dns.filter(|d| !(d.servers.is_empty() && d.searches.is_empty() && d.options.is_empty()))
    else {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", line(&dns.searches.join(" ")));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {}", line(server));
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", line(&dns.options.join(" ")));
    }
    text
}

/// One line whatever the request holds: a second one would be a second entry (CVE-2022-4318's kind).
fn line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_have_the_lines_they_should_and_no_more() {
        let ips = ["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(hosts("a\nb", &ips).lines().count(), 4);
        assert!(hosts("web", &ips).contains("\n10.88.0.2\tweb\n"));
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into(), "evil\nnameserver 6.6.6.6".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        let text = resolv_conf(Some(&dns));
        assert_eq!(text.lines().count(), 4);
        assert!(text.starts_with("search a.local b.local\n") && text.ends_with("options ndots:5\n"));
    }
}

//! What the operator gave: configuration, programs, certificates.

use std::path::Path;

use api::meridian::v1::Check;
use rustix::fs::{Access, access};

use super::{Subject, certificates, fail, ok, warn};
use crate::chain;
use crate::config::{Config, DEFAULT_FILE};

/// Where distributions keep the authorities that registries' certificates are checked with.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Everything here.
pub fn checks(subject: &Subject) -> Vec<Check> {
    let mut checks = vec![configuration(subject), shim(&subject.shim), authorities()];
    if let Some(peer) = &subject.config.peer {
        checks.extend(certificates::checks(&[&peer.certificate, &peer.ca]));
        checks.push(certificates::fit(peer));
    }
    checks.extend(subject.config.streaming.certificate.iter().flat_map(|file| certificates::checks(&[file])));
    checks
}

/// The file as the next start would read it.
fn configuration(subject: &Subject) -> Check {
    let file = subject.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE)).display().to_string();
    match Config::load(subject.file.as_deref()) {
        Err(error) => fail(
            "configuration",
            file,
            chain(&error),
            "mend it (meridiand config check FILE): the daemon could not start again",
        ),
        Ok(new) => match subject.config.fixed_changes(&new) {
            same if same.is_empty() => ok("configuration", file, "valid and in force"),
            keys => warn(
                "configuration",
                file,
                format!("changed since the start: {}", keys.join(", ")),
                "restart meridiand; pods run on",
            ),
        },
    }
}

fn shim(path: &Path) -> Check {
    let object = path.display().to_string();
    match access(path, Access::EXEC_OK) {
        Ok(()) => ok("shim", object, "can be run"),
        Err(error) => {
            fail("shim", object, error.to_string(), "install meridian-shim beside meridiand, or set shim")
        }
    }
}

fn authorities() -> Check {
    match AUTHORITIES.iter().find(|file| Path::new(file).exists()) {
        Some(file) => ok("authorities", *file, "there"),
        None => warn(
            "authorities",
            "node",
            "no file of certificate authorities",
            "install ca-certificates: registries over TLS are not trusted",
        ),
    }
}

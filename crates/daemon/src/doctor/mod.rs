//! `meridian doctor`: everything on this node that pods depend on, looked at when it is asked for.
//!
//! One line per check: what was looked at, what was found, and what to do about it. A check changes nothing, and none
//! takes longer than a few seconds, whatever state the node is in. What only a new process can try (namespaces,
//! seccomp, mounts) is from the start-up probe.

mod certificates;
mod connection;
mod machine;
mod remains;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;

use api::meridian::v1::{Check, Feature, Verdict};
use network::Network;
use pod::{CniStatus, Pods};

use crate::config::Config;

/// What is looked at.
#[derive(Debug)]
pub struct Subject {
    pub pods: Pods,
    pub network: Network,
    pub root: PathBuf,
    pub run: PathBuf,
    /// The file that was named on the command line.
    pub file: Option<PathBuf>,
    /// As it was at the start.
    pub config: Config,
    /// The shim's program.
    pub shim: PathBuf,
    /// Of the start-up probe.
    pub features: Vec<Feature>,
}

/// Looks at everything.
pub async fn examine(subject: Arc<Subject>) -> Vec<Check> {
    let (mirrors, pods) = (subject.config.image.mirror.clone(), subject.pods.clone());
    let cni = subject.pods.cni_status().await;
    let local = tokio::task::spawn_blocking(move || local(&subject, cni));
    let (local, mirrors, remains) =
        tokio::join!(local, connection::mirrors(&mirrors), remains::remains(&pods));
    let mut checks = local.unwrap_or_else(|panic| {
        vec![fail("doctor", "meridiand", panic.to_string(), "report this as a bug, with the daemon's log")]
    });
    checks.extend(mirrors);
    checks.extend(remains);
    checks
}

fn local(subject: &Subject, cni: Option<CniStatus>) -> Vec<Check> {
    let mut checks: Vec<_> = subject.features.iter().map(feature).collect();
    checks.extend(machine::checks(&subject.root, &subject.run));
    checks.extend(settings::checks(subject));
    checks.extend(connection::checks(subject, cni));
    checks
}

/// A line of the start-up probe.
fn feature(feature: &Feature) -> Check {
    let (found, cure) = match feature.detail.rsplit_once("; ") {
        Some((found, cure)) if !feature.available => (found, cure),
        _ => (feature.detail.as_str(), ""),
    };
    match (feature.available, feature.required) {
        (true, _) => ok(&feature.name, "node", found),
        (false, true) => fail(&feature.name, "node", found, cure),
        (false, false) => warn(&feature.name, "node", found, cure),
    }
}

fn ok(name: &str, object: impl Into<String>, found: impl Into<String>) -> Check {
    check(Verdict::Ok, name, object, found, "")
}

fn warn(name: &str, object: impl Into<String>, found: impl Into<String>, cure: &str) -> Check {
    check(Verdict::Warn, name, object, found, cure)
}

fn fail(name: &str, object: impl Into<String>, found: impl Into<String>, cure: &str) -> Check {
    check(Verdict::Fail, name, object, found, cure)
}

fn check(
    verdict: Verdict,
    name: &str,
    object: impl Into<String>,
    found: impl Into<String>,
    cure: &str,
) -> Check {
    let (name, object, found, cure) = (name.to_owned(), object.into(), found.into(), cure.to_owned());
    Check { name, verdict: verdict.into(), object, found, cure }
}

/// Of a share that is left, the verdict: little is a warning, next to nothing a failure.
fn scarce(left: u64, all: u64, little: u64, nothing: u64) -> Verdict {
    let percent = left.saturating_mul(100) / all.max(1);
    match percent {
        p if p < nothing => Verdict::Fail,
        p if p < little => Verdict::Warn,
        _ => Verdict::Ok,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_feature_has_its_cure_apart() {
        let missing = |required| Feature {
            name: "criu".into(),
            available: false,
            required,
            detail: "run criu: not found; install CRIU 4.1.1; or later".into(),
        };
        let check = feature(&missing(false));
        assert_eq!((check.verdict(), check.cure.as_str()), (Verdict::Warn, "or later"));
        assert_eq!(feature(&missing(true)).verdict(), Verdict::Fail);
    }

    #[test]
    fn what_is_left_is_judged_by_its_share() {
        let verdict = |left| scarce(left, 1000, 10, 2);
        assert_eq!([verdict(500), verdict(99), verdict(19)], [Verdict::Ok, Verdict::Warn, Verdict::Fail]);
        assert_eq!(scarce(0, 0, 10, 2), Verdict::Fail);
    }
}

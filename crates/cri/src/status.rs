//! `Status`: health and abilities of the runtime.

use std::collections::HashMap;

use api::cri::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusRequest,
    StatusResponse,
};

use pod::CniStatus;

/// The one handler; the empty name means it, too.
pub(crate) const HANDLER: &str = "meridian";

/// What the daemon's start-up probe found, as `Status` tells it.
#[derive(Debug, Clone, Default)]
pub struct Abilities {
    /// Why pods cannot run, if they cannot.
    pub runtime_problem: Option<Problem>,
    /// Why pods get no network, if they get none.
    pub network_problem: Option<Problem>,
    /// Mounts can be made read-only with everything below them (`mount_setattr`, Linux 5.12).
    pub recursive_read_only_mounts: bool,
    /// Pods can have user namespaces, idmapped mounts included.
    pub user_namespaces: bool,
    /// For people who ask for more: JSON objects by key, among them `config`.
    pub info: HashMap<String, String>,
}

impl Abilities {
    /// The same, with what CNI plugins say now, where the node uses them. Keys as scripts know them from other runtimes.
    pub(crate) fn with_network(&self, network: Option<CniStatus>) -> Self {
        let mut abilities = self.clone();
        if let Some(CniStatus { problem, list }) = network {
            let last = problem.clone().unwrap_or_else(|| "OK".to_owned());
            abilities.info.insert("lastCNILoadStatus".to_owned(), last);
            abilities.info.insert("cniconfig".to_owned(), list.unwrap_or_default().to_string());
            let reason = "NetworkPluginNotReady".to_owned();
            abilities.network_problem = problem.map(|message| Problem { reason, message });
        }
        abilities
    }
}

/// Why a condition does not hold.
#[derive(Debug, Clone)]
pub struct Problem {
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Conditions, handlers and features; the info map when asked for it.
pub(crate) fn status(abilities: &Abilities, request: &StatusRequest) -> StatusResponse {
    let conditions = vec![
        condition("RuntimeReady", abilities.runtime_problem.as_ref()),
        condition("NetworkReady", abilities.network_problem.as_ref()),
    ];
    let features = RuntimeHandlerFeatures {
        recursive_read_only_mounts: abilities.recursive_read_only_mounts,
        user_namespaces: abilities.user_namespaces,
    };
    let handler = |name: &str| RuntimeHandler { name: name.to_owned(), features: Some(features) };
    StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose { abilities.info.clone() } else { HashMap::new() },
        runtime_handlers: vec![handler(""), handler(HANDLER)],
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: abilities.user_namespaces,
            mount_options: true,
        }),
    }
}

fn condition(kind: &str, problem: Option<&Problem>) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: problem.is_none(),
        reason: problem.map(|p| p.reason.clone()).unwrap_or_default(),
        message: problem.map(|p| p.message.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_in_its_condition_alone() {
        let problem = Problem { reason: "NoBridge".into(), message: "the bridge cannot be made".into() };
        let abilities = Abilities {
            network_problem: Some(problem),
            info: HashMap::from([("config".into(), "{}".into())]),
            ..Default::default()
        };
        let brief = status(&abilities, &StatusRequest { verbose: false });
        let conditions = brief.status.expect("a status").conditions;
        let summary: Vec<_> =
            conditions.iter().map(|c| (c.r#type.as_str(), c.status, c.reason.as_str())).collect();
        assert_eq!(summary, [("RuntimeReady", true, ""), ("NetworkReady", false, "NoBridge")]);
        assert!(brief.info.is_empty());
        assert_eq!(status(&abilities, &StatusRequest { verbose: true }).info.len(), 1);
    }
}

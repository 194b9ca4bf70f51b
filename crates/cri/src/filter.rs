//! Conditions of a list request: every one that is set must hold.

use std::collections::HashMap;

use api::cri::v1::{
    ContainerFilter, ContainerState, ContainerStatsFilter, PodSandboxFilter, PodSandboxState,
    PodSandboxStatsFilter,
};

use crate::check::{Field, Invalid, id, one_of};

/// A checked filter for pods or containers. `S` is the state that it compares.
#[derive(Debug)]
pub(crate) struct Filter<S> {
    id: String,
    pod: String,
    state: Option<S>,
    labels: HashMap<String, String>,
}

impl<S> Default for Filter<S> {
    fn default() -> Self {
        Self { id: String::new(), pod: String::new(), state: None, labels: HashMap::new() }
    }
}

impl Filter<PodSandboxState> {
    /// `ListPodSandboxRequest.filter`.
    pub(crate) fn sandboxes(given: Option<PodSandboxFilter>) -> Result<Self, Invalid> {
        let Some(given) = given else { return Ok(Self::default()) };
        let state = state(given.state.map(|s| s.state), "SANDBOX_READY or SANDBOX_NOTREADY (0 or 1)")?;
        Self { id: given.id, state, labels: given.label_selector, ..Self::default() }.checked()
    }

    /// `ListPodSandboxStatsRequest.filter`.
    pub(crate) fn sandbox_stats(given: Option<PodSandboxStatsFilter>) -> Result<Self, Invalid> {
        let Some(given) = given else { return Ok(Self::default()) };
        Self { id: given.id, labels: given.label_selector, ..Self::default() }.checked()
    }
}

impl Filter<ContainerState> {
    /// `ListContainersRequest.filter`.
    pub(crate) fn containers(given: Option<ContainerFilter>) -> Result<Self, Invalid> {
        let Some(given) = given else { return Ok(Self::default()) };
        let state = state(given.state.map(|s| s.state), "a ContainerState (0 to 3)")?;
        Self { id: given.id, pod: given.pod_sandbox_id, state, labels: given.label_selector }.checked()
    }

    /// `ListContainerStatsRequest.filter`.
    pub(crate) fn stats(given: Option<ContainerStatsFilter>) -> Result<Self, Invalid> {
        let Some(given) = given else { return Ok(Self::default()) };
        Self { id: given.id, pod: given.pod_sandbox_id, state: None, labels: given.label_selector }.checked()
    }
}

impl<S: PartialEq + Copy> Filter<S> {
    fn checked(self) -> Result<Self, Invalid> {
        for (name, given) in [("id", &self.id), ("pod_sandbox_id", &self.pod)] {
            if !given.is_empty() {
                id::lookup(Field::of("filter").at(name), given)?;
            }
        }
        Ok(self)
    }

    /// Whether an object passes. `pod` is the pod it belongs to, or empty for a pod.
    pub(crate) fn passes(&self, id: &str, pod: &str, state: S, labels: &HashMap<String, String>) -> bool {
        id.starts_with(&self.id)
            && pod.starts_with(&self.pod)
            && self.state.is_none_or(|wanted| wanted == state)
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

fn state<S: TryFrom<i32>>(given: Option<i32>, rule: &str) -> Result<Option<S>, Invalid> {
    given.map(|value| one_of(Field::of("filter").at("state"), value, rule)).transpose()
}

#[cfg(test)]
mod tests {
    use api::cri::v1::ContainerStateValue;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn all_conditions_must_hold() {
        let running = ContainerState::ContainerRunning;
        let given = ContainerFilter {
            id: "ab".into(),
            state: Some(ContainerStateValue { state: running as i32 }),
            pod_sandbox_id: "f00d".into(),
            label_selector: labels(&[("app", "web")]),
        };
        let filter = Filter::containers(Some(given)).expect("a good filter");
        let own = labels(&[("app", "web"), ("tier", "front")]);
        assert!(filter.passes("abc", "f00d1", running, &own));
        assert!(!filter.passes("bbc", "f00d1", running, &own), "id");
        assert!(!filter.passes("abc", "beef", running, &own), "pod");
        assert!(!filter.passes("abc", "f00d1", ContainerState::ContainerExited, &own), "state");
        assert!(!filter.passes("abc", "f00d1", running, &labels(&[("app", "db")])), "label");
        assert!(!filter.passes("abc", "f00d1", running, &labels(&[])), "no label");
        assert!(Filter::containers(None).expect("no filter").passes("x", "y", running, &own));
    }

    #[test]
    fn nonsense_is_refused() {
        let state = Some(ContainerStateValue { state: 9 });
        let error = Filter::containers(Some(ContainerFilter { state, ..Default::default() }))
            .expect_err("no such state");
        assert!(error.to_string().starts_with("filter.state is 9"), "{error}");
        let path = PodSandboxFilter { id: "../x".into(), ..Default::default() };
        assert!(Filter::sandboxes(Some(path)).is_err());
    }
}

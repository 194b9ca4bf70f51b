//! What a pod wants of its network, in the words of CNI's conventions.

use serde_json::{Map, Value, json};

use crate::ports::{PortMapping, Protocol};

/// A pod that is to be connected.
#[derive(Debug, Clone, Default)]
pub struct PodRequest {
    /// Of the pod; letters, digits, '.', '_' and '-'.
    pub id: String,
    /// Namespace, name and UID that Kubernetes knows it by.
    pub namespace: String,
    /// See above.
    pub name: String,
    /// See above.
    pub uid: String,
    /// Capability portMappings.
    pub ports: Vec<PortMapping>,
    /// Capability dns: servers, searches, options.
    pub dns: Option<(Vec<String>, Vec<String>, Vec<String>)>,
    /// Capability bandwidth: into and out of the pod, in bits per second.
    pub bandwidth: (Option<u64>, Option<u64>),
    /// Capability ipRanges: what the kubelet said is the node's share of the pod network.
    pub cidrs: Vec<String>,
}

impl PodRequest {
    /// CNI_ARGS. IgnoreUnknown lets plugins that know nothing of Kubernetes take them.
    pub(super) fn args(&self) -> String {
        let pairs = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.namespace),
            ("K8S_POD_NAME", &self.name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.id),
            ("K8S_POD_UID", &self.uid),
        ];
        // A ';' in a value would begin another argument.
        let pairs = pairs.iter().filter(|(_, value)| !value.contains([';', '\0']));
        pairs.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
    }

    /// By capability, as CONVENTIONS.md of the specification words them; empty ones are absent.
    pub(super) fn capabilities(&self) -> Map<String, Value> {
        let mut all = Map::new();
        if !self.ports.is_empty() {
            all.insert("portMappings".into(), self.ports.iter().map(port).collect());
        }
        if let Some((servers, searches, options)) = &self.dns {
            all.insert("dns".into(), json!({"servers": servers, "searches": searches, "options": options}));
        }
        let mut bandwidth = Map::new();
        for (direction, rate) in [("ingress", self.bandwidth.0), ("egress", self.bandwidth.1)] {
            if let Some(rate) = rate {
                // A token bucket needs a burst; the largest that plugins take shapes the mean alone.
                bandwidth.insert(format!("{direction}Rate"), rate.into());
                bandwidth.insert(format!("{direction}Burst"), i32::MAX.into());
            }
        }
        if !bandwidth.is_empty() {
            all.insert("bandwidth".into(), bandwidth.into());
        }
        if !self.cidrs.is_empty() {
            let ranges: Vec<_> = self.cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
            all.insert("ipRanges".into(), ranges.into());
        }
        all
    }
}

fn port(mapping: &PortMapping) -> Value {
    let protocol = match mapping.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    };
    let ip = mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    json!({
        "hostPort": mapping.host_port, "containerPort": mapping.container_port, "protocol": protocol, "hostIP": ip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_add_arguments() {
        let name = "a;K8S_POD_UID=b".into();
        let request = PodRequest { id: "p1".into(), name, uid: "u".into(), ..Default::default() };
        let args = request.args();
        assert_eq!(args, "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u");
    }

    #[test]
    fn capabilities_are_worded_as_plugins_read_them() {
        let host_ip = Some([127, 0, 0, 1].into());
        let port = PortMapping { protocol: Protocol::Udp, host_ip, host_port: 53, container_port: 5353 };
        let (bandwidth, cidrs) = ((None, Some(8000)), vec!["10.1.0.0/24".into()]);
        let request = PodRequest { ports: vec![port], bandwidth, cidrs, ..Default::default() };
        assert_eq!(
            Value::from(request.capabilities()),
            json!({
                "portMappings": [{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "127.0.0.1"}],
                "bandwidth": {"egressRate": 8000, "egressBurst": 2_147_483_647},
                "ipRanges": [[{"subnet": "10.1.0.0/24"}]],
            })
        );
        assert!(PodRequest::default().capabilities().is_empty());
    }
}

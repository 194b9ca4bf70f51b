//! `PortForward`.

use api::cri::v1::{PortForwardRequest, PortForwardResponse};
use pod::Pods;
use streaming::{PortForward, Streaming};

use crate::{
    check::{Field, Invalid},
    error::Failure,
    find,
};

/// Gives the URL at which the pod's ports are to be had. No ports: the client names them when it connects.
pub(crate) fn port_forward(
    pods: &Pods,
    streaming: &Streaming,
    request: &PortForwardRequest,
) -> Result<PortForwardResponse, Failure> {
    let ports = ports(&request.port)?;
    let pod = find::sandbox(pods, &request.pod_sandbox_id)?;
    pods.network(&pod)?;
    Ok(PortForwardResponse { url: streaming.port_forward(PortForward { pod, ports })? })
}

pub(crate) fn ports(given: &[i32]) -> Result<Vec<u16>, Invalid> {
    let field = Field::of("port");
    let port = |(i, port): (usize, &i32)| {
        let valid = u16::try_from(*port).ok().filter(|port| *port != 0);
        valid.ok_or_else(|| field.index(i).wrong(port, "from 1 to 65535"))
    };
    given.iter().enumerate().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ports() {
        assert!(ports(&[]).unwrap().is_empty());
        assert_eq!(ports(&[1, 65535]).unwrap(), [1, 65535]);
        for port in [0, -1, 65536, i32::MIN] {
            assert!(ports(&[80, port]).unwrap_err().to_string().starts_with(&format!("port[1] is {port}")));
        }
    }
}

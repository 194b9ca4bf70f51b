//! `UpdateRuntimeConfig`.

use api::cri::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};
use pod::{PodCidr, Pods};

use crate::{check::Field, error::Failure};

/// More than two ranges take.
const LONGEST: usize = 100;

/// Gives new pods addresses of the node's share of the pod network; nothing is changed where none is named.
pub(crate) async fn update(
    pods: &Pods,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Failure> {
    let told = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default().pod_cidr;
    if !told.is_empty() {
        let config = Field::of("runtime_config");
        let network = config.at("network_config");
        let field = network.at("pod_cidr");
        if told.len() > LONGEST {
            return Err(field.wrong(&told, format_args!("up to {LONGEST} characters long")).into());
        }
        let invalid = |why| field.conflict(format_args!("is wrong: {why}"));
        let cidr = told.parse::<PodCidr>().map_err(invalid)?;
        pods.update_pod_cidr(cidr).await?;
    }
    Ok(UpdateRuntimeConfigResponse {})
}

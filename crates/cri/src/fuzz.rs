//! Door for the fuzzer (`fuzz/`): a request, from its bytes to the checks that need nothing but the request.

use api::cri::v1::{
    CheckpointPodRequest, CreateContainerRequest, ExecRequest, PortForwardRequest, RestorePodRequest,
    RunPodSandboxRequest, UpdateContainerResourcesRequest,
};
use prost::Message;

use crate::check::{Check, Field, checkpoint, container, resources, sandbox, text};
use crate::port_forward;

/// Longest refusal: values are quoted shortened.
const REFUSAL: usize = 1 << 10;

/// The first byte names the RPC.
pub fn request(bytes: &[u8]) {
    let Some((rpc, bytes)) = bytes.split_first() else { return };
    let Err(refusal) = check(*rpc, bytes) else { return };
    let refusal = refusal.to_string();
    assert!(refusal.len() <= REFUSAL, "a refusal has {} bytes: {refusal}", refusal.len());
    assert!(!refusal.contains('\n'), "a refusal has several lines: {refusal}");
}

fn check(rpc: u8, bytes: &[u8]) -> Check {
    match rpc {
        0 => read::<RunPodSandboxRequest>(bytes, |r| match &r.config {
            Some(config) => sandbox::config(Field::of("config"), config),
            None => Ok(()),
        }),
        1 => read::<CreateContainerRequest>(bytes, |r| {
            container::create(r)?;
            match (&r.config, &r.sandbox_config) {
                (Some(config), Some(pod)) => container::within(Field::of("config"), config, pod),
                _ => Ok(()),
            }
        }),
        2 => read::<UpdateContainerResourcesRequest>(bytes, |r| match &r.linux {
            Some(linux) => resources::linux(Field::of("linux"), linux),
            None => Ok(()),
        }),
        3 => read::<CheckpointPodRequest>(bytes, checkpoint::pod),
        4 => read::<RestorePodRequest>(bytes, checkpoint::restore),
        5 => read::<ExecRequest>(bytes, |r| text::command(Field::of("cmd"), &r.cmd)),
        _ => read::<PortForwardRequest>(bytes, |r| port_forward::ports(&r.port).map(drop)),
    }
}

/// What is no message is refused by tonic.
fn read<M: Message + Default>(bytes: &[u8], check: impl FnOnce(&M) -> Check) -> Check {
    M::decode(bytes).map_or(Ok(()), |message| check(&message))
}

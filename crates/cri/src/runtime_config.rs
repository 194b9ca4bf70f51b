//! `RuntimeConfig`: what the kubelet must adopt.

use api::cri::v1::{CgroupDriver, LinuxRuntimeConfiguration, RuntimeConfigResponse};

/// Meridian writes cgroup directories itself.
pub(crate) fn runtime_config() -> RuntimeConfigResponse {
    let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
    RuntimeConfigResponse { linux: Some(linux) }
}

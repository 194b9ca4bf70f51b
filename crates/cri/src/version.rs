//! `Version`.

use api::cri::v1::VersionResponse;

/// Names and versions; clients refuse a runtime that leaves one empty.
pub(crate) fn version() -> VersionResponse {
    VersionResponse {
        version: "0.1.0".to_owned(),
        runtime_name: "meridian".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

//! Diagnose: what `meridian doctor` shows.

use std::sync::Arc;

use api::meridian::v1::DiagnoseResponse;

use crate::doctor::{Subject, examine};

pub async fn diagnose(subject: &Arc<Subject>) -> DiagnoseResponse {
    DiagnoseResponse { checks: examine(Arc::clone(subject)).await }
}

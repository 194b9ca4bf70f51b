//! `ExecSync`.

use std::time::Duration;

use api::cri::v1::{ExecSyncRequest, ExecSyncResponse};
use pod::Pods;

use crate::{
    check::{Field, Invalid, range, text},
    error::Failure,
    find,
};

/// Runs a command to its end, or to its timeout.
pub(crate) async fn exec_sync(pods: &Pods, request: ExecSyncRequest) -> Result<ExecSyncResponse, Failure> {
    check(&request)?;
    let id = find::container(pods, &request.container_id)?;
    let timeout = (request.timeout > 0).then(|| Duration::from_secs(request.timeout.unsigned_abs()));
    let output = pods.exec_sync(&id, request.cmd, timeout).await?;
    Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.code })
}

fn check(request: &ExecSyncRequest) -> Result<(), Invalid> {
    text::command(Field::of("cmd"), &request.cmd)?;
    range(Field::of("timeout"), request.timeout, 0, i32::MAX.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(cmd: &[&str], timeout: i64) -> String {
        let cmd = cmd.iter().map(|s| (*s).to_owned()).collect();
        let request = ExecSyncRequest { container_id: "c".into(), cmd, timeout };
        check(&request).map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn a_command_is_a_program_and_strings_the_kernel_takes() {
        assert_eq!(complaint(&["true"], 0), "");
        assert!(complaint(&[], 0).starts_with("cmd is missing"));
        assert!(complaint(&[""], 0).starts_with("cmd[0] is missing"));
        assert!(complaint(&["echo", "a\0b"], 0).starts_with("cmd[1] is \"a\\0b\""));
        assert!(complaint(&["true"], -1).starts_with("timeout is -1"));
        assert!(complaint(&["true"], i64::MAX).starts_with("timeout is 9223372036854775807"));
    }
}

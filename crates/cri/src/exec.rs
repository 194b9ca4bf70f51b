//! `Exec`.

use api::cri::v1::{ExecRequest, ExecResponse};
use pod::Pods;
use streaming::{Exec, Streaming, Streams};

use crate::{
    check::{Check, Field, text},
    error::Failure,
    find,
};

/// Gives the URL at which the command runs for whoever comes.
pub(crate) fn exec(
    pods: &Pods,
    streaming: &Streaming,
    request: ExecRequest,
) -> Result<ExecResponse, Failure> {
    text::command(Field::of("cmd"), &request.cmd)?;
    let ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    let streams = Streams { stdin, stdout, stderr, tty };
    check_streams(streams)?;
    let container = find::running_container(pods, &container_id)?;
    Ok(ExecResponse { url: streaming.exec(Exec { container, command: cmd, streams })? })
}

/// At least one stream, and a terminal has one output.
pub(crate) fn check_streams(streams: Streams) -> Check {
    let Streams { stdin, stdout, stderr, tty } = streams;
    if tty && stderr {
        return Err(Field::of("stderr").conflict("cannot be set with tty: a terminal has one output, stdout"));
    }
    if !(stdin || stdout || stderr) {
        return Err(Field::of("stdout").conflict("is not set, and neither are stdin and stderr: one must be"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_errors_of_its_own_and_something_must_be_asked_for() {
        let complaint = |stdin, stdout, stderr, tty| {
            let checked = check_streams(Streams { stdin, stdout, stderr, tty });
            checked.map_or_else(|e| e.to_string(), |()| String::new())
        };
        assert_eq!(complaint(false, true, true, false), "");
        assert_eq!(complaint(true, false, false, true), "");
        assert!(complaint(true, true, true, true).starts_with("stderr cannot be set with tty"));
        assert!(complaint(false, false, false, false).starts_with("stdout is not set"));
    }
}

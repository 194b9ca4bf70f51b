//! Runs one plugin: a process of its own group, with bounds on time and output.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

/// Of standard output and standard error together, in bytes. A result takes some hundred.
const OUTPUT_LIMIT: usize = 1 << 20;
/// How often a plugin that closed its output is looked after.
const POLL: Duration = Duration::from_millis(1);

/// Why a plugin gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It cannot be started, or not be talked to.
    #[error("start it")]
    Start(#[source] io::Error),
    /// It was killed, with its children.
    #[error("it did not end within {} s and was killed", deadline.as_secs())]
    Deadline {
        /// As configured.
        deadline: Duration,
    },
    /// It was killed, with its children.
    #[error("it wrote more than {OUTPUT_LIMIT} bytes and was killed")]
    Output,
    /// It crashed, or somebody killed it.
    #[error("it was ended by signal {signal}")]
    Signal {
        /// See signal(7).
        signal: i32,
    },
}

/// What a plugin left.
#[derive(Debug)]
pub(super) struct Output {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `program` to its end. No process of its group is left on error.
pub(super) fn run(
    program: &Path,
    environment: &[(&str, OsString)],
    input: &[u8],
    deadline: Duration,
) -> Result<Output, ExecError> {
    let mut child = Command::new(program)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(memory(input).map_err(ExecError::Start)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(ExecError::Start)?;
    let ended = talk(&mut child, deadline);
    if ended.is_err() {
        // The child is not reaped yet, so its number is still its own and its group's.
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        let _ = child.wait();
    }
    let (status, stdout, stderr) = ended?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(Output { code, stdout, stderr }),
        (None, signal) => Err(ExecError::Signal { signal: signal.unwrap_or(0) }),
    }
}

/// Standard input that needs nobody to write it while the plugin reads, or does not.
fn memory(input: &[u8]) -> io::Result<Stdio> {
    let mut file = File::from(memfd_create("cni", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

fn talk(child: &mut Child, deadline: Duration) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), ExecError> {
    let end = Instant::now() + deadline;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    for pipe in stdout.iter().map(AsFd::as_fd).chain(stderr.iter().map(AsFd::as_fd)) {
        let set = fcntl_getfl(pipe).and_then(|flags| fcntl_setfl(pipe, flags | OFlags::NONBLOCK));
        set.map_err(|error| ExecError::Start(error.into()))?;
    }
    while stdout.is_some() || stderr.is_some() {
        let open = stdout.iter().map(AsFd::as_fd).chain(stderr.iter().map(AsFd::as_fd));
        let mut fds: Vec<_> = open.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let left = end.saturating_duration_since(Instant::now());
        let timeout = left.try_into().map_err(|_| ExecError::Deadline { deadline })?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(ExecError::Deadline { deadline }),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ExecError::Start(error.into())),
        }
        drain(&mut stdout, &mut out);
        drain(&mut stderr, &mut err);
        if out.len() + err.len() > OUTPUT_LIMIT {
            return Err(ExecError::Output);
        }
    }
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok((status, out, err)),
            Ok(None) if Instant::now() >= end => return Err(ExecError::Deadline { deadline }),
            Ok(None) => thread::sleep(POLL),
            Err(error) => return Err(ExecError::Start(error)),
        }
    }
}

/// Takes what is there, up to 16 KiB; forgets the pipe at its end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) {
    let Some(open) = pipe else { return };
    let mut buffer = [0; 16 * 1024];
    match open.read(&mut buffer) {
        Ok(0) => *pipe = None,
        Ok(read) => into.extend_from_slice(buffer.get(..read).unwrap_or_default()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
        Err(_) => *pipe = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: u64) -> Result<Output, ExecError> {
        let name = format!("cni-exec-{}-{:?}", std::process::id(), thread::current().id());
        let shell = std::env::temp_dir().join(name);
        std::fs::write(&shell, "#!/bin/sh\neval \"$SCRIPT\"\n").unwrap();
        std::fs::set_permissions(&shell, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let environment = [("SCRIPT", script.into())];
        let result = run(&shell, &environment, b"input", Duration::from_millis(deadline));
        std::fs::remove_file(&shell).unwrap();
        result
    }

    #[test]
    fn input_output_and_code_are_the_plugins() {
        let output = sh("cat; echo oops >&2; exit 3", 5000).unwrap();
        assert_eq!((output.code, &output.stdout[..], &output.stderr[..]), (3, &b"input"[..], &b"oops\n"[..]));
    }

    #[test]
    fn what_hangs_floods_or_dies_is_told_apart() {
        let began = Instant::now();
        assert!(matches!(sh("sleep 60 & sleep 60", 100), Err(ExecError::Deadline { .. })));
        assert!(matches!(sh("exec >&- 2>&-; sleep 60", 100), Err(ExecError::Deadline { .. })));
        assert!(matches!(sh("exec cat /dev/zero", 5000), Err(ExecError::Output)));
        assert!(matches!(sh("kill -SEGV $$", 5000), Err(ExecError::Signal { signal: 11 })));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

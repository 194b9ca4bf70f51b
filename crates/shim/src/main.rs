//! The process beside every pod: parent of its containers, keeper of their output, their exits and their clocks.
//!
//! ```text
//!  meridiand ══ SEQPACKET, shim.v1 ══► meridian-shim ──┬── container (process 1) ── its processes
//!     (comes and goes)                 one epoll loop  ├── container …              pipes, pty ──► CRI logs
//!                                                      ├── pod-init (pid mode POD)
//!                                                      └── helpers: criu dump, criu restore, diff
//! ```
//!
//! The daemon may be killed and replaced at any time: containers, logs, exit codes and namespaces are the shim's. It
//! serves one daemon connection at a time, a new one replaces the old, and what a daemon must not miss it asks for by
//! State. [`pod::Pod`] is the whole state and its loop; [`call`] lists the requests; [`task`] draws a container's life,
//! [`freezer`] that of a checkpoint's cut.
//!
//! The shim is started by the daemon with the pod's listening socket on descriptor 3 and a file on 2 for fatal errors.
//! It is static and single-threaded: it forks freely ([`sys::clone`]), and every pod shares one copy of its text.
//!
//! **When the shim dies**, the daemon sees its connection end and writes `cgroup.kill` of the pod's cgroup: a dead shim
//! ends its own pod, and no other. The containers do not carry PR_SET_PDEATHSIG: it is lost at every change of
//! credentials and races with the fork.
//!
//! What this program must not do: wait for the daemon, wait for a disk on a container's behalf, start threads, or link
//! HTTP, TLS, registry or async code.

mod call;
mod checkpoint;
mod clock_reader;
mod connection;
mod container;
mod error;
mod exec;
mod freezer;
mod helper;
mod init;
mod log;
mod obstacle;
mod pod;
mod poll;
mod reaper;
mod restore;
mod sandbox;
mod shutdown;
mod signal;
mod stdio;
mod task;
mod vfork;

use std::{error::Error, process::ExitCode};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("meridian-shim: {text}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    pod::Pod::new(init::run()?)?.run()?;
    Ok(())
}

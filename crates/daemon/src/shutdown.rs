//! Signals. Ending the daemon ends no pod.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long calls under way may take once the daemon is asked to end.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long the last answers may take to leave.
pub const LAST_WORDS: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, each asking to end; SIGHUP, which asks to read the configuration again.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    ///
    /// # Errors
    /// The handlers could not be installed.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next request to end; `hangup` is called for each SIGHUP before it.
    pub async fn end(&mut self, mut hangup: impl FnMut()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => hangup(),
            }
        }
    }
}

//! Signals. Ending the daemon ends no pod.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long calls under way may take once the daemon is asked to end.
pub const GRACE: Duration = Duration::from_secs(30);

/// How long the last answers may take to leave.
pub const LAST_WORDS: Duration = Duration::from_millis(200);

/// SIGTERM and SIGINT, each asking to end; SIGHUP, which asks for nothing yet.
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

    /// The next request to end.
    pub async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => tracing::info!("SIGHUP: the configuration is read at start only"),
            }
        }
    }
}

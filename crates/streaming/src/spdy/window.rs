//! How much a peer that knows flow control lets us send (section 2.6.8; SPDY/3.1 adds the connection's own window).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Windows begin with this many bytes.
const INITIAL: i64 = 64 << 10;
/// A window beyond this is a broken peer's.
const LIMIT: i64 = i32::MAX as i64;

/// Streams whose windows are kept apart. A client may speak of windows of streams that never were.
const STREAMS: usize = 1024;

#[derive(Debug)]
struct State {
    /// The peer has shown that it knows windows.
    binding: bool,
    initial: i64,
    connection: i64,
    /// What each stream may still send, as far as it differs from `initial`.
    streams: HashMap<u32, i64>,
}

/// The windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    state: Mutex<State>,
    widened: Notify,
}

impl Windows {
    pub(super) fn new() -> Self {
        let state = State { binding: false, initial: INITIAL, connection: INITIAL, streams: HashMap::new() };
        Self { state: Mutex::new(state), widened: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn are_binding(&self) -> bool {
        self.state().binding
    }

    /// Waits until `stream` may send something, and takes at most `want` (not 0) of it.
    pub(super) async fn take(&self, stream: u32, want: usize) -> usize {
        loop {
            let widened = self.widened.notified();
            if let Some(taken) = self.state().take(stream, want) {
                return taken;
            }
            widened.await;
        }
    }

    /// SETTINGS with another initial window: it moves the windows of all streams.
    pub(super) fn set_initial(&self, window: u32) {
        let mut state = self.state();
        state.binding = true;
        let initial = i64::from(window).min(LIMIT);
        let change = initial - state.initial;
        state.initial = initial;
        state.streams.values_mut().for_each(|window| *window += change);
        self.widened.notify_waiters();
    }

    /// WINDOW_UPDATE; stream 0 is the connection.
    pub(super) fn widen(&self, stream: u32, delta: u32) {
        let mut state = self.state();
        state.binding = true;
        let initial = state.initial;
        if stream == 0 {
            state.connection = (state.connection + i64::from(delta)).min(LIMIT);
        } else if state.streams.len() < STREAMS || state.streams.contains_key(&stream) {
            let window = state.streams.entry(stream).or_insert(initial);
            *window = (*window + i64::from(delta)).min(LIMIT);
        }
        self.widened.notify_waiters();
    }

    pub(super) fn forget(&self, stream: u32) {
        self.state().streams.remove(&stream);
    }
}

impl State {
    fn take(&mut self, stream: u32, want: usize) -> Option<usize> {
        if !self.binding {
            return Some(want);
        }
        let window = self.streams.entry(stream).or_insert(self.initial);
        let room = usize::try_from(self.connection.min(*window)).unwrap_or(0).min(want);
        if room == 0 {
            return None;
        }
        let taken = i64::try_from(room).unwrap_or(LIMIT);
        *window -= taken;
        self.connection -= taken;
        Some(room)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn windows_bind_once_the_peer_knows_them() {
        let windows = Windows::new();
        assert_eq!(windows.take(1, 1 << 20).await, 1 << 20, "the peer never spoke of windows");
        windows.set_initial(100);
        assert_eq!(windows.take(1, 60).await, 60);
        assert_eq!(windows.take(1, 60).await, 40);
        let more = windows.take(1, 60);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), more).await.is_err(),
            "the window is used up"
        );
        assert_eq!(windows.take(3, 60).await, 60, "another stream has its own");
        windows.widen(1, 5);
        assert_eq!(windows.take(1, 60).await, 5);
    }

    #[tokio::test]
    async fn a_waiting_sender_is_woken() {
        let windows = std::sync::Arc::new(Windows::new());
        windows.set_initial(0);
        let waiting = tokio::spawn({
            let windows = windows.clone();
            async move { windows.take(1, 9).await }
        });
        tokio::task::yield_now().await;
        windows.widen(1, 4);
        assert_eq!(waiting.await.expect("it ran"), 4);
        windows.widen(1, 4);
        windows.set_initial(2);
        assert_eq!(windows.take(1, 9).await, 6, "settings move windows that are in use");
        (5..1 << 20).for_each(|stream| windows.widen(stream, 1));
        assert!(windows.state().streams.len() <= STREAMS, "a client makes us remember no more");
    }
}

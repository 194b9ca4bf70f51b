//! Tells the service manager how far the daemon is: sd_notify(3), without its library.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon serves.
pub const READY: &str = "READY=1";
/// The daemon reads its configuration again; [`READY`] follows.
pub const RELOADING: &str = "RELOADING=1";
/// The daemon finishes what is under way.
pub const STOPPING: &str = "STOPPING=1";

/// Tells that a reload begins. The manager compares the instant with the one at which it asked.
pub fn notify_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    notify(&format!("{RELOADING}\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
}

/// Sends `state` to the manager that asked for it by NOTIFY_SOCKET. Nobody asking, or nobody listening, is fine.
pub fn notify(state: &str) {
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::debug!(%error, state, "the service manager could not be told");
    }
}

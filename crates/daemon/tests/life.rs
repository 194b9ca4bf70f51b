//! How the daemon starts, refuses to start, serves and ends.

#![allow(clippy::unwrap_used)] // a test that panics has failed, and says where

mod bed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

use api::meridian::v1::{ImportImageRequest, ProbeRequest};
use bed::{Daemon, Place, refusal, root, settle};
use rustix::process::Signal;
use tonic::Code;

#[tokio::test]
async fn the_probe_is_answered_over_the_socket() {
    if !root() {
        return;
    }
    let place = Place::new();
    place.configure("[criu]\ncommand = [\"/nonexistent/criu\"]\n");
    let daemon = place.daemon();
    let features = place.client().await.probe(ProbeRequest {}).await.unwrap().into_inner().features;
    assert!(features.len() > 15);
    for feature in features.iter().filter(|feature| feature.required) {
        assert!(feature.available, "{}: {}", feature.name, feature.detail);
    }
    let criu = features.iter().find(|feature| feature.name == "criu").unwrap();
    assert!(!criu.available);
    assert!(criu.detail.starts_with("run /nonexistent/criu: No such file"), "{}", criu.detail);
    assert!(criu.detail.contains("install CRIU 4.1.1 or newer"), "{}", criu.detail);
    daemon.end();
    assert!(!place.path("root/probe").exists());
    assert!(!place.socket().exists());
}

#[test]
fn sockets_and_directories_are_private() {
    if !root() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("root"), 0o700);
    assert_eq!(mode("run") & 0o066, 0, "entered by id-mapped pods, listed by root alone");
    assert_eq!(mode("run/meridian.sock"), 0o660);
    daemon.end();
}

#[test]
fn two_daemons_never_share() {
    if !root() {
        return;
    }
    let (first, second) = (Place::new(), Place::new());
    let daemon = first.daemon();
    for (what, arguments) in [
        ("root", ["--root", first.path("root").to_str().unwrap()]),
        ("run", ["--run", first.path("run").to_str().unwrap()]),
        ("socket", ["--socket", first.socket().to_str().unwrap()]),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_meridiand"));
        for (name, path) in [("--root", second.path("root")), ("--run", second.path("run"))] {
            if name != arguments[0] {
                command.arg(name).arg(path);
            }
        }
        command.env("MERIDIAN_SHIM", "/bin/true");
        command.args(arguments).arg("--config").arg(second.path("config.toml"));
        command.stderr(std::process::Stdio::piped());
        let said = refusal(command);
        assert!(
            said.contains("in use by another meridiand") || said.contains("served by another"),
            "{what}: {said}"
        );
    }
    daemon.end();
}

#[test]
fn a_killed_daemon_is_succeeded() {
    if !root() {
        return;
    }
    let place = Place::new();
    place.daemon().kill();
    assert!(place.socket().exists(), "SIGKILL leaves the socket");
    place.daemon().end();
}

#[test]
fn bad_configuration_is_refused_by_key() {
    if !root() {
        return;
    }
    let place = Place::new();
    for (text, said) in [
        ("[network]\nbrigde = \"x\"\n", "unknown field `brigde`"),
        ("[network]\nsubnet4 = \"10.0.0.0/31\"\n", "prefix must be /8 to /30"),
        ("[criu]\ncommand = []\n", "criu.command"),
        ("[peer]\nlisten = \"0.0.0.0:7070\"\n", "missing field `certificate`"),
    ] {
        place.configure(text);
        let output = place.command().output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr.contains(said) && stderr.contains("config.toml"), "{stderr}");
    }
    assert!(!place.path("root").exists(), "refused before anything was made");
}

#[tokio::test]
async fn a_message_over_16_mib_is_refused() {
    if !root() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    let piece = ImportImageRequest { data: vec![0; 17 << 20], ..ImportImageRequest::default() };
    let status = place.client().await.import_image(tokio_stream::iter([piece])).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::Unimplemented), "{status:?}");
    place.client().await.probe(ProbeRequest {}).await.unwrap();
    daemon.end();
}

#[tokio::test]
async fn idle_connections_cost_little() {
    if !root() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    place.client().await.probe(ProbeRequest {}).await.unwrap();
    let (before, threads) = daemon.cost();
    let held: Vec<_> =
        (0..500).map(|_| std::os::unix::net::UnixStream::connect(place.socket()).unwrap()).collect();
    settle().await;
    place.client().await.probe(ProbeRequest {}).await.unwrap();
    let (after, _) = daemon.cost();
    println!("idle: {before} kB, {threads} threads; with 500 silent connections: {after} kB");
    assert!(after < before + 16 * 1024, "{before} kB grew to {after} kB");
    drop(held);
    daemon.end();
}

#[test]
fn the_service_manager_hears_ready_reloading_and_stopping() {
    if !root() {
        return;
    }
    let place = Place::new();
    let manager = UnixDatagram::bind(place.path("notify")).unwrap();
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", place.path("notify"));
    let daemon = Daemon::start(command);
    let hear = || {
        let mut state = [0; 64];
        let heard = manager.recv(&mut state).unwrap();
        String::from_utf8(state[..heard].to_vec()).unwrap()
    };
    assert_eq!(hear(), "READY=1");
    daemon.signal(Signal::HUP);
    let reloading = hear();
    let instant = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("a reload begins");
    assert!(instant.parse::<u64>().is_ok(), "{reloading}");
    assert_eq!(hear(), "READY=1");
    daemon.signal(Signal::INT);
    assert_eq!(hear(), "STOPPING=1");
    assert!(daemon.ended().0.success());
}

#[test]
fn a_hangup_changes_nothing() {
    if !root() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon();
    daemon.signal(Signal::HUP);
    std::thread::sleep(std::time::Duration::from_millis(100));
    daemon.signal(Signal::TERM);
    let (status, said) = daemon.ended();
    assert!(status.success() && said.contains("SIGHUP"), "{said}");
}

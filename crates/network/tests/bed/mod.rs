//! Network namespaces for the tests: each test is a node of its own, so that tests meet neither each other nor the
//! machine.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use network::{Network, NetworkConfig};
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `test` as a node: in a thread with a new network namespace. Says why when it cannot.
pub fn node(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return;
    }
    let node = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    if let Err(panic) = node.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A new network namespace, alive as long as the fd.
pub fn namespace() -> OwnedFd {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

/// Runs `work` in a thread inside `netns`.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        worker.join().unwrap()
    })
}

pub fn config(subnet4: &str) -> NetworkConfig {
    NetworkConfig { subnet4: subnet4.parse().unwrap(), ..NetworkConfig::default() }
}

pub fn start(config: &NetworkConfig) -> Network {
    Network::start(config).unwrap()
}

/// Names of the links of this thread's namespace.
pub fn links() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

pub fn veths() -> usize {
    links().iter().filter(|link| link.starts_with("veth")).count()
}

/// Waits for the kernel to destroy what nobody holds any more.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within 10 s");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whom a listener at `to` in the namespace `listener` sees when a client in the namespace `client` connects; both
/// directions carry a byte. None: the calling thread's namespace.
pub fn peer_seen(listener: Option<BorrowedFd<'_>>, to: IpAddr, client: Option<BorrowedFd<'_>>) -> IpAddr {
    let listen = || TcpListener::bind(SocketAddr::new(to, 0)).unwrap();
    let socket = listener.map_or_else(listen, |netns| inside(netns, listen));
    let port = socket.local_addr().unwrap().port();
    let connect = || {
        TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_secs(5))
            .unwrap_or_else(|error| panic!("connect to {to}: {error}"))
    };
    let mut client = client.map_or_else(connect, |netns| inside(netns, connect));
    let (mut server, peer) = socket.accept().unwrap();
    let mut byte = [0];
    client.write_all(b"?").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");
    peer.ip()
}

/// A namespace attached to `network`.
pub fn pod(network: &Network) -> (network::Lease, OwnedFd) {
    let netns = namespace();
    let lease = network.allocate().unwrap();
    network.attach(&lease, netns.as_fd()).unwrap();
    (lease, netns)
}

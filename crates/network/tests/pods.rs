//! Pods on a bridge, seen from outside: who reaches whom, and what is left.

#![allow(clippy::unwrap_used)] // a test that panics has failed, and says where

mod bed;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use bed::{config, eventually, inside, links, node, peer_seen, pod, start, veths};
use network::{AdoptError, AttachError, Lease, Network, NetworkConfig, StartError, Subnets};

#[test]
fn pods_reach_each_other_and_the_bridge_on_both_families() {
    node(|| {
        let network = start(&config("10.201.0.0/24"));
        let ((a, a_netns), (b, b_netns)) = (pod(&network), pod(&network));
        let gateways = network.attachment(&a).gateways;
        assert_eq!(gateways.len(), 2);
        for ((from, to), gateway) in a.addresses().into_iter().zip(b.addresses()).zip(gateways) {
            assert_eq!(peer_seen(Some(b_netns.as_fd()), to, Some(a_netns.as_fd())), from);
            assert_eq!(peer_seen(None, gateway, Some(a_netns.as_fd())), from);
            assert_eq!(peer_seen(Some(b_netns.as_fd()), to, None), gateway);
        }
    });
}

#[test]
fn a_pod_has_its_loopback_and_its_mac() {
    node(|| {
        let network = start(&config("10.201.0.0/24"));
        let (lease, netns) = pod(&network);
        assert_eq!(inside(netns.as_fd(), links), ["lo", "eth0"]);
        for loopback in ["127.0.0.1", "::1"] {
            let loopback: IpAddr = loopback.parse().unwrap();
            assert_eq!(peer_seen(Some(netns.as_fd()), loopback, Some(netns.as_fd())), loopback);
        }
        let shown =
            inside(netns.as_fd(), || Command::new("ip").args(["link", "show", "eth0"]).output().unwrap());
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!("link/ether {}", lease.mac())), "{shown}");
        assert!(shown.contains("mtu 1500"), "{shown}");
    });
}

/// The node is itself a pod of an outer network, whose bridge stands for the rest of the world.
#[test]
fn pods_leave_the_node_under_its_address_only_with_masquerade() {
    let outer_config = NetworkConfig {
        subnet6: Some("fd00:202::/64".parse().unwrap()),
        masquerade: false,
        ..config("10.202.0.0/24")
    };
    node(move || {
        let outer = start(&outer_config);
        let (node_lease, node_netns) = pod(&outer);
        let world = outer.attachment(&node_lease).gateways;
        let inner = inside(node_netns.as_fd(), || start(&config("10.201.0.0/24")));
        let (_, pod_netns) = pod(&inner);
        for (world, node_address) in world.into_iter().zip(node_lease.addresses()) {
            assert_eq!(peer_seen(None, world, Some(pod_netns.as_fd())), node_address);
        }
        let table =
            inside(node_netns.as_fd(), || Command::new("nft").args(["list", "tables"]).output().unwrap());
        assert_eq!(String::from_utf8(table.stdout).unwrap(), "table inet meridian_meridian0\n");
    });
}

#[test]
fn two_hundred_pods_leave_nothing() {
    node(|| {
        let network = start(&config("10.201.0.0/24"));
        let before = links();
        let mut attach = Vec::new();
        for _ in 0..200 {
            let (lease, netns) = (network.allocate().unwrap(), bed::namespace());
            let started = Instant::now();
            network.attach(&lease, netns.as_fd()).unwrap();
            attach.push(started.elapsed());
            drop(netns);
            network.release(&lease);
        }
        eventually("the last veth is gone", || veths() == 0);
        assert_eq!(links(), before);
        let leases: HashSet<_> = (0..253).map(|_| network.allocate().unwrap()).collect();
        assert_eq!(leases.len(), 253, "every address of the /24 is free again, each once");
        attach.sort();
        println!("attach: p50 {:?}, p99 {:?}, max {:?}", attach[100], attach[198], attach[199]);
        assert!(attach[100] < Duration::from_millis(20), "attach p50 {:?}", attach[100]);
    });
}

#[test]
fn an_address_rests_until_its_namespace_is_gone() {
    node(|| {
        let network = start(&config("10.201.0.0/30"));
        let (lease, netns) = pod(&network);
        network.release(&lease);
        let error = network.allocate().unwrap_err().to_string();
        assert!(
            error.starts_with("no free address in 10.201.0.0/30: 0 are held by pods and 1 by namespaces"),
            "{error}"
        );
        drop(netns);
        assert_eq!(network.allocate().unwrap(), lease, "waited for the namespace");
    });
}

#[test]
fn a_small_subnet_ends_with_a_clear_error() {
    node(|| {
        let network = start(&config("10.201.0.0/29"));
        let pods: Vec<_> = (0..5).map(|_| pod(&network)).collect();
        let error = network.allocate().unwrap_err().to_string();
        assert!(
            error.starts_with("no free address in 10.201.0.0/29: 5 are held by pods and 0 by"),
            "{error}"
        );
        drop(pods);
    });
}

#[test]
fn a_restart_keeps_pods_connected_and_their_addresses_theirs() {
    node(|| {
        let config = config("10.201.0.0/28");
        let network = start(&config);
        let ((a, a_netns), (b, b_netns)) = (pod(&network), pod(&network));
        drop(network);
        let network = start(&config);
        network.adopt(&a).unwrap();
        assert_eq!(network.adopt(&a), Err(AdoptError::Leased { address: a.v4 }));
        assert_eq!(peer_seen(Some(b_netns.as_fd()), b.v4.into(), Some(a_netns.as_fd())), IpAddr::from(a.v4));
        let fresh: Vec<Lease> = (0..11).map(|_| network.allocate().unwrap()).collect();
        assert!(!fresh.contains(&a), "adopted");
        assert!(!fresh.contains(&b), "not adopted, but its veth exists");
        let elsewhere = Lease { v4: [10, 202, 0, 2].into(), v6: None };
        assert!(matches!(network.adopt(&elsewhere), Err(AdoptError::Outside { .. })));
    });
}

#[test]
fn a_new_subnet_replaces_the_old_addresses_of_the_bridge() {
    node(|| {
        drop(start(&config("10.201.0.0/24")));
        let network = start(&NetworkConfig { subnet6: None, mtu: 1400, ..config("10.202.0.0/24") });
        network.settle().unwrap();
        let (_, netns) = pod(&network);
        let shown = bridge_addresses();
        assert!(
            shown.contains("10.202.0.1/24") && !shown.contains("10.201.") && !shown.contains("fd00:"),
            "{shown}"
        );
        let mtu =
            inside(netns.as_fd(), || Command::new("ip").args(["link", "show", "eth0"]).output().unwrap());
        assert!(String::from_utf8(mtu.stdout).unwrap().contains("mtu 1400"));
    });
}

#[test]
fn pods_of_earlier_subnets_stay_connected_over_a_renumbering_and_a_restart() {
    node(|| {
        let later =
            NetworkConfig { subnet6: Some("fd00:203::/64".parse().unwrap()), ..config("10.203.0.0/24") };
        let network = start(&config("10.201.0.0/24"));
        let (old, old_netns) = pod(&network);
        let subnets = Subnets { v4: later.subnet4, v6: later.subnet6 };
        network.renumber(subnets).unwrap();
        network.renumber(subnets).unwrap();
        let (new, new_netns) = pod(&network);
        assert!(
            new.v4.octets().starts_with(&[10, 203]) && new.v6.unwrap().to_string().starts_with("fd00:203::")
        );
        let connected = |old: &Lease| {
            for (from, to) in new.addresses().into_iter().zip(old.addresses()) {
                assert_eq!(peer_seen(Some(old_netns.as_fd()), to, Some(new_netns.as_fd())), from);
            }
        };
        connected(&old);
        drop(network);
        let network = start(&later);
        network.adopt(&old).unwrap();
        network.adopt(&new).unwrap();
        network.settle().unwrap();
        connected(&old);
        assert!(bridge_addresses().contains("10.201.0.1/24"));
        network.release(&old);
        network.settle().unwrap();
        let left = bridge_addresses();
        assert!(
            left.contains("10.203.0.1/24") && !left.contains("10.201.") && !left.contains("fd00:88:"),
            "{left}"
        );
    });
}

fn bridge_addresses() -> String {
    let shown = Command::new("ip").args(["-o", "addr", "show", "meridian0"]).output().unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

#[test]
fn two_networks_on_one_node_do_not_meet() {
    node(|| {
        let first = start(&config("10.201.0.0/24"));
        let claimed = Network::start(&config("10.202.0.0/24")).unwrap_err().to_string();
        assert!(claimed.starts_with("bridge meridian0 is in use by another meridiand"), "{claimed}");
        let other = NetworkConfig { bridge: "other0".parse().unwrap(), ..config("10.201.0.0/24") };
        let overlap = Network::start(&other).unwrap_err().to_string();
        assert!(overlap.contains("subnet 10.201.0.0/24 is in use: link"), "{overlap}");
        assert!(
            overlap.ends_with("has address 10.201.0.1/24; configure another network.subnet4"),
            "{overlap}"
        );
        let subnet6 = Some("fd00:202::/64".parse().unwrap());
        let second = start(&NetworkConfig { subnet6, subnet4: "10.202.0.0/24".parse().unwrap(), ..other });
        let ((a, _a), (b, _b)) = (pod(&first), pod(&second));
        assert_ne!(a.host_veth(), b.host_veth());
    });
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    node(|| {
        let mtu = Network::start(&NetworkConfig { mtu: 1000, ..NetworkConfig::default() }).unwrap_err();
        assert!(matches!(mtu, StartError::Mtu { mtu: 1000, least: 1280 }));
        Command::new("ip").args(["link", "add", "meridian0", "type", "veth"]).status().unwrap();
        let kind = Network::start(&NetworkConfig::default()).unwrap_err().to_string();
        assert!(kind.starts_with("link meridian0 exists and is no bridge"), "{kind}");
        let network = start(&NetworkConfig { bridge: "other0".parse().unwrap(), ..NetworkConfig::default() });
        let (lease, netns) = pod(&network);
        let twice = network.attach(&lease, netns.as_fd()).unwrap_err();
        assert!(
            matches!(&twice, AttachError::Veth { host_veth, .. } if *host_veth == lease.host_veth()),
            "{twice}"
        );
        let null = std::fs::File::open("/dev/null").unwrap();
        let fresh = network.allocate().unwrap();
        assert!(matches!(network.attach(&fresh, null.as_fd()), Err(AttachError::Veth { .. })));
        assert_eq!(veths(), 2, "ip's own and the pod's");
    });
}

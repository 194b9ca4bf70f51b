//! The pod's interfaces, read inside its network namespace: /proc/net/dev is per namespace of the reading thread.

use std::os::fd::AsFd;

use namespaces::NamespaceKind;

use super::Sheet;
use crate::pod::Pod;

/// Columns of /proc/net/dev, proc_pid_net(5), and what they are called here.
const COLUMNS: [(usize, &str); 8] = [
    (0, "container_network_receive_bytes_total"),
    (1, "container_network_receive_packets_total"),
    (2, "container_network_receive_errors_total"),
    (3, "container_network_receive_packets_dropped_total"),
    (8, "container_network_transmit_bytes_total"),
    (9, "container_network_transmit_packets_total"),
    (10, "container_network_transmit_errors_total"),
    (11, "container_network_transmit_packets_dropped_total"),
];

/// Pods on the node's network have none of their own.
pub(super) fn read(pod: &Pod, sheet: &mut Sheet) {
    let Ok(namespace) = pod.node.pins.get(pod.id.as_str(), NamespaceKind::Net) else { return };
    let text = sys::netns::run(namespace.as_fd(), || std::fs::read_to_string("/proc/thread-self/net/dev"));
    let Ok(Ok(text)) = text else { return };
    for (interface, counts) in interfaces(&text) {
        for (column, name) in COLUMNS {
            sheet.put(name, &[interface], counts.get(column).copied());
        }
    }
}

/// Name and counts of every interface but the loopback.
fn interfaces(text: &str) -> impl Iterator<Item = (&str, Vec<u64>)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let named = lines.map(|(name, counts)| (name.trim(), counts));
    named.filter(|(name, _)| *name != "lo").map(|(name, counts)| {
        (name, counts.split_whitespace().filter_map(|count| count.parse().ok()).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_and_the_headings_are_left_out() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes    packets\n    lo:  9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0: 100 2 0 1 0 0 0 0 50 1 0 0 0 0 0 0\n";
        let found: Vec<_> = interfaces(text).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1[0], found[0].1[3], found[0].1[8]), ("eth0", 100, 1, 50));
    }
}

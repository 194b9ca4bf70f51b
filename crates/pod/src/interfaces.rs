//! The pod's interfaces, read inside its network namespace: /proc/net/dev is per namespace of the reading thread.

use namespaces::NamespaceKind;

use crate::pod::Pod;

/// Columns of /proc/net/dev, proc_pid_net(5).
pub(crate) const RX_BYTES: usize = 0;
pub(crate) const RX_PACKETS: usize = 1;
pub(crate) const RX_ERRORS: usize = 2;
pub(crate) const RX_DROPPED: usize = 3;
pub(crate) const TX_BYTES: usize = 8;
pub(crate) const TX_PACKETS: usize = 9;
pub(crate) const TX_ERRORS: usize = 10;
pub(crate) const TX_DROPPED: usize = 11;

/// Name and counts, by column, of each interface.
pub(crate) type Counts = Vec<(String, Vec<u64>)>;

/// The interfaces of each pod but the loopback. Pods on the node's network have none of their own. Blocks for as long as
/// a thread takes to start, and some 20 us a pod.
pub(crate) fn read<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Vec<Counts> {
    let pin = |pod: &Pod| pod.node.pins.get(pod.id.as_str(), NamespaceKind::Net).ok();
    let pins: Vec<_> = pods.into_iter().map(pin).collect();
    let own: Vec<_> = pins.iter().flatten().collect();
    let texts = sys::netns::each(&own, || std::fs::read_to_string("/proc/thread-self/net/dev"));
    let mut texts = texts.unwrap_or_default().into_iter();
    let counts = |text: String| interfaces(&text).map(|(name, counts)| (name.to_owned(), counts)).collect();
    pins.iter()
        .map(|pin| match pin.as_ref().and_then(|_| texts.next()) {
            Some(Ok(Ok(text))) => counts(text),
            _ => Counts::new(),
        })
        .collect()
}

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

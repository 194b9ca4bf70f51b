//! What went through the pod's interfaces.

use super::Sheet;
use crate::interfaces::{
    Counts, RX_BYTES, RX_DROPPED, RX_ERRORS, RX_PACKETS, TX_BYTES, TX_DROPPED, TX_ERRORS, TX_PACKETS,
};

/// Counts of an interface, and what they are called here.
const COLUMNS: [(usize, &str); 8] = [
    (RX_BYTES, "container_network_receive_bytes_total"),
    (RX_PACKETS, "container_network_receive_packets_total"),
    (RX_ERRORS, "container_network_receive_errors_total"),
    (RX_DROPPED, "container_network_receive_packets_dropped_total"),
    (TX_BYTES, "container_network_transmit_bytes_total"),
    (TX_PACKETS, "container_network_transmit_packets_total"),
    (TX_ERRORS, "container_network_transmit_errors_total"),
    (TX_DROPPED, "container_network_transmit_packets_dropped_total"),
];

pub(super) fn put(interfaces: &Counts, sheet: &mut Sheet) {
    for (interface, counts) in interfaces {
        for (column, name) in COLUMNS {
            sheet.put(name, &[interface], counts.get(column).copied());
        }
    }
}

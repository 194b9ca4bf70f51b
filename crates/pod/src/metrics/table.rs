//! The metrics there are: names and labels of cAdvisor, which the kubelet passes on as they come (KEP-2371).

use api::cri::v1::{MetricDescriptor, MetricType};

/// One kind of metric.
#[derive(Debug)]
pub(super) struct Kind {
    pub name: &'static str,
    pub help: &'static str,
    pub counter: bool,
    /// Labels beyond [`LABELS`].
    pub labels: &'static [&'static str],
}

/// What every sample carries, in this order.
pub(super) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Kind {
    Kind { name, help, counter: true, labels }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Kind {
    Kind { name, help, counter: false, labels }
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGES: &[&str] = &["pagesize"];

pub(super) const TABLE: [Kind; 56] = [
    counter(
        "container_blkio_device_usage_total",
        &["device", "major", "minor", "operation"],
        "Bytes moved from and to a block device",
    ),
    counter("container_cpu_cfs_periods_total", &[], "Periods of the CPU quota that went by"),
    counter("container_cpu_cfs_throttled_periods_total", &[], "Periods in which the quota was used up"),
    counter("container_cpu_cfs_throttled_seconds_total", &[], "Seconds of waiting for the next period"),
    counter("container_cpu_system_seconds_total", &[], "CPU seconds in the kernel"),
    counter("container_cpu_usage_seconds_total", &["cpu"], "CPU seconds"),
    counter("container_cpu_user_seconds_total", &[], "CPU seconds in programs"),
    gauge("container_file_descriptors", &[], "Open file descriptors of all processes"),
    gauge("container_fs_inodes_free", DEVICE, "Free inodes of the file system that holds the writable layer"),
    gauge("container_fs_inodes_total", DEVICE, "Inodes of the file system that holds the writable layer"),
    gauge("container_fs_limit_bytes", DEVICE, "Size of the file system that holds the writable layer"),
    counter("container_fs_reads_bytes_total", DEVICE, "Bytes read from a block device"),
    counter("container_fs_reads_total", DEVICE, "Reads from a block device"),
    gauge("container_fs_usage_bytes", DEVICE, "Bytes of the writable layer"),
    counter("container_fs_writes_bytes_total", DEVICE, "Bytes written to a block device"),
    counter("container_fs_writes_total", DEVICE, "Writes to a block device"),
    gauge("container_hugetlb_max_usage_bytes", PAGES, "Largest use of huge pages so far, in bytes"),
    gauge("container_hugetlb_usage_bytes", PAGES, "Huge pages in use, in bytes"),
    gauge("container_last_seen", &[], "When this was read, in seconds since the epoch"),
    gauge("container_memory_cache", &[], "Bytes of page cache"),
    counter("container_memory_failcnt", &[], "Allocations that met the memory limit"),
    counter("container_memory_failures_total", &["failure_type", "scope"], "Page faults"),
    gauge("container_memory_kernel_usage", &[], "Bytes of kernel memory"),
    gauge("container_memory_mapped_file", &[], "Bytes of mapped files"),
    gauge("container_memory_max_usage_bytes", &[], "Largest use of memory so far, in bytes"),
    gauge("container_memory_rss", &[], "Bytes of anonymous memory"),
    gauge("container_memory_swap", &[], "Bytes of swap in use"),
    gauge("container_memory_usage_bytes", &[], "Bytes of memory in use, page cache included"),
    gauge("container_memory_working_set_bytes", &[], "Bytes of memory that cannot be taken back at once"),
    counter("container_network_receive_bytes_total", INTERFACE, "Bytes received"),
    counter("container_network_receive_errors_total", INTERFACE, "Errors while receiving"),
    counter("container_network_receive_packets_dropped_total", INTERFACE, "Packets dropped while receiving"),
    counter("container_network_receive_packets_total", INTERFACE, "Packets received"),
    counter("container_network_transmit_bytes_total", INTERFACE, "Bytes sent"),
    counter("container_network_transmit_errors_total", INTERFACE, "Errors while sending"),
    counter("container_network_transmit_packets_dropped_total", INTERFACE, "Packets dropped while sending"),
    counter("container_network_transmit_packets_total", INTERFACE, "Packets sent"),
    counter("container_oom_events_total", &[], "Processes killed for want of memory"),
    counter("container_pressure_cpu_stalled_seconds_total", &[], "Seconds in which no process got a CPU"),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        &[],
        "Seconds in which a process waited for a CPU",
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        &[],
        "Seconds in which every process waited for I/O",
    ),
    counter("container_pressure_io_waiting_seconds_total", &[], "Seconds in which a process waited for I/O"),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        &[],
        "Seconds in which every process waited for memory",
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        &[],
        "Seconds in which a process waited for memory",
    ),
    gauge("container_processes", &[], "Processes"),
    gauge("container_sockets", &[], "Open sockets of all processes"),
    gauge("container_spec_cpu_period", &[], "Period of the CPU quota in microseconds"),
    gauge("container_spec_cpu_quota", &[], "CPU quota in microseconds per period; 0: none"),
    gauge("container_spec_cpu_shares", &[], "Relative weight for CPU time"),
    gauge("container_spec_memory_limit_bytes", &[], "Memory limit in bytes; 0: none"),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        &[],
        "Memory kept for the container, in bytes; 0: none",
    ),
    gauge("container_spec_memory_swap_limit_bytes", &[], "Limit of memory and swap in bytes; 0: none"),
    gauge("container_start_time_seconds", &[], "When the container was started, in seconds since the epoch"),
    gauge("container_threads", &[], "Threads"),
    gauge("container_threads_max", &[], "Limit of threads; 0: none"),
    gauge("container_ulimits_soft", &["ulimit"], "Soft limit of the first process"),
];

/// The kind of this name.
pub(super) fn kind(name: &str) -> Option<&'static Kind> {
    TABLE.iter().find(|kind| kind.name == name)
}

impl Kind {
    pub(super) fn metric_type(&self) -> MetricType {
        if self.counter { MetricType::Counter } else { MetricType::Gauge }
    }

    pub(super) fn descriptor(&self) -> MetricDescriptor {
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: LABELS.iter().chain(self.labels).map(ToString::to_string).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_counters_that_add_up_say_so() {
        assert!(TABLE.windows(2).all(|pair| pair[0].name < pair[1].name));
        for kind in &TABLE {
            let sum = kind.name.ends_with("_total") && kind.name != "container_fs_inodes_total";
            let counts = sum || kind.name.ends_with("_failcnt");
            assert_eq!(kind.counter, counts, "{}", kind.name);
        }
    }
}

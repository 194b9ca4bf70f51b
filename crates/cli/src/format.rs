//! Numbers as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch, now.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Time since an instant of the epoch in nanoseconds, in its largest unit or two: `4s`, `3m`, `2h5m`, `4d`.
pub fn age(created: i64, now: i64) -> String {
    let seconds = now.saturating_sub(created).max(0) / 1_000_000_000;
    match seconds {
        ..=99 => format!("{seconds}s"),
        100..=5_999 => format!("{}m", seconds / 60),
        6_000..=86_399 if seconds % 3600 / 60 == 0 => format!("{}h", seconds / 3600),
        6_000..=86_399 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Bytes in binary units: `512 B`, `64.0 MiB`.
#[allow(clippy::cast_precision_loss)] // one digit after the point is shown
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A duration with three digits that matter: `850 us`, `42.1 ms`, `3.02 s`.
pub fn duration(d: Duration) -> String {
    match d.as_nanos() {
        ..1_000_000 => format!("{} us", d.as_micros()),
        1_000_000..1_000_000_000 => format!("{:.1} ms", d.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", d.as_secs_f64()),
    }
}

/// A signed number of nanoseconds, in milliseconds: `+0.31 ms`.
#[allow(clippy::cast_precision_loss)] // two digits after the point are shown
pub fn signed_ms(nanoseconds: i64) -> String {
    format!("{:+.2} ms", nanoseconds as f64 / 1e6)
}

/// The part of an id that people compare: 13 digits, without an algorithm before it.
pub fn short(id: &str) -> &str {
    let digits = id.rsplit(':').next().unwrap_or(id);
    digits.get(..13).unwrap_or(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let age = |seconds: i64| age(0, seconds * 1_000_000_000);
        assert_eq!([age(0), age(99), age(100), age(5999)], ["0s", "99s", "1m", "99m"]);
        assert_eq!([age(7200), age(7500), age(86_400), age(400_000)], ["2h", "2h5m", "1d", "4d"]);
        assert_eq!(super::age(5, 0), "0s", "a clock that was set back");
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(64 << 20)],
            ["0 B", "1023 B", "1.0 KiB", "64.0 MiB"]
        );
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        let times = [850, 42_100, 3_020_000].map(|us| duration(Duration::from_micros(us)));
        assert_eq!(times, ["850 us", "42.1 ms", "3.02 s"]);
        assert_eq!([signed_ms(310_000), signed_ms(-1)], ["+0.31 ms", "-0.00 ms"]);
    }

    #[test]
    fn short_ids() {
        assert_eq!(short("sha256:0123456789abcdef0123"), "0123456789abc");
        assert_eq!(short("abc"), "abc");
    }
}

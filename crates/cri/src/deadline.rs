//! The deadline that a caller sets on an RPC (gRPC over HTTP/2: header `grpc-timeout`).

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// How long the caller will wait; `None` when it said nothing or nothing legible.
pub(crate) fn of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// The time that the work itself may take, so that undoing it and the reply still make the caller's deadline.
pub(crate) fn for_work(limit: Duration) -> Duration {
    limit - (limit / 10).min(Duration::from_secs(1))
}

/// At most eight digits and a unit; `None` for anything else.
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_the_protocol() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("", None),
            ("S", None),
            ("1x", None),
            ("-1S", None),
            ("100000000S", None),
            ("1ä", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_margin_of_a_tenth_but_at_most_a_second() {
        assert_eq!(for_work(Duration::from_secs(1)), Duration::from_millis(900));
        assert_eq!(for_work(Duration::from_secs(100)), Duration::from_secs(99));
        assert_eq!(for_work(Duration::ZERO), Duration::ZERO);
    }
}

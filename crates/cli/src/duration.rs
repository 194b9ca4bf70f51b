//! Durations as people type them.

use std::time::Duration;

/// `500ms`, `30s`, `2m`, `1h`, or a bare number of seconds.
pub fn parse(text: &str) -> Result<Duration, String> {
    let rule = || format!("{text:?} is no duration: write 500ms, 30s, 2m or 1h");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| rule())?;
    let milliseconds = match &text[digits.len()..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    milliseconds.map(Duration::from_millis).ok_or_else(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, milliseconds) in
            [("500ms", 500), ("30s", 30_000), ("7", 7_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1.5s", "99999999999999999999", "18446744073709551615h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

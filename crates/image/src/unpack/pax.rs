//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header"): `LENGTH KEY=VALUE\n`, repeated.
//!
//! Readers that disagree about these records read different archives (CVE-2025-62518), so there is one rule: a record
//! that is not exactly of this shape, or a second record for the same key, makes the archive malformed.

use std::collections::BTreeMap;

use super::archive::Malformed;

/// Longest extended header accepted, in bytes.
pub(super) const LONGEST: u64 = 1 << 20;

/// The records of one extended header.
#[derive(Debug, Default)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

impl Records {
    pub(super) fn parse(mut text: &[u8]) -> Result<Self, Malformed> {
        let mut records = BTreeMap::new();
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or(Malformed::Pax)?;
            if records.insert(key.to_vec(), value.to_vec()).is_some() {
                return Err(Malformed::PaxTwice { key: String::from_utf8_lossy(key).into_owned() });
            }
            text = rest;
        }
        Ok(Self(records))
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key.as_bytes()).map(Vec::as_slice)
    }

    /// A decimal number.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, Malformed> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let digits = value.iter().all(u8::is_ascii_digit);
        let text = std::str::from_utf8(value).ok().filter(|_| digits);
        text.and_then(|text| text.parse().ok()).map(Some).ok_or(Malformed::Number { field: key })
    }

    /// Seconds and nanoseconds since the epoch; digits beyond nanoseconds are dropped, times before it become 0.
    pub(super) fn time(&self, key: &'static str) -> Result<Option<(i64, i64)>, Malformed> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let malformed = || Malformed::Number { field: key };
        let text = std::str::from_utf8(value).map_err(|_| malformed())?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let seconds: i64 = whole.parse().map_err(|_| malformed())?;
        let nanoseconds = format!("{:0<9.9}", fraction).parse().map_err(|_| malformed())?;
        Ok(Some(if seconds < 0 { (0, 0) } else { (seconds, nanoseconds) }))
    }

    /// Extended attributes, as star and Go's archive/tar write them.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?, value.as_slice())))
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.0.keys().any(|key| key.starts_with(b"GNU.sparse."))
    }

    pub(super) fn changes_entries(&self) -> bool {
        ["path", "linkpath", "size"].iter().any(|key| self.get(key).is_some()) || self.is_sparse()
    }
}

fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|b| *b == b' ')?;
    let digits =
        std::str::from_utf8(&text[..space]).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
    let length: usize = digits.parse().ok()?;
    let line = text.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    Some((&line[..equals], &line[equals + 1..], &text[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_length() {
        let records = Records::parse(b"11 path=ab\n12 a=b\n=c\n\n18 mtime=12.000345\n").unwrap_err();
        assert!(matches!(records, Malformed::Pax));
        let records = Records::parse(b"11 path=ab\n10 a=b\n=c\n18 mtime=12.00034\n").unwrap();
        assert_eq!(records.get("path"), Some(&b"ab"[..]));
        assert_eq!(records.get("a"), Some(&b"b\n=c"[..]));
        assert_eq!(records.time("mtime").unwrap(), Some((12, 340_000)));
    }

    #[test]
    fn what_is_not_a_record_is_malformed() {
        for bad in [
            &b"11 path=ab"[..],
            b"99 path=ab\n",
            b"path=ab\n",
            b" 11 path=ab\n",
            b"+11 path=a\n",
            b"6 =ab\n",
            b"5 ab\n",
            b"0 a=b\n",
            b"11 path=ab\n11 path=cd\n",
            b"99999999999999999999999 a=b\n",
        ] {
            assert!(Records::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn numbers_are_plain_decimals() {
        for bad in ["-1", "+1", "1e3", "", " 1", "99999999999999999999"] {
            let line = format!(" size={bad}\n");
            let digits = if line.len() + 1 > 9 { 2 } else { 1 };
            let text = format!("{}{line}", line.len() + digits);
            assert!(Records::parse(text.as_bytes()).unwrap().number("size").is_err(), "{bad:?}");
        }
    }
}

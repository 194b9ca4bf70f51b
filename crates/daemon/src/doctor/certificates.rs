//! Certificates of this node and how long they last.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use api::meridian::v1::Check;
use migration::transport::Identity;

use super::{fail, ok, warn};
use crate::chain;
use crate::config::Peer;

/// A certificate that ends sooner is worth a warning, in days.
const SOON: i64 = 14;
const CURE: &str = "make new ones with meridian certs init, and restart meridiand; pods run on";

/// When each certificate in `files` (PEM) ends.
pub fn checks(files: &[&PathBuf]) -> Vec<Check> {
    files.iter().map(|file| lasting(file)).collect()
}

fn lasting(file: &Path) -> Check {
    let (name, object) = ("certificate", file.display().to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match first_end(file) {
        Err(error) => fail(name, object, error, CURE),
        Ok(end) => match days(end, now.cast_signed()) {
            left if left < 0 => fail(name, object, format!("ended {} days ago", -left), CURE),
            left if left < SOON => warn(name, object, format!("ends in {left} days"), CURE),
            left => ok(name, object, format!("lasts {left} days")),
        },
    }
}

fn days(end: i64, now: i64) -> i64 {
    (end - now).div_euclid(24 * 3600)
}

/// The earliest end of the certificates in a file, in seconds since the epoch.
fn first_end(file: &Path) -> Result<i64, String> {
    let mut reader = BufReader::new(File::open(file).map_err(|error| error.to_string())?);
    let mut first = None;
    for certificate in rustls_pemfile::certs(&mut reader) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        let end = not_after(&certificate).ok_or("holds what is no certificate")?;
        first = Some(first.map_or(end, |first: i64| first.min(end)));
    }
    first.ok_or_else(|| "holds no certificate".to_owned())
}

/// Certificate > TBSCertificate > version, serial, signature, issuer, validity > notBefore, notAfter: RFC 5280, 4.1.
fn not_after(certificate: &[u8]) -> Option<i64> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&EXPLICIT_0) {
        (_, _, fields) = element(fields)?; // the version, left out where it is 1
    }
    for _serial_signature_issuer in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (_, validity, _) = element(fields)?;
    let (_, _, rest) = element(validity)?;
    let (tag, text, _) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

const EXPLICIT_0: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first element of DER: tag, contents, and what follows it (X.690).
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        0x81 => rest.split_first_chunk().map(|(&[a], rest)| (usize::from(a), rest))?,
        0x82 => {
            let (&bytes, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(bytes)), rest)
        }
        0..=0x7f => (usize::from(length), rest),
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// `YYMMDDhhmmssZ`, where years from 50 on are of the last century, or `YYYYMMDDhhmmssZ`: RFC 5280, 4.1.2.5.
fn time(tag: u8, text: &str) -> Option<i64> {
    let text = match tag {
        UTC_TIME => format!("{}{text}", if text < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let clock = number(8, 10)? * 3600 + number(10, 12)? * 60 + number(12, 14)?;
    Some(days_since_epoch(year, month, day) * 24 * 3600 + clock)
}

/// Of the Gregorian calendar; a year begins in March here, so that a leap day ends it.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// Whether the files of `[peer]` belong together, as the daemon loads them.
pub fn fit(peer: &Peer) -> Check {
    let object = peer.certificate.display().to_string();
    match Identity::load(&peer.certificate, &peer.key, &peer.ca) {
        Ok(_) => ok("peer-identity", object, "fits its key and authority"),
        Err(error) => fail("peer-identity", object, chain(&error), CURE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_has_begun_does_not_count() {
        let day = 24 * 3600;
        assert_eq!([days(10 * day, day / 2), days(day, day), days(0, 1)], [9, 0, -1]);
    }

    #[test]
    fn times_of_certificates() {
        assert_eq!(time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(UTC_TIME, "000301000001Z"), Some(951_868_801));
        assert_eq!(time(UTC_TIME, "261124132900Z"), Some(1_795_526_940));
        assert_eq!(time(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        assert_eq!(time(GENERALIZED_TIME, "2050"), None);
        assert_eq!(time(4, "700101000000Z"), None);
    }

    #[test]
    fn der_that_lies_about_its_length_is_none() {
        assert_eq!(element(&[0x30, 2, 1, 2, 3]), Some((0x30, &[1, 2][..], &[3][..])));
        assert_eq!(element(&[0x30, 0x81, 1, 9]), Some((0x30, &[9][..], &[][..])));
        for lie in
            [&[0x30][..], &[0x30, 2, 1], &[0x30, 0x82, 1], &[0x30, 0x80, 0, 0], &[0x30, 0x84, 0, 0, 0, 1]]
        {
            assert_eq!(element(lie), None);
        }
        assert_eq!(not_after(&[0x30, 0]), None);
    }

    #[test]
    fn what_is_no_certificate_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(first_end(file.path()).unwrap_err(), "holds no certificate");
        assert!(first_end(Path::new("/nonexistent")).unwrap_err().contains("No such file"));
    }
}

//! RFC 3339 with nanoseconds, in UTC, written into a fixed array: no allocation, no time zone files, no leap table.

/// `2026-11-24T05:47:00.123456789Z`
pub const LENGTH: usize = 30;

const DAY: u64 = 86_400;

/// The instant `nanoseconds` after 1970-01-01T00:00:00Z. Instants before 1970 are shown as 1970: a clock that is so
/// wrong has no better answer. Years have four digits until 9999, which i64 nanoseconds (2262) never reach.
pub fn format(nanoseconds: i64) -> [u8; LENGTH] {
    let nanoseconds = u64::try_from(nanoseconds).unwrap_or(0);
    let (seconds, fraction) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    let (year, month, day) = civil(seconds / DAY);
    let second = seconds % DAY;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    let fields = [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 9, fraction),
    ];
    for (start, digits, value) in fields {
        write_digits(&mut text[start..start + digits], value);
    }
    text
}

/// Right-aligned decimal digits.
fn write_digits(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b"0123456789"[(value % 10) as usize];
        value /= 10;
    }
}

/// Year, month and day of the proleptic Gregorian calendar. Years are counted from 1 March, so that the leap day is
/// the last of its year and the lengths of the months follow one line: 153 days in every five months.
fn civil(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_400_YEARS: u64 = 146_097;
    let days = days_since_1970 + 719_468; // since 1 March of the year 0
    let era = days / DAYS_400_YEARS;
    let day_of_era = days % DAYS_400_YEARS;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanoseconds: i64) -> String {
        String::from_utf8(format(nanoseconds).to_vec()).unwrap()
    }

    #[test]
    fn known_instants() {
        // seconds as printed by `date -ud ... +%s`
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000001Z"),
            (68_169_599, "1972-02-28T23:59:59.000000001Z"),
            (68_169_600, "1972-02-29T00:00:00.000000001Z"),
            (951_868_799, "2000-02-29T23:59:59.000000001Z"),
            (951_868_800, "2000-03-01T00:00:00.000000001Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000001Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000001Z"),
        ] {
            assert_eq!(text(seconds * 1_000_000_000 + 1), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = civil(0);
        for day in 1..90_000 {
            let today = civil(day);
            assert!(
                today > before && (1..=12).contains(&today.1) && (1..=31).contains(&today.2),
                "{today:?}"
            );
            before = today;
        }
    }

    #[test]
    fn before_1970_is_1970() {
        assert_eq!(text(-1), "1970-01-01T00:00:00.000000000Z");
    }
}

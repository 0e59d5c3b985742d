//! Parses and formats durations such as `200ms`, `30s`, `5m`, `12h`, `30d`: one number and one unit. A day has 24
//! hours.

use std::time::Duration;

/// The text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration; write a whole number and a unit (ms, s, m, h, d), such as 30s or 12h"
)]
pub struct BadDuration(String);

/// Longest unit first, so that the formatted text is the shortest. `ms` precedes `s` and `m`, because it ends with one
/// and begins with the other.
const UNITS_MS: [(&str, u64); 5] = [
    ("ms", 1),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
];

/// Parses a duration: a whole number followed by `ms`, `s`, `m`, `h` or `d`, without a space.
///
/// # Errors
/// The text has another form, or exceeds 2^64 ms.
pub fn parse_duration(text: &str) -> Result<Duration, BadDuration> {
    let parse = || {
        let (unit, factor) = UNITS_MS.iter().find(|(unit, _)| text.ends_with(unit))?;
        let digits = text.strip_suffix(unit)?;
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        digits
            .parse::<u64>()
            .ok()?
            .checked_mul(*factor)
            .map(Duration::from_millis)
    };
    parse().ok_or_else(|| BadDuration(text.to_owned()))
}

/// Formats a duration in the longest unit that represents it exactly, in whole milliseconds.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms == 0 {
        return "0s".to_owned();
    }
    let fits = UNITS_MS
        .iter()
        .skip(1)
        .find(|(_, factor)| ms.is_multiple_of(*factor));
    fits.map_or_else(
        || format!("{ms}ms"),
        |(unit, factor)| format!("{}{unit}", ms / factor),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_shown() {
        for (text, ms) in [
            ("200ms", 200),
            ("30s", 30_000),
            ("5m", 300_000),
            ("12h", 43_200_000),
            ("30d", 2_592_000_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(ms)),
                "{text}"
            );
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(show_duration(Duration::from_millis(1_500)), "1500ms");
    }

    #[test]
    fn invalid_durations_are_refused() {
        for text in [
            "", "30", "s", "ms", "-1s", "+1s", "1.5h", "30 s", "1h30m", "30D", "30sec", "١s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("18446744073709551615d").is_err());
        assert!(parse_duration("99999999999999999999s").is_err());
    }
}

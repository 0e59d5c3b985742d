//! Time as data: [`Timestamp`], [`Day`] and durations in text. This module never reads a clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time, in milliseconds since 1970-01-01T00:00:00Z. On the wire it is RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// The last millisecond of the year 9999, because RFC 3339 has four digits for the year.
const MAX_MS: i64 = 253_402_300_799_999;
const EPOCH: jiff::civil::DateTime = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);

impl Timestamp {
    /// Clamps to the years 1970 to 9999.
    #[must_use]
    pub fn from_millis(ms: i64) -> Self {
        Self(ms.clamp(0, MAX_MS))
    }

    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub fn as_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The UTC day that contains it.
    #[must_use]
    pub fn day(self) -> Day {
        Day(self.0.div_euclid(DAY_MS))
    }

    /// Adds milliseconds; stops at the end of the year 9999.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self::from_millis(self.0.saturating_add(i64::try_from(ms).unwrap_or(i64::MAX)))
    }

    /// The number of the UTC month that contains it, counted from January of the year 0.
    #[must_use]
    pub fn month(self) -> i64 {
        let date = self.utc();
        i64::from(date.year()) * 12 + i64::from(date.month()) - 1
    }

    /// The UTC date, such as `2026-11-23`.
    #[must_use]
    pub fn date(self) -> String {
        self.utc().date().to_string()
    }

    fn utc(self) -> jiff::civil::DateTime {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => jiff::tz::Offset::UTC.to_datetime(at),
            // jiff's range ends a day before the year 9999 does, so that every timestamp has a date at any offset.
            Err(_) => EPOCH.saturating_add(jiff::SignedDuration::from_millis(self.0)),
        }
    }

    /// Milliseconds from `earlier` to `self`; 0 if `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{:.3}Z", self.utc()),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: must be RFC 3339, such as 2026-11-23T09:30:00.000Z")]
pub struct BadTimestamp(String);

impl FromStr for Timestamp {
    type Err = BadTimestamp;

    fn from_str(text: &str) -> Result<Self, BadTimestamp> {
        text.parse::<jiff::Timestamp>()
            .map(|t| Self::from_millis(t.as_millisecond()))
            .ok()
            .or_else(|| in_the_last_day(text))
            .ok_or_else(|| BadTimestamp(text.chars().take(64).collect()))
    }
}

/// Reads a UTC time on the last day of the year 9999, which jiff rejects but people write for "never".
fn in_the_last_day(text: &str) -> Option<Timestamp> {
    let plain = ["Z", "z", "+00:00", "-00:00"]
        .iter()
        .find_map(|utc| text.strip_suffix(utc))?;
    let at: jiff::civil::DateTime = plain.parse().ok()?;
    let is_whole = plain.contains(['T', 't', ' ']) && at.year() == 9999;
    let ms = i64::try_from(at.duration_since(EPOCH).as_millis()).ok()?;
    is_whole.then(|| Timestamp::from_millis(ms))
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

const DAY_MS: i64 = 86_400_000;

/// A calendar day in UTC, such as `2026-11-23`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(i64);

impl Day {
    /// `days`: days since 1970-01-01. Clamps to the years 1970 to 9999.
    #[must_use]
    pub fn from_number(days: i64) -> Self {
        Self(days.clamp(0, MAX_MS / DAY_MS))
    }

    #[must_use]
    pub fn number(self) -> i64 {
        self.0
    }

    /// Adds days, which may be negative. Clamps as [`Day::from_number`] does.
    #[must_use]
    pub fn plus(self, days: i64) -> Self {
        Self::from_number(self.0.saturating_add(days))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = Timestamp(self.0.saturating_mul(DAY_MS)).to_string();
        f.write_str(moment.get(..10).unwrap_or("1970-01-01"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a day: must be a date such as 2026-11-23, or a time in RFC 3339")]
pub struct BadDay(String);

impl FromStr for Day {
    type Err = BadDay;

    fn from_str(text: &str) -> Result<Self, BadDay> {
        let moment = if text.len() == 10 {
            format!("{text}T00:00:00Z").parse()
        } else {
            text.parse()
        };
        moment
            .map(Timestamp::day)
            .map_err(|_: BadTimestamp| BadDay(text.chars().take(64).collect()))
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: must be a whole number and a unit, such as 200ms, 30s, 5m, 12h or 3d (at most ten years)"
)]
pub struct BadDuration(String);

/// Ten years. A longer wait is a mistake.
const DURATION_MS_MAX: u64 = 10 * 366 * 24 * 3_600_000;

/// Reads `200ms`, `2s`, `5m`, `12h`, `3d` as milliseconds.
///
/// # Errors
/// [`BadDuration`] if the text has another form or the duration is longer than ten years.
pub fn parse_duration_ms(text: &str) -> Result<u64, BadDuration> {
    let bad = || BadDuration(text.chars().take(64).collect());
    let trimmed = text.trim();
    let digits = trimmed.len()
        - trimmed
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .len();
    let (number, unit) = trimmed.split_at_checked(digits).ok_or_else(bad)?;
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    let ms = number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit_ms))
        .ok_or_else(bad)?;
    if ms > DURATION_MS_MAX {
        Err(bad())
    } else {
        Ok(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_parsed_and_formatted() {
        for (text, day) in [
            ("1970-01-01", "1970-01-01"),
            ("2026-11-23", "2026-11-23"),
            ("2026-11-23T23:59:59.999Z", "2026-11-23"),
            ("2026-11-24T01:00:00+02:00", "2026-11-23"),
        ] {
            assert_eq!(text.parse::<Day>().unwrap().to_string(), day);
        }
        let day: Day = "2024-02-28".parse().unwrap();
        assert_eq!(day.plus(2).to_string(), "2024-03-01");
        assert_eq!(Day::from_number(day.number()), day);
        assert_eq!(Day::from_number(-1).to_string(), "1970-01-01");
        for bad in [
            "",
            "2026-11",
            "2026-13-01",
            "2026-02-30",
            "yesterday!",
            "20261123xx",
        ] {
            assert!(bad.parse::<Day>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_timestamp_has_three_decimals() {
        let t: Timestamp = "2026-11-23T09:30:00Z".parse().unwrap();
        assert_eq!(t.to_string(), "2026-11-23T09:30:00.000Z");
        assert_eq!(t.plus_ms(123).to_string(), "2026-11-23T09:30:00.123Z");
        assert_eq!(
            "2026-11-23T10:30:00.5+01:00".parse::<Timestamp>().unwrap(),
            t.plus_ms(500)
        );
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn the_end_of_the_year_9999_is_a_valid_time() {
        for (text, shown) in [
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("9999-12-31T23:59:59.999+00:00", "9999-12-31T23:59:59.999Z"),
            ("9999-12-30T12:00:00z", "9999-12-30T12:00:00.000Z"),
        ] {
            let moment: Timestamp = text.parse().unwrap();
            assert_eq!(moment.to_string(), shown);
            assert_eq!(shown.parse::<Timestamp>().unwrap(), moment);
        }
        assert_eq!(Timestamp::from_millis(i64::MAX).date(), "9999-12-31");
        for bad in [
            "9999-12-31Z",
            "9999-12-32T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "9999-12-31T23:59:59",
        ] {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_whole_number_and_a_unit() {
        for (text, ms) in [
            ("200ms", 200),
            ("2s", 2000),
            ("5m", 300_000),
            ("12h", 43_200_000),
            ("3d", 259_200_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration_ms(text), Ok(ms), "{text}");
        }
        for bad in [
            "",
            "s",
            "5",
            "5w",
            "-5s",
            "1.5h",
            "99999999999999999999d",
            "4000d",
        ] {
            assert!(parse_duration_ms(bad).is_err(), "{bad}");
        }
    }
}

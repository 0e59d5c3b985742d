//! Points in time, as the API writes them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use jiff::civil::{DateTime, date};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time with milliseconds, from 1970 to 9999. The API writes it as RFC 3339 in UTC:
/// `2026-11-23T09:30:00.123Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);
/// The last millisecond of the year 9999, because RFC 3339 has four digits for the year.
const MAX_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// `ms`: milliseconds since 1970-01-01T00:00:00Z. Clamps to the years 1970 to 9999.
    #[must_use]
    pub fn from_millis(ms: i64) -> Self {
        Self(ms.clamp(0, MAX_MS))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }
}

impl From<Timestamp> for SystemTime {
    fn from(at: Timestamp) -> Self {
        Self::UNIX_EPOCH + Duration::from_millis(at.0.unsigned_abs())
    }
}

impl From<SystemTime> for Timestamp {
    /// Clamps to the years 1970 to 9999.
    fn from(at: SystemTime) -> Self {
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Self::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // jiff's own timestamps end a day before the year 9999 does; its civil times do not.
        let at = EPOCH.saturating_add(SignedDuration::from_millis(self.0));
        write!(f, "{at:.3}Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: must be RFC 3339, such as 2026-11-23T09:30:00.000Z")]
pub struct InvalidTimestamp(String);

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let in_utc = text
            .strip_suffix(['Z', 'z'])
            .filter(|text| text.contains(['T', 't']));
        let ms = match in_utc.and_then(|text| text.parse::<DateTime>().ok()) {
            Some(at) => i64::try_from(at.duration_since(EPOCH).as_millis()).ok(),
            None => text.parse().ok().map(jiff::Timestamp::as_millisecond),
        };
        ms.map(Self::from_millis)
            .ok_or_else(|| InvalidTimestamp(text.chars().take(64).collect()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_and_written_as_the_api_does() {
        for (text, ms) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("2026-11-23T09:30:00.120Z", 1_795_426_200_120),
            ("9999-12-31T23:59:59.999Z", MAX_MS),
        ] {
            let at: Timestamp = text.parse().unwrap();
            assert_eq!(at.as_millis(), ms, "{text}");
            assert_eq!(at.to_string(), text);
            assert_eq!(Timestamp::from(SystemTime::from(at)), at);
        }
        let elsewhere: Timestamp = "2026-11-23T10:30:00.12+01:00".parse().unwrap();
        assert_eq!(elsewhere.to_string(), "2026-11-23T09:30:00.120Z");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "yesterday",
            "2026-11-23",
            "2026-11-23T09:30:00",
            "2026-13-23T09:30:00Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }
}

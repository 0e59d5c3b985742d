//! When a call is repeated.
//!
//! # Guarantees
//!
//! - The number of attempts and each pause are bounded.
//! - A call that may have taken effect is repeated only if a second execution has no further effect: it reads, it
//!   carries an idempotency key, or it replaces a file.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use jiff::fmt::rfc2822::DateTimeParser;

use crate::error::Error;

/// How often, and after which pauses, a call is repeated that failed temporarily: no connection, a connection that
/// broke off, or one of the statuses 429, 502, 503 and 504.
///
/// The pause doubles with each repetition, and a random part of up to half of it is left out, so that many clients do
/// not come back at the same moment. If the response has `Retry-After`, the pause is at least as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    retries: u32,
    pause: Duration,
    pause_max: Duration,
}

impl Default for RetryPolicy {
    /// Three repetitions, after 250, 500 and 1,000 ms, or after what the server says up to a minute, which is the
    /// window of its rate limit.
    fn default() -> Self {
        Self {
            retries: 3,
            pause: Duration::from_millis(250),
            pause_max: Duration::from_secs(60),
        }
    }
}

/// Whether a call may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A second execution has no further effect.
    Always,
    /// Only if the server has not executed the first one.
    IfNotExecuted,
}

impl RetryPolicy {
    /// No call is repeated. Streams of events still resume.
    #[must_use]
    pub fn never() -> Self {
        Self::default().retries(0)
    }

    /// Sets the maximum number of repetitions. Default: 3.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets the pause before the first repetition. Default: 250 ms.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets the longest pause. If the server asks for a longer one, the call fails at once. Default: a minute.
    #[must_use]
    pub fn pause_max(mut self, pause: Duration) -> Self {
        self.pause_max = pause;
        self
    }

    /// The maximum number of repetitions.
    pub(crate) fn most(self) -> u32 {
        self.retries
    }

    /// The pause before a call is repeated. `None`: it is not repeated. `done`: how often it was repeated already.
    pub(crate) fn pause_after(self, error: &Error, done: u32, repeat: Repeat) -> Option<Duration> {
        if done >= self.retries || !may_repeat(error, repeat) {
            return None;
        }
        self.backoff(error, done)
    }

    /// The pause before attempt number `done` + 2, if the server does not ask for a longer one than permitted.
    pub(crate) fn backoff(self, error: &Error, done: u32) -> Option<Duration> {
        let doubled = self.pause.saturating_mul(2_u32.saturating_pow(done));
        let pause = with_jitter(doubled.min(self.pause_max));
        match error.retry_after() {
            Some(asked) if asked > self.pause_max => None,
            Some(asked) => Some(asked.max(pause)),
            None => Some(pause),
        }
    }
}

/// Between half of the pause and all of it.
fn with_jitter(pause: Duration) -> Duration {
    let mut bytes = [0; 1];
    // Without random bytes the pause is merely longer.
    let left_out = match getrandom::fill(&mut bytes).map(|()| bytes) {
        Ok([random]) => pause / 2 * u32::from(random) / 256,
        Err(_) => Duration::ZERO,
    };
    pause - left_out
}

fn may_repeat(error: &Error, repeat: Repeat) -> bool {
    let always = repeat == Repeat::Always;
    match (error, error.status()) {
        // The server refuses such a request before it looks at it.
        (_, Some(StatusCode::TOO_MANY_REQUESTS)) => true,
        // A proxy may send these although the server has executed the request.
        (
            _,
            Some(
                StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
            ),
        ) => always,
        // Nothing was sent on a connection that did not come about.
        (Error::Unreachable { source, .. }, _) => {
            source.is_connect() || (always && !source.is_builder())
        }
        (Error::Broken(_) | Error::Stalled { .. }, _) => always,
        _ => false,
    }
}

/// The pause that a response asks for: seconds, or a date. It counts from the response's own date, so that the clock of
/// this machine does not matter.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text| DateTimeParser::new().parse_timestamp(text).ok();
    let (until, now) = (date(asked)?, date(text(header::DATE)?)?);
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn response(status: u16, retry_after_s: Option<u64>) -> Error {
        Error::UnexpectedResponse {
            base: String::new(),
            what: String::new(),
            status: Some(StatusCode::from_u16(status).unwrap()),
            retry_after: retry_after_s.map(Duration::from_secs),
        }
    }

    fn stalled() -> Error {
        Error::Stalled {
            base: String::new(),
            after: Duration::ZERO,
        }
    }

    #[test]
    fn pauses_double_and_end() {
        let policy = RetryPolicy::default();
        for (done, most) in [(0, 250), (1, 500), (2, 1000)] {
            let pause = policy.pause_after(&response(503, None), done, Repeat::Always);
            let pause = pause.unwrap().as_millis();
            assert!((most / 2..=most).contains(&pause), "{done}: {pause}");
        }
        assert_eq!(
            policy.pause_after(&response(503, None), 3, Repeat::Always),
            None
        );
        let long = policy
            .retries(u32::MAX)
            .pause_after(&stalled(), 40, Repeat::Always);
        assert!(long.unwrap() <= Duration::from_secs(60));
    }

    #[test]
    fn the_server_says_how_long_to_wait_within_bounds() {
        let policy = RetryPolicy::default().pause(Duration::ZERO);
        let pause = |s| policy.pause_after(&response(429, Some(s)), 0, Repeat::IfNotExecuted);
        assert_eq!(pause(0), Some(Duration::ZERO));
        assert_eq!(pause(60), Some(Duration::from_secs(60)));
        assert_eq!(pause(61), None);
    }

    #[test]
    fn a_call_that_may_have_taken_effect_is_repeated_only_if_harmless() {
        let policy = RetryPolicy::default();
        let repeats = |error: &Error| {
            [Repeat::Always, Repeat::IfNotExecuted]
                .map(|repeat| policy.pause_after(error, 0, repeat).is_some())
        };
        assert_eq!(repeats(&response(429, None)), [true, true]);
        for status in [502, 503, 504] {
            assert_eq!(repeats(&response(status, None)), [true, false], "{status}");
        }
        assert_eq!(repeats(&stalled()), [true, false]);
        for status in [400, 401, 403, 404, 409, 413, 500] {
            assert_eq!(
                repeats(&response(status, Some(1))),
                [false, false],
                "{status}"
            );
        }
        assert_eq!(repeats(&Error::ApiKey), [false, false]);
        let never = RetryPolicy::never();
        assert_eq!(never.pause_after(&stalled(), 0, Repeat::Always), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let asked = |retry_after: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(retry_after));
            if let Some(date) = date {
                headers.insert(header::DATE, HeaderValue::from_static(date));
            }
            super::retry_after(&headers).map(|pause| pause.as_secs())
        };
        let now = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(asked("7", None), Some(7));
        assert_eq!(asked(" 7 ", now), Some(7));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:07 GMT", now), Some(30));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:00 GMT", now), Some(0));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:07 GMT", None), None);
        assert_eq!(asked("soon", now), None);
        assert_eq!(super::retry_after(&HeaderMap::new()), None);
    }
}

//! Retry schedules of webhook deliveries and model calls.
//!
//! # Guarantees
//!
//! - Model calls: delays double up to a bound, have full jitter, and are never shorter than what the provider asked
//!   for, up to a bound.
//! - Webhooks: delays grow, have jitter, and continue until three days after the delivery was created; the last attempt
//!   is exactly at the end of the third day.
//!
//! # Non-goals
//!
//! Which failures are retried (`errand-engine` judges the response) and where the due time is kept (`errand-store`).

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How long a delivery is retried, counted from its creation. Three days: a receiver that fails on Friday evening is
/// back on Monday morning.
pub const WEBHOOK_RETRY_WINDOW_MS: u64 = 3 * 24 * HOUR_MS;

/// The delay after the nth failed attempt, before jitter. The short ones cover a restart of the receiver, the medium
/// ones a bad deployment, the long ones an outage. Each is at least twice the previous one, so that jitter never makes
/// a delay shorter than the previous one.
const PAUSES_MS: [u64; 9] = [
    5 * SECOND_MS,
    30 * SECOND_MS,
    2 * MINUTE_MS,
    10 * MINUTE_MS,
    30 * MINUTE_MS,
    HOUR_MS,
    2 * HOUR_MS,
    4 * HOUR_MS,
    WEBHOOK_PAUSE_MS_MAX,
];

/// The longest delay before jitter, and every one after it.
const WEBHOOK_PAUSE_MS_MAX: u64 = 8 * HOUR_MS;

/// Jitter multiplies a delay by 750..=1250 permille: a quarter in each direction spreads the deliveries that failed
/// together in one outage.
const JITTER_FACTOR_PERMILLE_MIN: u64 = 750;
const JITTER_SPAN_PERMILLE: u64 = 500;

/// The delay before a webhook's next attempt, in milliseconds.
///
/// `attempt`: the number of attempts so far, 1 after the first (0 counts as 1). `elapsed_ms`: the time since the
/// delivery was created, that is, since its event was committed. `jitter_permille`: a random number in 0..=1000, new
/// for each attempt (larger values count as 1000); 500 gives the delay in the table.
///
/// The delay never extends beyond [`WEBHOOK_RETRY_WINDOW_MS`]: the last one is shortened to end there. `None` when the
/// window has passed: the delivery has failed permanently.
pub fn webhook_retry_delay_ms(attempt: u32, elapsed_ms: u64, jitter_permille: u32) -> Option<u64> {
    let left_ms = WEBHOOK_RETRY_WINDOW_MS
        .checked_sub(elapsed_ms)
        .filter(|left| *left > 0)?;
    let row = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let pause_ms = PAUSES_MS.get(row).copied().unwrap_or(WEBHOOK_PAUSE_MS_MAX);
    let factor = JITTER_FACTOR_PERMILLE_MIN
        + JITTER_SPAN_PERMILLE * u64::from(jitter_permille.min(1000)) / 1000;
    Some((pause_ms * factor / 1000).min(left_ms))
}

/// The delay after the first failed attempt of a model call, before jitter.
const MODEL_PAUSE_MS: u64 = SECOND_MS / 2;
/// The longest of these delays.
const MODEL_PAUSE_MS_MAX: u64 = 8 * SECOND_MS;
/// The longest delay that a provider may ask for. Longer ones are reduced to it.
pub const RETRY_AFTER_MS_MAX: u64 = MINUTE_MS;

/// The delay before a model is asked again, in milliseconds: 0.5 s, doubling up to 8 s, with full jitter, but no
/// shorter than what the provider asked for.
///
/// `attempt`: the number of attempts so far, 1 after the first. `jitter_permille`: a random number in 0..=1000.
#[must_use]
pub fn model_retry_delay_ms(
    attempt: u32,
    retry_after_ms: Option<u64>,
    jitter_permille: u32,
) -> u64 {
    // The bound keeps the shift from overflowing; the delay has reached its maximum long before.
    let doublings = attempt.saturating_sub(1).min(16);
    let longest = (MODEL_PAUSE_MS << doublings).min(MODEL_PAUSE_MS_MAX);
    let pause = longest * u64::from(jitter_permille.min(1000)) / 1000;
    pause.max(retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The delays of a delivery whose every attempt fails immediately.
    fn pauses(jitter_permille: u32) -> Vec<u64> {
        let (mut elapsed_ms, mut pauses) = (0, Vec::new());
        for attempt in 1.. {
            assert!(attempt < 100, "the schedule ends");
            match webhook_retry_delay_ms(attempt, elapsed_ms, jitter_permille) {
                Some(pause_ms) => pauses.push(pause_ms),
                None => break,
            }
            elapsed_ms += pauses.last().unwrap();
        }
        pauses
    }

    #[test]
    fn the_table_without_jitter() {
        let (s, m, h) = (1_000, 60_000, 3_600_000);
        // 7 h 42 min 35 s up to here, then eight times eight hours, then the rest of the third day.
        let mut expected = vec![5 * s, 30 * s, 2 * m, 10 * m, 30 * m, h, 2 * h, 4 * h];
        expected.extend([8 * h; 8]);
        expected.push(72 * h - 64 * h - (7 * h + 42 * m + 35 * s));
        assert_eq!(pauses(500), expected);
    }

    #[test]
    fn every_schedule_ends_three_days_after_the_start() {
        for jitter in 0..=1000 {
            let all = pauses(jitter);
            assert_eq!(
                all.iter().sum::<u64>(),
                3 * 24 * 3_600_000,
                "jitter {jitter}"
            );
            assert!(
                (15..=20).contains(&all.len()),
                "{} attempts with jitter {jitter}",
                all.len()
            );
        }
    }

    #[test]
    fn delays_grow_for_every_jitter() {
        for attempt in 1..9 {
            let longest = webhook_retry_delay_ms(attempt, 0, 1000).unwrap();
            let shortest_next = webhook_retry_delay_ms(attempt + 1, 0, 0).unwrap();
            assert!(longest < shortest_next, "after attempt {attempt}");
        }
    }

    #[test]
    fn jitter_spreads_by_a_quarter_in_each_direction() {
        assert_eq!(webhook_retry_delay_ms(1, 0, 0), Some(3_750));
        assert_eq!(webhook_retry_delay_ms(1, 0, 250), Some(4_375));
        assert_eq!(webhook_retry_delay_ms(1, 0, 500), Some(5_000));
        assert_eq!(webhook_retry_delay_ms(1, 0, 1000), Some(6_250));
        assert_eq!(webhook_retry_delay_ms(1, 0, u32::MAX), Some(6_250));
    }

    #[test]
    fn the_last_delay_is_shortened_and_none_follows() {
        let window = WEBHOOK_RETRY_WINDOW_MS;
        assert_eq!(webhook_retry_delay_ms(20, window - 1, 0), Some(1));
        assert_eq!(webhook_retry_delay_ms(1, window - 3_000, 500), Some(3_000));
        assert_eq!(webhook_retry_delay_ms(1, window, 0), None);
        assert_eq!(webhook_retry_delay_ms(1, u64::MAX, 0), None);
    }

    #[test]
    fn model_delays_double_up_to_a_bound() {
        let longest: Vec<u64> = (1..=7)
            .map(|attempt| model_retry_delay_ms(attempt, None, 1000))
            .collect();
        assert_eq!(longest, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(model_retry_delay_ms(u32::MAX, None, 1000), 8000);
        // Full jitter starts at zero.
        assert_eq!(model_retry_delay_ms(5, None, 0), 0);
        assert_eq!(model_retry_delay_ms(5, None, 250), 2000);
        // The provider's request is honored up to a minute.
        assert_eq!(model_retry_delay_ms(1, Some(7000), 1000), 7000);
        assert_eq!(model_retry_delay_ms(1, Some(86_400_000), 0), 60_000);
        assert_eq!(model_retry_delay_ms(5, Some(100), 1000), 8000);
    }

    #[test]
    fn extreme_attempt_numbers_are_within_the_table() {
        assert_eq!(
            webhook_retry_delay_ms(0, 0, 500),
            webhook_retry_delay_ms(1, 0, 500)
        );
        assert_eq!(
            webhook_retry_delay_ms(u32::MAX, 0, 500),
            Some(8 * 3_600_000)
        );
    }
}

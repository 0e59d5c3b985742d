//! When a webhook, or a model call, that failed is tried again.
//!
//! Promised for model calls: the pauses double up to a bound, are spread over their whole length, and never end before
//! the time that the provider asked for, up to a bound. Promised for webhooks: the pauses grow, are spread by jitter, and go on until three days after the delivery was made; the last
//! attempt falls on the end of the third day. Left out: which failures are tried again (`errand-engine` judges the
//! receiver's answer) and where the due time is kept (`errand-store`).

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How long a delivery is tried again, counted from when it was made. Three days: a receiver that fails on a Friday
/// evening is back on Monday morning.
pub const WEBHOOK_RETRY_WINDOW_MS: u64 = 3 * 24 * HOUR_MS;

/// The pause after the n-th failed attempt, before jitter. The short ones cover a restart of the receiver, the middle
/// ones a bad deployment, the long ones an outage; each is at least twice the one before, so that jitter never makes
/// a pause shorter than the last.
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

/// The longest pause before jitter; every later one is the same.
const WEBHOOK_PAUSE_MS_MAX: u64 = 8 * HOUR_MS;

/// Jitter multiplies a pause by 750..=1250 permille: a quarter each way pulls apart the deliveries that one outage made
/// fail together.
const JITTER_FACTOR_PERMILLE_MIN: u64 = 750;
const JITTER_SPAN_PERMILLE: u64 = 500;

/// The pause before a webhook's next attempt, in milliseconds.
///
/// `attempt`: how many attempts were made, 1 after the first (0 counts as 1). `elapsed_ms`: the time since the delivery
/// was made, that is, since its event was committed. `jitter_permille`: a random number in 0..=1000, drawn anew for each
/// attempt (a greater one counts as 1000); 500 leaves the pause as the table has it.
///
/// The pause never leads past [`WEBHOOK_RETRY_WINDOW_MS`]: the one that would is shortened to end there. `None` once
/// that time is over: the delivery has failed for good.
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

/// The pause after the first failed attempt of a model call, before jitter.
const MODEL_PAUSE_MS: u64 = SECOND_MS / 2;
/// The longest of these pauses.
const MODEL_PAUSE_MS_MAX: u64 = 8 * SECOND_MS;
/// The longest pause that a provider may ask for. A longer one is taken for this.
pub const RETRY_AFTER_MS_MAX: u64 = MINUTE_MS;

/// The pause before a model is asked again, in milliseconds: 0.5 s doubling to 8 s, with full jitter; no shorter than
/// what the provider asked for, where it did.
///
/// `attempt`: how many attempts were made, 1 after the first. `jitter_permille`: a random number in 0..=1000.
#[must_use]
pub fn model_retry_delay_ms(
    attempt: u32,
    retry_after_ms: Option<u64>,
    jitter_permille: u32,
) -> u64 {
    let doublings = attempt.saturating_sub(1).min(16);
    let longest = (MODEL_PAUSE_MS << doublings).min(MODEL_PAUSE_MS_MAX);
    let pause = longest * u64::from(jitter_permille.min(1000)) / 1000;
    pause.max(retry_after_ms.unwrap_or(0).min(RETRY_AFTER_MS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of a delivery whose every attempt fails at once.
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
    fn the_whole_table_without_jitter() {
        let (s, m, h) = (1_000, 60_000, 3_600_000);
        // Up to here 7 h 42 min 35 s, then eight times eight hours, then the rest of the third day.
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
    fn pauses_grow_whatever_the_jitter() {
        for attempt in 1..9 {
            let longest = webhook_retry_delay_ms(attempt, 0, 1000).unwrap();
            let shortest_next = webhook_retry_delay_ms(attempt + 1, 0, 0).unwrap();
            assert!(longest < shortest_next, "after attempt {attempt}");
        }
    }

    #[test]
    fn jitter_spreads_a_quarter_each_way() {
        assert_eq!(webhook_retry_delay_ms(1, 0, 0), Some(3_750));
        assert_eq!(webhook_retry_delay_ms(1, 0, 250), Some(4_375));
        assert_eq!(webhook_retry_delay_ms(1, 0, 500), Some(5_000));
        assert_eq!(webhook_retry_delay_ms(1, 0, 1000), Some(6_250));
        assert_eq!(webhook_retry_delay_ms(1, 0, u32::MAX), Some(6_250));
    }

    #[test]
    fn the_last_pause_is_cut_and_nothing_follows_it() {
        let window = WEBHOOK_RETRY_WINDOW_MS;
        assert_eq!(webhook_retry_delay_ms(20, window - 1, 0), Some(1));
        assert_eq!(webhook_retry_delay_ms(1, window - 3_000, 500), Some(3_000));
        assert_eq!(webhook_retry_delay_ms(1, window, 0), None);
        assert_eq!(webhook_retry_delay_ms(1, u64::MAX, 0), None);
    }

    #[test]
    fn a_model_is_asked_again_after_pauses_that_double_to_a_bound() {
        let longest: Vec<u64> = (1..=7)
            .map(|attempt| model_retry_delay_ms(attempt, None, 1000))
            .collect();
        assert_eq!(longest, [500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(model_retry_delay_ms(u32::MAX, None, 1000), 8000);
        // Full jitter: from nothing on.
        assert_eq!(model_retry_delay_ms(5, None, 0), 0);
        assert_eq!(model_retry_delay_ms(5, None, 250), 2000);
        // What the provider asks for is respected, up to a minute.
        assert_eq!(model_retry_delay_ms(1, Some(7000), 1000), 7000);
        assert_eq!(model_retry_delay_ms(1, Some(86_400_000), 0), 60_000);
        assert_eq!(model_retry_delay_ms(5, Some(100), 1000), 8000);
    }

    #[test]
    fn extreme_attempts_are_in_the_table() {
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

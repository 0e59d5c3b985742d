//! Counts requests in fixed windows of one minute.
//!
//! # Guarantees
//!
//! - A window begins with its first request.
//! - Memory is bounded.
//! - Time is a parameter.
//!
//! # Non-goals
//!
//! Deciding what is counted and refused, and persistence: a restart clears all windows.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use errand_core::time::Timestamp;

const WINDOW_MS: u64 = 60_000;
/// Maximum number of windows, about ten megabytes. Further keys share one window.
const WINDOWS_MAX: usize = 100_000;
/// The number of windows from which expired ones are removed.
const SWEEP_FROM: usize = 1_024;
/// The minimum interval between removals: scanning a full table takes about a millisecond.
const SWEEP_EVERY_MS: u64 = 1_000;

/// Counts requests by key `K`.
pub(crate) struct Limiter<K> {
    per_minute: u32,
    windows_max: usize,
    state: Mutex<State<K>>,
}

struct State<K> {
    windows: HashMap<K, Window>,
    overflow: Option<Window>,
    swept_at: Timestamp,
}

#[derive(Clone, Copy)]
struct Window {
    begin: Timestamp,
    count: u32,
}

/// The result of counting a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    /// Whether this request began the window.
    pub(crate) is_first: bool,
    pub(crate) limit: u32,
    /// The remaining requests in this window.
    pub(crate) remaining: u32,
    /// The end of the window, as Unix time in seconds, rounded up.
    pub(crate) reset_s: i64,
    /// The seconds until the end of the window, rounded up; at least 1.
    pub(crate) retry_after_s: u64,
}

impl<K: Hash + Eq> Limiter<K> {
    /// `per_minute`: at least 1.
    pub(crate) fn new(per_minute: u32) -> Self {
        let state = State {
            windows: HashMap::new(),
            overflow: None,
            swept_at: Timestamp::from_millis(0),
        };
        Self {
            per_minute,
            windows_max: WINDOWS_MAX,
            state: Mutex::new(state),
        }
    }

    /// The number of requests in the current window, and whether another one is within the limit.
    pub(crate) fn so_far(&self, key: &K, now: Timestamp) -> (u32, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let window = state.windows.get(key).filter(|window| window.is_open(now));
        let count = window.map_or(0, |window| window.count);
        (count, count < self.per_minute)
    }

    pub(crate) fn count(&self, key: K, now: Timestamp) -> Verdict {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let window = state.window(key, now, self.windows_max);
        let is_first = window.count == 0;
        window.count = window.count.saturating_add(1);
        let (begin, count) = (window.begin, window.count);
        let end = begin.plus_ms(WINDOW_MS);
        Verdict {
            allowed: count <= self.per_minute,
            is_first,
            limit: self.per_minute,
            remaining: self.per_minute.saturating_sub(count),
            reset_s: end.plus_ms(999).as_seconds(),
            retry_after_s: end.ms_since(now).div_ceil(1000).max(1),
        }
    }
}

impl<K: Hash + Eq> State<K> {
    fn window(&mut self, key: K, now: Timestamp, windows_max: usize) -> &mut Window {
        let fresh = Window {
            begin: now,
            count: 0,
        };
        let is_due = now < self.swept_at || now.ms_since(self.swept_at) >= SWEEP_EVERY_MS;
        if is_due && self.windows.len() >= SWEEP_FROM {
            self.windows.retain(|_, window| window.is_open(now));
            self.swept_at = now;
        }
        let is_full = self.windows.len() >= windows_max && !self.windows.contains_key(&key);
        let window = if is_full {
            self.overflow.get_or_insert(fresh)
        } else {
            self.windows.entry(key).or_insert(fresh)
        };
        if !window.is_open(now) {
            *window = fresh;
        }
        window
    }
}

impl Window {
    // If the clock was set back, a new window begins. The old one might otherwise last for a year.
    fn is_open(&self, now: Timestamp) -> bool {
        now >= self.begin && now.ms_since(self.begin) < WINDOW_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000_000 + ms)
    }

    #[test]
    fn a_window_begins_with_its_first_request() {
        let limiter = Limiter::new(2);
        let first = limiter.count("a", at(1));
        assert_eq!(
            first,
            Verdict {
                allowed: true,
                is_first: true,
                limit: 2,
                remaining: 1,
                reset_s: 1_000_061,
                retry_after_s: 60
            }
        );
        assert_eq!(limiter.so_far(&"a", at(1)), (1, true));
        let second = limiter.count("a", at(30_000));
        assert_eq!(limiter.so_far(&"a", at(30_000)), (2, false));
        assert_eq!(limiter.so_far(&"a", at(70_000)), (0, true));
        assert_eq!(
            (
                second.allowed,
                second.remaining,
                second.is_first,
                second.reset_s
            ),
            (true, 0, false, 1_000_061)
        );
        let third = limiter.count("a", at(60_000));
        assert_eq!(
            (third.allowed, third.remaining, third.retry_after_s),
            (false, 0, 1)
        );
        let next = limiter.count("a", at(60_001));
        assert_eq!(
            (next.allowed, next.is_first, next.remaining),
            (true, true, 1)
        );
    }

    #[test]
    fn keys_do_not_share() {
        let limiter = Limiter::new(1);
        assert!(limiter.count("a", at(0)).allowed);
        assert!(limiter.count("b", at(0)).allowed);
        assert!(!limiter.count("a", at(0)).allowed);
    }

    #[test]
    fn a_clock_that_is_set_back_begins_a_new_window() {
        let limiter = Limiter::new(1);
        assert!(limiter.count("a", at(1_000_000)).allowed);
        assert!(limiter.count("a", at(0)).allowed);
    }

    #[test]
    fn memory_is_bounded() {
        let mut limiter = Limiter::new(3);
        limiter.windows_max = 2_000;
        for key in 0..10_000 {
            limiter.count(key, at(0));
        }
        assert_eq!(limiter.state.lock().unwrap().windows.len(), 2_000);
        assert!(
            !limiter.count(20_000, at(0)).allowed,
            "beyond, all share one window"
        );
        assert!(
            limiter.count(20_000, at(60_000)).allowed,
            "which ends like any other"
        );
        for key in 0..10_000 {
            limiter.count(key, at(120_000 + i64::from(key) * 60_000));
        }
        assert!(
            limiter.state.lock().unwrap().windows.len() < 2_000,
            "those that ended are swept"
        );
    }
}

//! Secrets that are shown once: created by a form, shown on the page that the form redirects to.
//!
//! Guarantees: a form that creates something answers with a redirect, so reloading the page creates nothing. The secret
//! is in no address and not on disk. It is kept here, for the session that created it, until the first `GET` that takes
//! it, or for [`WAITS_MS`]. At most [`KEPT_MAX`] secrets are kept; then the oldest is dropped.
//!
//! Non-goals: surviving a restart. The page then says that the secret can no longer be shown.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use errand_core::time::Timestamp;

/// How long a secret is kept for its page.
const WAITS_MS: u64 = 60_000;
const KEPT_MAX: usize = 256;

struct Kept {
    session: [u8; 32],
    of: String,
    secret: String,
    until: Timestamp,
}

#[derive(Default)]
pub(super) struct ShownOnce(Mutex<VecDeque<Kept>>);

impl ShownOnce {
    /// Keeps a new secret. `of`: the ID in the page's address.
    pub(super) fn keep(&self, session: [u8; 32], of: &str, secret: &str, now: Timestamp) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|kept| kept.until > now);
        if all.len() >= KEPT_MAX {
            all.pop_front();
        }
        all.push_back(Kept {
            session,
            of: of.to_owned(),
            secret: secret.to_owned(),
            until: now.plus_ms(WAITS_MS),
        });
    }

    /// Removes and returns a secret.
    pub(super) fn take(&self, session: [u8; 32], of: &str, now: Timestamp) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|kept| kept.until > now);
        let place = all
            .iter()
            .position(|kept| kept.session == session && kept.of == of)?;
        all.remove(place).map(|kept| kept.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINE: [u8; 32] = [1; 32];

    #[test]
    fn a_secret_is_shown_once_to_its_session() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let all = ShownOnce::default();
        all.keep(MINE, "a", "secret", now);
        assert_eq!(all.take([2; 32], "a", now), None);
        assert_eq!(all.take(MINE, "b", now), None);
        assert_eq!(all.take(MINE, "a", now).as_deref(), Some("secret"));
        assert_eq!(all.take(MINE, "a", now), None);
        all.keep(MINE, "a", "secret", now);
        assert_eq!(all.take(MINE, "a", now.plus_ms(WAITS_MS)), None, "too late");
    }

    #[test]
    fn the_number_of_kept_secrets_is_bounded() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let all = ShownOnce::default();
        for n in 0..KEPT_MAX + 5 {
            all.keep(MINE, &n.to_string(), "secret", now);
        }
        assert_eq!(all.take(MINE, "4", now), None);
        assert!(all.take(MINE, "5", now).is_some());
    }
}

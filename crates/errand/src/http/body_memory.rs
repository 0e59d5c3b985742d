//! Limits the memory for request bodies that are read completely (JSON and forms).
//!
//! # Guarantees
//!
//! - The first 64 KiB of a body are free, so that ordinary requests are served no matter what others send. The number
//!   of connections bounds this part.
//! - Further bytes count toward the API key or person, the team, and the server. A body is refused (429 for the first
//!   two, 503 for the server) at the byte that exceeds a limit.
//! - The bytes are released when the [`Charge`] is dropped.
//!
//! # Non-goals
//!
//! Uploads, which are streamed to disk and have their own limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::id::TeamId;
use errand_core::limits::BODY_BYTES_MAX;
use http::Extensions;

use super::error::ApiError;
use super::slots::Holder;

/// The size of the part of each body that is free.
pub(crate) const FREE_BYTES: usize = 64 * 1024;
/// The limit of one API key or person: four bodies of the maximum size.
const HOLDER_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
/// The limit of one team: two keys can use their full limit.
const TEAM_BYTES_MAX: usize = 2 * HOLDER_BYTES_MAX;
/// The limit of the server: two teams can use their full limit.
const TOTAL_BYTES_MAX: usize = 2 * TEAM_BYTES_MAX;
/// The `retry-after` of a refusal, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// The sender of a request, put into its extensions by the layer that authenticates.
#[derive(Clone, Copy)]
pub(crate) struct BodyOwner {
    /// The API key or person.
    pub(crate) holder: Holder,
    pub(crate) team: Option<TeamId>,
}

/// Counts the bytes of all bodies of the server. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct BodyMemory(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    total: usize,
    by_holder: HashMap<Holder, usize>,
}

/// The bytes of one body that is being read, or of the value that was parsed from it.
pub(crate) struct Charge {
    memory: BodyMemory,
    /// Empty if the client is not authenticated. Then only the free part of a body is accepted.
    holders: Vec<(Holder, usize)>,
    read: usize,
    counted: usize,
}

impl Charge {
    /// The charge for a request's body. Earlier layers have left the client's identity and the server's [`BodyMemory`]
    /// in `extensions`; without the latter, the body is counted by itself.
    pub(crate) fn of(extensions: &Extensions) -> Self {
        let memory = extensions.get::<BodyMemory>().cloned().unwrap_or_default();
        let owner = extensions.get::<BodyOwner>().copied();
        let holders = owner.map_or_else(Vec::new, |BodyOwner { holder, team }| {
            let own = (holder, HOLDER_BYTES_MAX);
            let team = team.map(|team| (Holder::Team(team), TEAM_BYTES_MAX));
            std::iter::once(own).chain(team).collect()
        });
        Self {
            memory,
            holders,
            read: 0,
            counted: 0,
        }
    }

    /// Counts bytes before they are stored.
    ///
    /// # Errors
    /// 429 if the key, person or team exceeds its limit; 503 if the server exceeds it; 413 if an unauthenticated client
    /// sends more than the free part.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.read = self.read.saturating_add(bytes);
        let more = self.read.saturating_sub(FREE_BYTES) - self.counted;
        if more == 0 {
            return Ok(());
        }
        if self.holders.is_empty() {
            return Err(ApiError::too_large("this body", FREE_BYTES as u64));
        }
        let mut held = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (holder, max) in &self.holders {
            let now = held.by_holder.get(holder).copied().unwrap_or_default();
            if now.saturating_add(more) > *max {
                return Err(ApiError::rate_limited(
                    "too many large requests of this key, person or team at the same time; send fewer at once",
                    RETRY_AFTER_S,
                ));
            }
        }
        if held.total.saturating_add(more) > TOTAL_BYTES_MAX {
            return Err(ApiError::unavailable(
                "the server is receiving too many large requests; try again in a moment",
            ));
        }
        held.total += more;
        for (holder, _) in &self.holders {
            *held.by_holder.entry(*holder).or_default() += more;
        }
        self.counted += more;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.counted == 0 {
            return;
        }
        let mut held = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(self.counted);
        for (holder, _) in &self.holders {
            if let Some(bytes) = held.by_holder.get_mut(holder) {
                *bytes = bytes.saturating_sub(self.counted);
                if *bytes == 0 {
                    held.by_holder.remove(holder);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(memory: &BodyMemory, holders: &[(Holder, usize)]) -> Charge {
        Charge {
            memory: memory.clone(),
            holders: holders.to_vec(),
            read: 0,
            counted: 0,
        }
    }

    #[test]
    fn bodies_count_until_they_are_dropped() {
        let memory = BodyMemory::default();
        let key = [(Holder::Url([1; 32]), HOLDER_BYTES_MAX)];
        let mut bodies: Vec<Charge> = (0..4)
            .map(|_| {
                let mut body = charge(&memory, &key);
                body.add(BODY_BYTES_MAX).unwrap();
                body
            })
            .collect();
        let mut fifth = charge(&memory, &key);
        fifth.add(4 * FREE_BYTES).unwrap();
        assert!(fifth.add(BODY_BYTES_MAX).is_err());
        // Other keys, and ordinary bodies of the same key, are not affected.
        charge(&memory, &key).add(FREE_BYTES).unwrap();
        let other = [(Holder::Url([2; 32]), HOLDER_BYTES_MAX)];
        charge(&memory, &other).add(BODY_BYTES_MAX).unwrap();
        bodies.clear();
        drop(fifth);
        charge(&memory, &key).add(BODY_BYTES_MAX).unwrap();
        assert_eq!(memory.0.lock().unwrap().total, 0);
        assert!(memory.0.lock().unwrap().by_holder.is_empty());
    }

    #[test]
    fn all_bodies_together_have_a_limit() {
        let memory = BodyMemory::default();
        let mut kept = Vec::new();
        let refused = (0..=u8::MAX).find(|n| {
            let mut body = charge(&memory, &[(Holder::Url([*n; 32]), HOLDER_BYTES_MAX)]);
            let is_refused = body.add(BODY_BYTES_MAX).is_err();
            kept.push(body);
            is_refused
        });
        assert!(refused.is_some_and(|n| usize::from(n) >= TOTAL_BYTES_MAX / BODY_BYTES_MAX));
        assert!(memory.0.lock().unwrap().total <= TOTAL_BYTES_MAX);
    }

    #[test]
    fn an_unauthenticated_client_sends_no_large_body() {
        let mut body = charge(&BodyMemory::default(), &[]);
        body.add(FREE_BYTES).unwrap();
        assert!(body.add(1).is_err());
    }
}

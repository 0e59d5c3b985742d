//! Ids: private newtypes that are parsed once and generated in one place.
//!
//! All except [`SandboxId`] (an opaque string) are UUIDs of version 7, which sort by time. Only [`IdGen`] generates new
//! ones; a test seeds it to get the same ids each time.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::time::Timestamp;

/// The text is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: must be a UUID, exactly as the API returned it")]
pub struct BadId {
    kind: &'static str,
    text: String,
}

macro_rules! ids { ($($(#[$doc:meta])* $name:ident $make:ident $label:literal),* $(,)?) => {
    $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The id as a UUID, for the database and the wire.
            #[must_use]
            pub fn as_uuid(self) -> Uuid {
                self.0
            }

            /// An id read from the database. Not for creating new ones.
            #[must_use]
            pub fn from_stored(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| BadId { kind: $label, text: text.chars().take(64).collect() })
            }
        }
    )*

    impl IdGen {
        $(
            #[doc = concat!("Generates a ", $label, ".")]
            pub fn $make(&self, now: Timestamp) -> $name {
                $name(self.uuid(now))
            }
        )*
    }
} }

ids! {
    /// The tenant. The first parameter of every store operation on behalf of a caller.
    TeamId team "team id",
    /// A person's account.
    UserId user "user id",
    /// An API key. Not secret, unlike the key itself.
    ApiKeyId api_key "API key id",
    /// An agent (*Assignment* in the web interface).
    AgentId agent "agent id",
    /// One immutable snapshot of an agent's configuration.
    BuildId build "build id",
    /// One execution of a build.
    RunId run "run id",
    /// One entry of a run's transcript; a message, if the API shows it.
    MessageId message "message id",
    /// An MCP server that a team's builds may name.
    ConnectionId connection "connection id",
    /// An approval or a question to a person.
    HumanRequestId human_request "human request id",
    /// An event for webhooks. Sent as `webhook-id`, the same at every attempt, so that receivers recognize repeats.
    EventId event "event id",
    /// A team's subscription to events.
    WebhookId webhook "webhook id",
    /// The delivery of one event to one URL.
    DeliveryId delivery "delivery id",
    /// An invitation to join a team.
    InvitationId invitation "invitation id",
    /// A fencing token: new for each claim. The store accepts steps of the run only from its holder.
    ClaimToken claim_token "claim token",
    /// One start of the server process on its data directory.
    BootId boot "boot id",
}

impl BootId {
    /// When the process started, by its clock.
    #[must_use]
    pub fn at(self) -> Timestamp {
        // UUIDv7: the first 48 bits are milliseconds since the epoch.
        let ms = self.0.as_u128() >> 80;
        Timestamp::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
    }
}

impl MessageId {
    /// The id of an entry that the store itself appends (the result of a closed call, a note). It is derived from run
    /// and position, which are unique together, because a transaction may run twice and must not draw random numbers.
    #[must_use]
    pub fn derived(run: RunId, position: u64, now: Timestamp) -> Self {
        Self(derived("message", run, position, now))
    }

    /// The id of the message that starts a model's next turn, for a transcript at this position and time. The same at
    /// every attempt of the turn, so that streamed text and the committed message agree.
    #[must_use]
    pub fn of_turn(run: RunId, position: u64, at: Timestamp) -> Self {
        Self(derived("turn", run, position, at))
    }
}

impl HumanRequestId {
    /// The id of the copy of a human request at this position of a forked run's transcript.
    #[must_use]
    pub fn derived(run: RunId, position: u64, now: Timestamp) -> Self {
        Self(derived("human request", run, position, now))
    }
}

impl EventId {
    /// The id of a run's event, derived from its number: the same at every attempt to commit or deliver it.
    #[must_use]
    pub fn derived(run: RunId, sequence: u64, now: Timestamp) -> Self {
        Self(derived("event", run, sequence, now))
    }
}

impl DeliveryId {
    /// The id of an event's delivery, derived from the number of its URL. Made in the transaction that creates the
    /// event.
    #[must_use]
    pub fn derived(event: EventId, address: u64, now: Timestamp) -> Self {
        Self(derived_from("delivery", event.0, address, now))
    }
}

fn derived(kind: &str, run: RunId, number: u64, now: Timestamp) -> Uuid {
    derived_from(kind, run.0, number, now)
}

fn derived_from(kind: &str, of: Uuid, number: u64, now: Timestamp) -> Uuid {
    let digest = Sha256::new()
        .chain_update(kind)
        .chain_update(of.as_bytes())
        .chain_update(number.to_be_bytes())
        .finalize();
    let mut random = [0; 10];
    for (to, from) in random.iter_mut().zip(digest.iter()) {
        *to = *from;
    }
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(now.as_millis()).unwrap_or(0), &random)
        .into_uuid()
}

/// A sandbox's id: an opaque string, `sb_` and 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SandboxId(String);

impl SandboxId {
    /// The id as it is on the wire, in the database and as the directory's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an id. Only text of exactly this form is accepted, so the result is safe to use as a directory's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sb_")?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (digits.len() == 32 && digits.bytes().all(hex)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Generates ids that strictly increase, also within a millisecond and if the clock steps back.
///
/// The random part is a SHA-256 stream over a seed: 32 bytes from the operating system in production, fixed in tests.
pub struct IdGen {
    state: Mutex<GenState>,
}

struct GenState {
    seed: [u8; 32],
    drawn: u64,
    last_ms: u64,
    counter: u16,
}

impl IdGen {
    /// `seed`: from the operating system's random source, or fixed if ids must be reproducible.
    #[must_use]
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            state: Mutex::new(GenState {
                seed,
                drawn: 0,
                last_ms: 0,
                counter: 0,
            }),
        }
    }

    pub fn sandbox(&self, now: Timestamp) -> SandboxId {
        SandboxId(format!("sb_{}", self.uuid(now).simple()))
    }

    /// A random number in `0..=1000`, for jitter.
    pub fn jitter_permille(&self) -> u32 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let [a, b, ..] = state.draw();
        u32::from(u16::from_be_bytes([a, b])) * 1000 / u32::from(u16::MAX)
    }

    fn uuid(&self, now: Timestamp) -> Uuid {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ms = u64::try_from(now.as_millis()).unwrap_or(0);
        let mut random = state.draw();
        if ms > state.last_ms {
            state.last_ms = ms;
            // The counter has 12 bits. Starting in the lower half leaves at least 2,048 ids for the same millisecond.
            state.counter = u16::from_be_bytes([random[0], random[1]]) & 0x07ff;
        } else if state.counter == 0x0fff {
            // The counter is used up: borrow the next millisecond.
            state.last_ms += 1;
            state.counter = 0;
        } else {
            state.counter += 1;
        }
        let [hi, lo] = state.counter.to_be_bytes();
        random[0] = hi;
        random[1] = lo;
        uuid::Builder::from_unix_timestamp_millis(state.last_ms, &random).into_uuid()
    }
}

impl GenState {
    fn draw(&mut self) -> [u8; 10] {
        self.drawn += 1;
        let digest = Sha256::new()
            .chain_update(self.seed)
            .chain_update(self.drawn.to_be_bytes())
            .finalize();
        let mut out = [0; 10];
        for (to, from) in out.iter_mut().zip(digest.iter()) {
            *to = *from;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_increase_within_a_millisecond_and_if_the_clock_steps_back() {
        let ids = IdGen::new([7; 32]);
        let mut last = ids.run(Timestamp::from_millis(1_000_000));
        for step in 0..20_000 {
            let now = Timestamp::from_millis(1_000_000 - (step % 3));
            let next = ids.run(now);
            assert!(next > last, "{next} after {last}");
            last = next;
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_ids() {
        let now = Timestamp::from_millis(5);
        assert_eq!(IdGen::new([1; 32]).run(now), IdGen::new([1; 32]).run(now));
        assert_ne!(IdGen::new([1; 32]).run(now), IdGen::new([2; 32]).run(now));
    }

    #[test]
    fn a_sandbox_id_has_exactly_one_form() {
        let ids = IdGen::new([3; 32]);
        let id = ids.sandbox(Timestamp::from_millis(9));
        assert_eq!(SandboxId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "sb_",
            "sb_../../../../../../../../../../../..",
            "SB_0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(SandboxId::parse(bad), None, "{bad}");
        }
    }
}

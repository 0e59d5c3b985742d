//! On whose behalf a run works. The slots for runs are shared among principals.

use errand_core::fair::Fair;
use errand_core::id::{ApiKeyId, TeamId, UserId};
use uuid::Uuid;

/// The starter of a run: an API key, or a person in the web interface. A child run has its parent's principal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal(Uuid);

impl Principal {
    /// The API key if one was used, otherwise the person.
    #[must_use]
    pub fn of(key: Option<ApiKeyId>, person: UserId) -> Self {
        Self(key.map_or(person.as_uuid(), ApiKeyId::as_uuid))
    }

    pub(crate) fn as_uuid(self) -> Uuid {
        self.0
    }

    pub(crate) fn from_stored(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

/// The slots for runs, shared fairly among teams, and within a team among principals.
pub type RunSlots = Fair<TeamId, Principal>;

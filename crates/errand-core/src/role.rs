//! Roles and what each may do: one table.

use serde::{Deserialize, Serialize};

/// A person's place in a team.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads, starts and steers runs, configures agents.
    Member,
    /// Also configures keys, connections, secrets, webhooks, members.
    Admin,
    /// Also makes owners.
    Owner,
}

/// What a call needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission {
    /// See the team's runs, messages, files, agents and builds.
    Read,
    /// Start, message, stop and retry runs; upload; answer requests.
    ManageRuns,
    /// Create and change agents and builds.
    ManageAgents,
    /// See, create and delete API keys.
    ManageKeys,
    /// Set providers of models up, and what the team may spend on them.
    ManageModels,
    /// Configure the team's webhooks, see and roll the webhook secret.
    ManageWebhooks,
    /// See, make and delete secrets.
    ManageSecrets,
    /// Make, change, probe and delete connections.
    ManageConnections,
    /// Add and remove members, change roles below owner.
    ManageMembers,
    /// Make owners.
    ManageOwners,
}

impl Role {
    /// All of them, the least first.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];

    /// The table of permissions.
    #[must_use]
    pub fn may(self, permission: Permission) -> bool {
        use Permission as P;
        match permission {
            P::Read | P::ManageRuns | P::ManageAgents => true,
            P::ManageKeys
            | P::ManageModels
            | P::ManageWebhooks
            | P::ManageSecrets
            | P::ManageConnections
            | P::ManageMembers => self >= Self::Admin,
            P::ManageOwners => self == Self::Owner,
        }
    }

    /// As stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// Reads [`Role::as_str`] back.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|r| r.as_str() == text)
    }
}

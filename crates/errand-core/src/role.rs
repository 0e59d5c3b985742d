//! Roles and their permissions, in one table.

use serde::{Deserialize, Serialize};

/// The role of a team's member. The order is significant: each role includes the permissions of the lesser ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads, starts and controls runs, and configures agents.
    Member,
    /// Also manages keys, connections, secrets, webhooks and members.
    Admin,
    /// Also appoints owners.
    Owner,
}

/// The permission that an operation requires of its caller.
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
    /// Set up model providers, and limit what the team may spend on them.
    ManageModels,
    /// Configure the team's webhooks; see and rotate the webhook secret.
    ManageWebhooks,
    /// See, create and delete secrets.
    ManageSecrets,
    /// Create, change, probe and delete connections.
    ManageConnections,
    /// Add and remove members; change roles below owner.
    ManageMembers,
    /// Appoint owners.
    ManageOwners,
}

impl Role {
    /// All roles, from least to most powerful.
    pub const ALL: [Self; 3] = [Self::Member, Self::Admin, Self::Owner];

    /// Whether this role includes a permission.
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

    /// The name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The inverse of [`Role::as_str`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Member, Self::Admin, Self::Owner]
            .into_iter()
            .find(|r| r.as_str() == text)
    }
}

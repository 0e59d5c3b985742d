//! The author of an action on a run: a person, a program with an API key, or the system itself.
//!
//! An API key's name is stored with the action as it was at that time, so that a deleted key is still named. The user
//! who created a key is accountable for its use, but is not the author of what the key does.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::id::{ApiKeyId, UserId};

/// The API key that an action was done with, as it was at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedKey {
    /// The key's id, not its secret.
    pub id: ApiKeyId,
    pub name: String,
}

/// The person who did something, either directly or with an API key of their own.
///
/// A person's stored form is the bare user id, so that records from before keys were stored remain readable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct By {
    /// The person, or the creator of the key.
    pub user: UserId,
    /// `None` if the person acted directly.
    pub key: Option<UsedKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    User(UserId),
    Key {
        user: UserId,
        key: ApiKeyId,
        name: String,
    },
}

impl From<Stored> for By {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::User(user) => user.into(),
            Stored::Key { user, key, name } => Self {
                user,
                key: Some(UsedKey { id: key, name }),
            },
        }
    }
}

impl From<By> for Stored {
    fn from(by: By) -> Self {
        match by.key {
            None => Self::User(by.user),
            Some(UsedKey { id, name }) => Self::Key {
                user: by.user,
                key: id,
                name,
            },
        }
    }
}

impl From<UserId> for By {
    fn from(user: UserId) -> Self {
        Self { user, key: None }
    }
}

impl By {
    /// The id of the API key, if the action was done with one.
    #[must_use]
    pub fn key_id(&self) -> Option<ApiKeyId> {
        self.key.as_ref().map(|key| key.id)
    }
}

/// The author of a message, a run or an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthorBody {
    /// `user`: a person in the web interface. `api_key`: a program with that key. `system`: the server itself, such as
    /// for a run that another run started, or a request that expired.
    #[schema(value_type = String, example = "api_key")]
    pub kind: AuthorKind,
    /// The user's id, or the key's; absent for the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// The key's name; absent for a user: `GET /v1/members/{user_id}` has the email address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user who created the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<Uuid>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorKind {
    /// A person in the web interface.
    User,
    /// A program with an API key.
    ApiKey,
    /// The server itself.
    System,
}

impl AuthorBody {
    /// The system itself: no person or program outside caused the action.
    #[must_use]
    pub fn system() -> Self {
        Self {
            kind: AuthorKind::System,
            id: None,
            name: None,
            created_by: None,
        }
    }

    /// A person. `None`: older records did not store who it was.
    #[must_use]
    pub fn user(user: Option<UserId>) -> Self {
        Self {
            kind: AuthorKind::User,
            id: user.map(UserId::as_uuid),
            ..Self::system()
        }
    }

    #[must_use]
    pub fn api_key(key: ApiKeyId, name: Option<String>, created_by: Option<UserId>) -> Self {
        Self {
            kind: AuthorKind::ApiKey,
            id: Some(key.as_uuid()),
            name,
            created_by: created_by.map(UserId::as_uuid),
        }
    }
}

impl From<Option<&By>> for AuthorBody {
    fn from(by: Option<&By>) -> Self {
        match by {
            None => Self::system(),
            Some(By { user, key: None }) => Self::user(Some(*user)),
            Some(By {
                user,
                key: Some(key),
            }) => Self::api_key(key.id, Some(key.name.clone()), Some(*user)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const USER: &str = "0198f2a4-7c1e-7000-8000-000000000001";
    const KEY: &str = "0198f2a4-7c1e-7000-8000-000000000002";

    #[test]
    fn a_person_is_stored_as_a_bare_user_id() {
        let by = By::from(USER.parse::<UserId>().unwrap());
        assert_eq!(serde_json::to_value(&by).unwrap(), json!(USER));
        assert_eq!(serde_json::from_value::<By>(json!(USER)).unwrap(), by);
    }

    #[test]
    fn a_key_is_stored_with_its_name_and_creator() {
        let stored = json!({"user": USER, "key": KEY, "name": "seed"});
        let by: By = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(by.key_id(), Some(KEY.parse().unwrap()));
        assert_eq!(serde_json::to_value(&by).unwrap(), stored);
        assert_eq!(
            serde_json::to_value(AuthorBody::from(Some(&by))).unwrap(),
            json!({"kind": "api_key", "id": KEY, "name": "seed", "created_by": USER})
        );
        assert_eq!(
            serde_json::to_value(AuthorBody::from(None)).unwrap(),
            json!({"kind": "system"})
        );
    }
}

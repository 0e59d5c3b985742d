//! Signing in to a connection's server with OAuth 2.1 as specified by MCP (discovery, dynamic client registration,
//! PKCE, refresh), implemented by `rmcp`.
//!
//! # Guarantees
//!
//! - Every address, including those that a server names, passes the guard before it is connected to, and redirects are
//!   checked too.
//! - Tokens are encrypted at rest and sent only to the connection's server. If the connection's address was changed, or
//!   it was signed out, before the tokens arrive, they are discarded.
//!
//! # Non-goals
//!
//! Surviving a restart: a started sign-in is kept in memory for ten minutes and must be started again after a restart.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use errand_core::id::{ConnectionId, TeamId, UserId};
use errand_core::secret;
use errand_core::time::Timestamp;
use errand_store::{Connection, MadeFor, Setup, Store};
use http::header::LOCATION;
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationRequest, AuthorizationSession,
    CredentialRefreshGuard, CredentialStore, OAuthClientConfig, OAuthHttpClient,
    OAuthHttpClientFuture, OAuthHttpRedirectPolicy, OAuthHttpRequest, StoredCredentials,
};
use url::Url;

use super::{Connections, locked};
use crate::net::{Bounds, GuardedClient};
use crate::secrets::Secrets;

/// Time limit for completing a sign-in.
const SIGN_IN_MS_MAX: u64 = 10 * 60 * 1000;
/// Maximum number of a team's pending sign-ins.
const BEGUN_MAX: usize = 20;
/// Maximum number of redirects during discovery.
const REDIRECTS_MAX: usize = 3;

/// Placeholder: a client's configuration requires a callback address, but a refresh does not use it.
const CALLBACK_OF_NONE: &str = "http://localhost/";

/// Limits for all requests of a sign-in.
const BOUNDS: Bounds = Bounds {
    connect: Duration::from_secs(10),
    total: Duration::from_secs(30),
    body_bytes_max: 1024 * 1024,
};

/// Pending sign-ins, by their `state`: an unguessable text that the callback brings back.
#[derive(Default)]
pub(super) struct SignIns {
    begun: Mutex<HashMap<String, Begun>>,
    /// Locks, so that each connection has one token refresh at a time: a refresh token can be used only once.
    refreshes: Mutex<HashMap<ConnectionId, Arc<tokio::sync::Mutex<()>>>>,
}

struct Begun {
    session: AuthorizationSession,
    ends: Timestamp,
    under_way: SignInUnderWay,
}

/// The person who started a sign-in, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BegunBy {
    pub user: UserId,
    /// Whether it was started in the web interface, where the callback finds the person's session, rather than over the
    /// API.
    pub in_web: bool,
}

/// A pending sign-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignInUnderWay {
    pub team: TeamId,
    pub connection: ConnectionId,
    pub by: BegunBy,
}

/// The address for a person who signs in.
pub struct SignIn {
    /// The page on which the person signs in.
    pub url: String,
    /// The time limit.
    pub ends: Timestamp,
}

/// Sends the requests of a sign-in through the guard.
struct Guarded(GuardedClient);

impl OAuthHttpClient for Guarded {
    fn execute(&self, request: OAuthHttpRequest) -> OAuthHttpClientFuture<'_> {
        Box::pin(async move {
            let follows = request.redirect_policy == OAuthHttpRedirectPolicy::Follow;
            let (parts, body) = request.request.into_parts();
            let mut url = Url::parse(&parts.uri.to_string())?;
            let body = Bytes::from(body);
            for _ in 0..=REDIRECTS_MAX {
                let sent = self.0.request(
                    parts.method.clone(),
                    &url,
                    parts.headers.clone(),
                    body.clone(),
                );
                let answer = sent.await?;
                if answer.body_is_cut {
                    return Err("the answer is too large, or broke off".into());
                }
                let next = answer
                    .headers
                    .get(LOCATION)
                    .and_then(|to| to.to_str().ok())
                    .and_then(|to| url.join(to).ok());
                match next {
                    // Redirects are followed only within the same origin, because the request's content is meant for
                    // that server.
                    Some(next)
                        if follows
                            && answer.status.is_redirection()
                            && parts.method == http::Method::GET
                            && next.origin() == url.origin() =>
                    {
                        url = next;
                    }
                    _ => {
                        let mut response = http::Response::new(answer.body.to_vec());
                        *response.status_mut() = answer.status;
                        *response.headers_mut() = answer.headers;
                        return Ok(response);
                    }
                }
            }
            Err("too many redirects".into())
        })
    }
}

/// The pre-registered client id and its secret, if the connection has them.
fn registered(
    connection: &Connection,
    secrets: &Secrets,
) -> Result<Option<(String, Option<String>)>, String> {
    let Setup::Http {
        client: Some(client),
        ..
    } = &connection.setup
    else {
        return Ok(None);
    };
    let secret = client.secret.as_deref().map(|text| secrets.fill_text(text));
    Ok(Some((client.id.clone(), secret.transpose()?)))
}

/// Stores a connection's tokens encrypted.
struct Sealed {
    store: Store,
    team: TeamId,
    connection: ConnectionId,
    made_for: MadeFor,
    refresh: Arc<tokio::sync::Mutex<()>>,
}

fn failed(error: impl std::fmt::Display) -> AuthError {
    AuthError::CredentialStoreError(error.to_string())
}

#[async_trait]
impl CredentialStore for Sealed {
    async fn load(&self) -> Result<Option<StoredCredentials>, AuthError> {
        let kept = self.store.sign_in(self.team, self.connection).await;
        let kept = kept.map_err(failed)?;
        kept.map(|plain| {
            serde_json::from_slice(&plain).map_err(|_| failed("the stored sign-in cannot be read"))
        })
        .transpose()
    }

    async fn save(&self, credentials: StoredCredentials) -> Result<(), AuthError> {
        let plain =
            serde_json::to_vec(&credentials).map_err(|_| failed("the sign-in cannot be stored"))?;
        let issuer = credentials.issuer.clone().unwrap_or_default();
        self.store
            .set_sign_in(
                self.team,
                self.connection,
                self.made_for.clone(),
                Some(plain),
                Some(issuer),
            )
            .await
            .map_err(failed)
    }

    async fn acquire_refresh_guard(&self) -> Result<Option<CredentialRefreshGuard>, AuthError> {
        let guard = Arc::clone(&self.refresh).lock_owned().await;
        Ok(Some(CredentialRefreshGuard::new(guard)))
    }

    async fn clear(&self) -> Result<(), AuthError> {
        self.store
            .set_sign_in(
                self.team,
                self.connection,
                self.made_for.clone(),
                None,
                None,
            )
            .await
            .map_err(failed)
    }
}

impl Connections {
    /// Creates a manager. `renews`: it refreshes an existing sign-in rather than making a new one.
    async fn manager(
        &self,
        connection: &Connection,
        renews: bool,
    ) -> Result<AuthorizationManager, String> {
        let Setup::Http { url, .. } = &connection.setup else {
            return Err("a program does not need a sign-in".to_owned());
        };
        let client = self
            .guard
            .client(BOUNDS)
            .map_err(|error| errand_core::error_chain::error_chain(&error))?;
        let client: Arc<dyn OAuthHttpClient> = Arc::new(Guarded(client));
        // A query that contains a secret is left out: the authorization server must not see it.
        let place = match url.split_once('?') {
            Some((place, query)) if !secret::marks_in(query).is_empty() => place,
            _ => url.as_str(),
        };
        let made = AuthorizationManager::new_with_oauth_http_client(place, client).await;
        let mut manager = made.map_err(|error| super::why::explain(&error))?;
        manager.set_credential_store(Sealed {
            store: self.store.clone(),
            team: connection.team,
            connection: connection.id,
            made_for: MadeFor {
                url: url.clone(),
                renews,
            },
            refresh: {
                let mut refreshes = locked(&self.sign_ins.refreshes);
                Arc::clone(refreshes.entry(connection.id).or_default())
            },
        });
        Ok(manager)
    }

    /// The manager that provides a connection's access token. `None` if the connection is not signed in.
    pub(super) async fn authorized(
        &self,
        connection: &Connection,
        secrets: &Secrets,
    ) -> Result<Option<AuthorizationManager>, String> {
        if connection.signed_in_at.is_none() {
            return Ok(None);
        }
        let mut manager = self.manager(connection, true).await?;
        match manager.initialize_from_store().await {
            Ok(true) => {
                if let Some((id, secret)) = registered(connection, secrets)? {
                    let mut config = OAuthClientConfig::new(id, CALLBACK_OF_NONE);
                    config.client_secret = secret;
                    manager
                        .configure_client(config)
                        .map_err(|error| super::why::explain(&error))?;
                }
                Ok(Some(manager))
            }
            Ok(false) => Err(super::why::SIGN_IN_AGAIN.to_owned()),
            Err(error) => Err(format!("the sign-in: {}", super::why::explain(&error))),
        }
    }

    /// Starts a sign-in. `callback`: the address to which the person returns, the same for all sign-ins, so that it can be
    /// registered with a server beforehand.
    ///
    /// # Errors
    /// A message that says what is wrong.
    pub async fn begin_sign_in(
        &self,
        connection: &Connection,
        by: BegunBy,
        callback: &str,
    ) -> Result<SignIn, String> {
        let mut manager = self.manager(connection, false).await?;
        let found = manager.resolve_metadata().await;
        let found = found.map_err(|error| super::why::explain(&error))?;
        manager.set_metadata(found.metadata);
        let mut request = AuthorizationRequest::new(callback)
            .with_client_name("errand")
            .with_application_type("web");
        let secrets = Secrets::of(&self.store, connection.team).await;
        let secrets = secrets.map_err(|error| {
            tracing::error!(connection.id = %connection.id, error = &error as &dyn std::error::Error, "the team's secrets cannot be opened");
            "the team's secrets cannot be opened; the log of the server says why".to_owned()
        })?;
        if let Some((id, secret)) = registered(connection, &secrets)? {
            request = request.with_preregistered_client(id);
            if let Some(secret) = secret {
                request = request.with_client_secret(secret);
            }
        }
        let session = AuthorizationSession::new(manager, request).await;
        let session = session.map_err(|(_, error)| super::why::explain(&error))?;
        let url = session.get_authorization_url().to_owned();
        // The address is opened in a person's browser, so only web pages are permitted.
        let page = Url::parse(&url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(page) = page else {
            return Err("the server's sign-in page does not have a web address".to_owned());
        };
        let state = page.query_pairs().find(|(name, _)| name == "state");
        let Some((_, state)) = state else {
            return Err("the address of the server's sign-in page has no state".to_owned());
        };
        let state = state.into_owned();
        let now = self.clock.now();
        let ends = now.plus_ms(SIGN_IN_MS_MAX);
        let mut begun = locked(&self.sign_ins.begun);
        begun.retain(|_, begun| begun.ends > now);
        let of_team = begun
            .values()
            .filter(|begun| begun.under_way.team == connection.team);
        if of_team.count() >= BEGUN_MAX {
            return Err("too many sign-ins are pending; try again in a few minutes".to_owned());
        }
        let under_way = SignInUnderWay {
            team: connection.team,
            connection: connection.id,
            by,
        };
        let one = Begun {
            session,
            ends,
            under_way,
        };
        begun.insert(state, one);
        Ok(SignIn { url, ends })
    }

    /// The pending sign-in with this `state`. `None` if there is none or it has expired.
    #[must_use]
    pub fn sign_in_under_way(&self, state: &str) -> Option<SignInUnderWay> {
        let now = self.clock.now();
        let begun = locked(&self.sign_ins.begun);
        let found = begun.get(state).filter(|begun| begun.ends > now);
        found.map(|begun| begun.under_way)
    }

    /// Completes a sign-in with the parameters of the callback. `None` if there is none or it has expired.
    pub async fn end_sign_in(
        &self,
        state: &str,
        code: &str,
        issuer: Option<&str>,
    ) -> Option<Result<(), String>> {
        let begun = locked(&self.sign_ins.begun).remove(state)?;
        if begun.ends <= self.clock.now() {
            return None;
        }
        let exchanged = begun
            .session
            .handle_callback_with_issuer(code, state, issuer)
            .await;
        Some(
            exchanged
                .map(drop)
                .map_err(|error| super::why::explain(&error)),
        )
    }
}

//! The state that the handlers of the API and of the pages share.
//!
//! [`AppState`] is created once, when the server starts. It dereferences to [`EngineContext`], so `app.store` is the
//! store.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use errand_core::id::{ApiKeyId, TeamId};
use errand_engine::EngineContext;

use crate::config::{Config, TrustedProxies, UnknownFields};
use crate::http::Layers;
use crate::http::client_address::FailedAuthentications;
use crate::http::cors::AllowedOrigins;
use crate::http::error::ApiError;
use crate::http::limiter::Limiter;
use crate::http::pages::Pages;
use crate::http::slots::{Holder, NoSlot, Slot, Slots};
use crate::http::streaming::Streams;
use crate::usecase::readiness::Readiness;

/// The `retry-after` of a client that found no free slot, in seconds.
const RETRY_SLOT_S: u64 = 5;

/// The settings that handlers need.
#[derive(Clone, Debug)]
pub(crate) struct AppSettings {
    /// The public address of the server, without a trailing slash.
    pub(crate) public_url: String,
    /// Whether the operator set the address. Otherwise it is the address on which the server listens.
    pub(crate) has_public_url: bool,
    /// The origins whose scripts may call the API.
    pub(crate) allowed_origins: AllowedOrigins,
    /// Whether unknown fields and query parameters are refused.
    pub(crate) unknown_fields_refused: bool,
    /// Requests per minute of one key; at least 1.
    pub(crate) requests_per_minute: u32,
    /// Failed authentications per minute of one address; at least 1.
    pub(crate) failed_auth_per_minute: u32,
    /// The proxies whose `x-forwarded-for` header is trusted.
    pub(crate) trusted_proxies: TrustedProxies,
    /// The size limit of a direct upload.
    pub(crate) direct_upload_bytes_max: u64,
    /// The size limit of an upload to an upload URL.
    pub(crate) url_upload_bytes_max: u64,
    /// The validity of an upload URL, in seconds.
    pub(crate) url_ttl_s: u64,
    /// The lifetime of a sandbox after its last use, in milliseconds.
    pub(crate) sandbox_ttl_ms: u64,
    /// Whether webhooks may go to private networks.
    pub(crate) allow_private_networks: bool,
    /// The time after which a body without new bytes ends.
    pub(crate) idle_timeout: Duration,
    /// The time after which a stream ends whose client reads nothing.
    pub(crate) unread_timeout: Duration,
    /// Maximum number of concurrent uploads of one key or person; at least 1.
    pub(crate) uploads_per_key: u32,
    /// Maximum number of concurrent uploads to one upload URL; at least 1.
    pub(crate) uploads_per_url: u32,
    /// Maximum number of concurrent uploads in total; at least 1.
    pub(crate) uploads_max: u32,
    /// Maximum number of concurrent event streams of one key or person; at least 1.
    pub(crate) streams_per_key: u32,
}

impl AppSettings {
    /// Extracts the settings. `public_url`: without a trailing slash.
    pub(crate) fn of(config: &Config, public_url: &str) -> Self {
        Self {
            public_url: public_url.to_owned(),
            has_public_url: config.server.public_url.is_some(),
            allowed_origins: AllowedOrigins::new(config.api.allowed_origins.iter().cloned()),
            unknown_fields_refused: config.api.unknown_fields == UnknownFields::Refuse,
            requests_per_minute: config.rate_limit.requests_per_minute,
            failed_auth_per_minute: config.rate_limit.failed_authentications_per_minute,
            trusted_proxies: config.server.trusted_proxies.clone(),
            direct_upload_bytes_max: config.uploads.direct_bytes_max,
            url_upload_bytes_max: config.uploads.url_bytes_max,
            url_ttl_s: config.uploads.url_ttl.as_secs(),
            sandbox_ttl_ms: u64::try_from(config.sandbox.ttl.as_millis()).unwrap_or(u64::MAX),
            allow_private_networks: config.webhooks.allow_private_networks,
            idle_timeout: config.server.idle_timeout,
            unread_timeout: config.server.unread_timeout,
            uploads_per_key: config.uploads.concurrent_per_key,
            uploads_per_url: config.uploads.concurrent_per_url,
            uploads_max: config.uploads.concurrent_max,
            streams_per_key: config.api.event_streams_per_key,
        }
    }
}

/// The state that handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Inner>);

/// The fields of an [`AppState`].
pub(crate) struct Inner {
    engine: EngineContext,
    pub(crate) settings: AppSettings,
    /// The layers that all routes share.
    pub(crate) layers: Layers,
    /// Renders the pages outside the web interface's table.
    pub(crate) pages: Pages,
    pub(crate) streams: Streams,
    pub(crate) readiness: Readiness,
    pub(crate) failed_authentications: FailedAuthentications,
    /// The rate limit.
    pub(crate) requests_by_key: Limiter<ApiKeyId>,
    /// The key that signs upload URLs. It is the same after a restart.
    pub(crate) upload_key: [u8; 32],
    /// The OpenAPI document, rendered at the first request.
    pub(crate) document: OnceLock<Bytes>,
    /// The documentation page, rendered at the first request.
    pub(crate) document_page: OnceLock<Bytes>,
    uploads: Slots,
    event_streams: Slots,
}

impl AppState {
    /// `upload_key` signs upload URLs. It must be the same after a restart.
    pub(crate) fn new(
        engine: EngineContext,
        upload_key: [u8; 32],
        settings: AppSettings,
        pages: Pages,
    ) -> Self {
        Self(Arc::new(Inner {
            layers: Layers::new(&engine, settings.idle_timeout, pages.error),
            pages,
            streams: Streams::new(&engine, settings.unread_timeout),
            readiness: Readiness::default(),
            failed_authentications: FailedAuthentications::new(
                settings.failed_auth_per_minute,
                settings.trusted_proxies.clone(),
            ),
            requests_by_key: Limiter::new(settings.requests_per_minute),
            upload_key,
            document: OnceLock::new(),
            document_page: OnceLock::new(),
            uploads: Slots::default(),
            event_streams: Slots::default(),
            settings,
            engine,
        }))
    }

    /// Takes a slot for an upload. `by`: the key, person or upload URL.
    ///
    /// # Errors
    /// 429 if `by` or its team has reached its limit; 503 if the server has reached its limit.
    pub(crate) fn begin_upload(&self, team: TeamId, by: Holder) -> Result<Slot, ApiError> {
        let settings = &self.settings;
        let by_max = match by {
            Holder::Url(_) => settings.uploads_per_url,
            _ => settings.uploads_per_key,
        };
        let team_max = settings.uploads_max.div_ceil(2);
        let holders = [
            (by, by_max as usize),
            (Holder::Team(team), team_max as usize),
        ];
        let taken = self.uploads.take(&holders, settings.uploads_max as usize);
        taken.map_err(|full| {
            let (whose, max) = match full {
                NoSlot::Holder(Holder::Url(_)) => ("to this upload URL", by_max),
                NoSlot::Holder(Holder::Key(_)) => ("of this key", by_max),
                NoSlot::Holder(Holder::Team(_)) => ("of this team", team_max),
                NoSlot::Holder(_) => ("of yours", by_max),
                NoSlot::Total => {
                    return ApiError::unavailable(
                        "the server has reached its limit of concurrent uploads: try again in a moment",
                    );
                }
            };
            let message = format!("{max} uploads {whose} are in progress, which is the limit: wait until one has ended");
            ApiError::rate_limited(message, RETRY_SLOT_S)
        })
    }

    /// Takes a slot for an event stream. `by`: the key or person.
    ///
    /// # Errors
    /// 429 if `by` has reached its limit.
    pub(crate) fn begin_stream(&self, by: Holder) -> Result<Slot, ApiError> {
        let max = self.settings.streams_per_key;
        let taken = self.event_streams.take(&[(by, max as usize)], usize::MAX);
        taken.map_err(|_| {
            let whose = match by {
                Holder::Person(_) => "you have",
                _ => "this key has",
            };
            let message =
                format!("{whose} {max} open event streams, which is the limit: close one");
            ApiError::rate_limited(message, RETRY_SLOT_S)
        })
    }
}

impl Deref for AppState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Deref for Inner {
    type Target = EngineContext;

    fn deref(&self) -> &EngineContext {
        &self.engine
    }
}

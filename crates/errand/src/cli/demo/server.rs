//! The demo's server: the whole program, in this process, on a free port and in its own directory.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use errand_client::Client;
use errand_engine::clock::Clock;

use super::super::api_client;
use crate::admin::{Admin, AdminAnswer, AdminRequest};
use crate::app::{App, Ingredients};
use crate::config::{self, Config, Flags};
use crate::secret_key::random_bytes;

pub(super) struct Server {
    pub(super) app: App,
    pub(super) client: Client,
    pub(super) key: String,
    pub(super) webhook_secret: String,
    /// Link that claims the server and opens its pages.
    pub(super) claim_link: Option<String>,
}

impl Server {
    pub(super) async fn start(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let app = App::start(settings(dir)?, listener, Ingredients::of_system()?).await?;
        match Self::prepare(&app).await {
            Ok((client, key, webhook_secret, claim_link)) => Ok(Self {
                app,
                client,
                key,
                webhook_secret,
                claim_link,
            }),
            Err(error) => {
                app.shut_down().await;
                Err(error)
            }
        }
    }

    async fn prepare(app: &App) -> Result<(Client, String, String, Option<String>)> {
        let admin = Admin::new(
            app.store().clone(),
            random_bytes()?,
            Clock::System,
            app.url().to_owned(),
        );
        let request = AdminRequest::CreateKey {
            name: "demo".to_owned(),
            expires_in_ms: None,
            team: None,
        };
        let AdminAnswer::Key { secret: key, .. } = admin.execute(request).await? else {
            bail!("no API key was created");
        };
        let AdminAnswer::WebhookSecret { secret } = admin
            .execute(AdminRequest::WebhookSecret { team: None })
            .await?
        else {
            bail!("no webhook secret was returned");
        };
        let claim_link = admin.claim_link().await?;
        let client = api_client(app.url(), &key)?;
        Ok((client, key, secret, claim_link))
    }

    pub(super) async fn stop(self) {
        self.app.shut_down().await;
    }
}

/// The default settings, regardless of the environment. Private networks are allowed, because the webhook receiver, and
/// perhaps a model or connection that someone tries, runs on this machine.
fn settings(dir: &Path) -> Result<Config> {
    let data_dir = dir.join("data").into_os_string().into_string();
    let data_dir = data_dir.ok().context(
        "the path of the temporary directory is not UTF-8; set TMPDIR to another directory",
    )?;
    let flags = Flags {
        data_dir: Some(data_dir),
        ..Flags::default()
    };
    let env = [
        ("ERRAND_WEBHOOKS__ALLOW_PRIVATE_NETWORKS", "true"),
        ("ERRAND_MODELS__ALLOW_PRIVATE_NETWORKS", "true"),
        ("ERRAND_CONNECTIONS__ALLOW_PRIVATE_NETWORKS", "true"),
        ("ERRAND_SERVER__SHUTDOWN_GRACE_S", "2"),
    ];
    let env: BTreeMap<_, _> = env
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    Ok(config::load(&flags, &env, None)?)
}

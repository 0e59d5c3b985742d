//! `errand builds`: an agent's builds, through the API. A build's configuration never changes; new runs use the live
//! build.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use errand_client::{BuildId, Promotion};
use serde_json::json;

use super::agents::{Paging, id_of, note_more};
use super::out::display;
use super::{CommandContext, RemoteServer, assignment, warn};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a build of an agent from a file and print its ID
    Create {
        /// ID or name of the agent
        agent: String,
        /// YAML or JSON, as for `errand agents create`; its `name` becomes the build's name
        file: PathBuf,
        /// Create a draft; `errand builds promote` makes it the live build later
        #[arg(long)]
        draft: bool,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Make a build the live one, which new runs use
    Promote {
        /// ID of the build
        build: BuildId,
        /// Also rename the build
        #[arg(long)]
        name: Option<String>,
        /// Also change the build's description
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// List an agent's builds
    List {
        /// ID or name of the agent
        agent: String,
        #[command(flatten)]
        page: Paging,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Show a build's configuration
    Get {
        /// ID of the build
        build: BuildId,
        #[command(flatten)]
        remote: RemoteServer,
    },
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Create {
            agent,
            file,
            draft,
            remote,
        } => {
            let mut body = assignment::read_build(&file)?;
            if draft && let Some(body) = body.as_object_mut() {
                body.insert("draft".to_owned(), json!(true));
            }
            let client = with.client(&remote)?;
            let created = client
                .create_build(&id_of(&client, &agent).await?, &body)
                .await?;
            if out.json() {
                return Ok(out.json_text(&created.text)?);
            }
            warn(with, &created.warnings)?;
            out.line(created.build.id.as_str())?;
        }
        Command::Promote {
            build,
            name,
            description,
            remote,
        } => {
            let mut promotion = Promotion::new();
            promotion.revision_name = name;
            promotion.revision_description = description;
            let client = with.client(&remote)?;
            let promoted = client.promote_build(&build, &promotion).await?;
            if out.json() {
                return Ok(out.json_text(&promoted.text)?);
            }
            out.note("The build is now live: new runs use it.")?;
        }
        Command::List {
            agent,
            page,
            remote,
        } => {
            let client = with.client(&remote)?;
            let list = client
                .builds(&id_of(&client, &agent).await?, page.request())
                .await?;
            if out.json() {
                return Ok(out.json_text(&list.text)?);
            }
            let (shown, total) = (list.items.len(), list.total);
            let rows = list.into_value().into_iter().map(|build| {
                [
                    build.id.into(),
                    build.number.to_string(),
                    build.status.to_string(),
                    build.name,
                    build.created_at.to_string(),
                ]
            });
            out.table(&["id", "number", "status", "name", "created"], rows)?;
            note_more(with, shown, page.offset, total)?;
        }
        Command::Get { build, remote } => {
            let build = with.client(&remote)?.build(&build).await?;
            if out.json() {
                return Ok(out.json_text(&build.text)?);
            }
            out.line(&display(&serde_json::to_string_pretty(&build.config)?))?;
        }
    }
    Ok(())
}

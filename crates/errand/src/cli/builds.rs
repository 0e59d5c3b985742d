//! `errand builds`: an agent's builds, through the API. A build never changes; a new one is what later runs use.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

use super::agents::{Paging, id_of, note_the_rest};
use super::out::printable;
use super::{Remote, Surroundings, assignment};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a build of an agent from a file and print its id
    Create {
        /// Id or name of the agent
        agent: String,
        /// YAML or JSON, as for `errand agents create`; its `name` names the build
        file: PathBuf,
        #[command(flatten)]
        remote: Remote,
    },
    /// List an agent's builds
    List {
        /// Id or name of the agent
        agent: String,
        #[command(flatten)]
        page: Paging,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a build's setup
    Get {
        /// The build's id
        build: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) async fn run(command: Command, with: &Surroundings) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Create {
            agent,
            file,
            remote,
        } => {
            let body = assignment::read_build(&file)?;
            let client = with.client(&remote)?;
            let created = client
                .create_build(&id_of(&client, &agent).await?, &body)
                .await?;
            if out.json() {
                return Ok(out.json_text(&created.text)?);
            }
            out.line(&created.value.build.id)?;
        }
        Command::List {
            agent,
            page,
            remote,
        } => {
            let client = with.client(&remote)?;
            let list = client
                .builds(&id_of(&client, &agent).await?, page.limit, page.offset)
                .await?;
            if out.json() {
                return Ok(out.json_text(&list.text)?);
            }
            let shown = list.value.builds.len();
            let rows = list.value.builds.into_iter();
            let rows = rows.map(|build| {
                [
                    build.id,
                    build.number.to_string(),
                    build.name,
                    build.created_at,
                ]
            });
            out.table(&["id", "number", "name", "created"], rows)?;
            note_the_rest(with, shown, page.offset, list.value.total)?;
        }
        Command::Get { build, remote } => {
            let build = with.client(&remote)?.build(&build).await?;
            if out.json() {
                return Ok(out.json_text(&build.text)?);
            }
            out.line(&printable(&serde_json::to_string_pretty(
                &build.value.build.config,
            )?))?;
        }
    }
    Ok(())
}

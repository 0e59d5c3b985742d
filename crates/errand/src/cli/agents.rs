//! `errand agents`: agents, through the API.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use errand_client::{AgentDetails, AgentId, Client, PageRequest, Reply};

use super::out::display;
use super::{CommandContext, RemoteServer, assignment, warn};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create an agent from a file and print its ID
    Create {
        /// YAML or JSON, see examples/invoices.yaml; `-` reads standard input
        file: PathBuf,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// List agents, newest first
    List {
        #[command(flatten)]
        page: Paging,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Show an agent and the build that new runs use
    Get {
        /// ID or name
        agent: String,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Delete an agent; its runs continue and stay readable
    Delete {
        /// ID or name
        agent: String,
        #[command(flatten)]
        remote: RemoteServer,
    },
}

/// Selects a page of a list.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Paging {
    /// Maximum number of entries
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(super) limit: u32,
    /// Number of entries to skip
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(super) offset: u64,
}

impl Paging {
    pub(super) fn request(&self) -> PageRequest {
        PageRequest::of(self.limit).offset(self.offset)
    }
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Create { file, remote } => {
            let body = assignment::read(&file)?;
            let created = with.client(&remote)?.create_agent(&body).await?;
            if out.json() {
                return Ok(out.json_text(&created.text)?);
            }
            warn(with, &created.warnings)?;
            out.line(created.agent.id.as_str())?;
        }
        Command::List { page, remote } => {
            let list = with.client(&remote)?.agents(page.request()).await?;
            if out.json() {
                return Ok(out.json_text(&list.text)?);
            }
            let (shown, total) = (list.items.len(), list.total);
            let rows = list.into_value().into_iter().map(|agent| {
                let created = agent.created_at.to_string();
                [agent.id.into(), agent.name, created]
            });
            out.table(&["id", "name", "created"], rows)?;
            note_more(with, shown, page.offset, total)?;
        }
        Command::Get { agent, remote } => {
            let client = with.client(&remote)?;
            let agent = client.agent(&id_of(&client, &agent).await?).await?;
            show(with, &agent)?;
        }
        Command::Delete { agent, remote } => {
            let client = with.client(&remote)?;
            client.delete_agent(&id_of(&client, &agent).await?).await?;
            out.note("The agent was deleted.")?;
        }
    }
    Ok(())
}

fn show(with: &CommandContext, reply: &Reply<AgentDetails>) -> Result<()> {
    let out = &with.out;
    if out.json() {
        return Ok(out.json_text(&reply.text)?);
    }
    let AgentDetails { agent, build, .. } = &reply.value;
    let mut rows = vec![
        ["id".to_owned(), agent.id.to_string()],
        ["name".to_owned(), agent.name.clone()],
        ["created".to_owned(), agent.created_at.to_string()],
    ];
    match build {
        Some(build) => rows.push([
            "build".to_owned(),
            format!("{} (number {}, {})", build.id, build.number, build.name),
        ]),
        None => rows.push([
            "build".to_owned(),
            "none; create one with `errand builds create`".to_owned(),
        ]),
    }
    out.table(&["agent", ""], rows)?;
    if let Some(build) = build {
        out.line("")?;
        out.line(&display(&serde_json::to_string_pretty(&build.config)?))?;
    }
    Ok(())
}

/// Notes on standard error that the list has more entries.
pub(super) fn note_more(
    with: &CommandContext,
    shown: usize,
    offset: u64,
    total: u64,
) -> Result<()> {
    let end = offset + shown as u64;
    if end < total {
        with.out.note(&format!(
            "{shown} of {total} shown; continue with --offset {end}"
        ))?;
    }
    Ok(())
}

/// Resolves an agent's ID or name to its ID.
///
/// # Errors
/// No agent has the name, or several agents have it.
pub(super) async fn id_of(client: &Client, agent: &str) -> Result<AgentId> {
    if agent.parse::<errand_core::id::AgentId>().is_ok() {
        return Ok(agent.into());
    }
    let named = client.agents_named(agent).await?;
    match named.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => bail!("no agent is named {agent:?}; `errand agents list` lists all agents"),
        several => {
            let ids: Vec<_> = several.iter().map(|agent| agent.id.as_str()).collect();
            Err(anyhow::anyhow!("use one of the IDs: {}", ids.join(", ")))
                .with_context(|| format!("{} agents are named {agent:?}", several.len()))
        }
    }
}

//! `errand connections`: MCP servers of the team and the settings of their tools, through the API.

use anyhow::{Result, bail};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use errand_client::{Client, Connection, ConnectionDetails, ConnectionId, ToolSettings, Transport};
use errand_core::connection::connection_of;

use super::agents::{Paging, note_more};
use super::{CommandContext, RemoteServer, warn};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the team's connections, sorted by name
    List {
        #[command(flatten)]
        page: Paging,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Show a connection and its tools
    Get(ConnectionArgs),
    /// Fetch the list of tools from a connection's server, and show it
    Probe(ConnectionArgs),
    /// Set whether a tool's results are trusted, and whether it reaches the open world
    ///
    /// Once a run has read an untrusted result, calls with the guard policy need an approval. Trust a tool only if
    /// nobody outside the team can write what it returns. Mailboxes and ticket systems, for example, contain text from
    /// strangers.
    SetTool(SetTool),
}

#[derive(Debug, Args)]
pub(super) struct ConnectionArgs {
    /// ID or name
    connection: String,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("setting").required(true).multiple(true).args(["trusted", "open_world"])))]
pub(super) struct SetTool {
    /// ID or name of the connection
    connection: String,
    /// Name of the tool, with or without the connection's prefix
    tool: String,
    /// Whether its results are trusted; default: the connection's own setting
    #[arg(long, value_name = "CHOICE")]
    trusted: Option<Choice>,
    /// Whether it reaches systems outside the team; default: what its server says
    #[arg(long, value_name = "CHOICE")]
    open_world: Option<Choice>,
    #[command(flatten)]
    remote: RemoteServer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    Yes,
    No,
    /// Remove the setting
    Default,
}

impl Choice {
    fn value(self) -> Option<bool> {
        match self {
            Self::Yes => Some(true),
            Self::No => Some(false),
            Self::Default => None,
        }
    }
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::List { page, remote } => list(&page, &remote, with).await,
        Command::Get(ConnectionArgs { connection, remote }) => {
            let client = with.client(&remote)?;
            let id = id_of(&client, &connection).await?;
            let found = client.connection(&id).await?;
            if out.json() {
                return Ok(out.json_text(&found.text)?);
            }
            show(&found.value, with)
        }
        Command::Probe(ConnectionArgs { connection, remote }) => {
            let client = with.client(&remote)?;
            let id = id_of(&client, &connection).await?;
            let probed = client.probe_connection(&id).await?;
            if out.json() {
                out.json_text(&probed.text)?;
            } else {
                show(&probed.value, with)?;
            }
            match probed.into_value().error {
                None => Ok(()),
                Some(error) => bail!("the connection's server could not be reached: {error}"),
            }
        }
        Command::SetTool(args) => set_tool(args, with).await,
    }
}

async fn list(page: &Paging, remote: &RemoteServer, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let list = with.client(remote)?.connections(page.request()).await?;
    if out.json() {
        return Ok(out.json_text(&list.text)?);
    }
    let (shown, total) = (list.items.len(), list.total);
    let rows = list.into_value().into_iter().map(|connection| {
        let tools = connection.tools.as_ref();
        let tools = tools.map_or_else(|| "-".to_owned(), |tools| tools.len().to_string());
        [
            connection.id.to_string(),
            connection.name.clone(),
            place(&connection.transport),
            tools,
            probed(&connection),
        ]
    });
    out.table(&["id", "name", "server", "tools", "probed"], rows)?;
    note_more(with, shown, page.offset, total)
}

fn place(transport: &Transport) -> String {
    let at = transport.url.as_deref().or(transport.command.as_deref());
    format!("{} {}", transport.kind, at.unwrap_or_default())
}

fn probed(connection: &Connection) -> String {
    let at = connection.probed_at;
    at.map_or_else(|| "never".to_owned(), |at| at.to_string())
}

fn show(reply: &ConnectionDetails, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let connection = &reply.connection;
    let rows = [
        ("id", connection.id.to_string()),
        ("name", connection.name.clone()),
        ("server", place(&connection.transport)),
        ("probed", probed(connection)),
    ]
    .map(|(name, value)| [name.to_owned(), value]);
    out.table(&["connection", ""], rows)?;
    show_tools(connection, with)?;
    warn(with, &reply.warnings)
}

fn show_tools(connection: &Connection, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    let Some(tools) = &connection.tools else {
        return Ok(out.note("Tools not loaded yet; run `errand connections probe`.")?);
    };
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let rows = tools.iter().map(|tool| {
        let is_set = connection.tool_settings.contains_key(&tool.name);
        [
            tool.name.clone(),
            match &tool.refused {
                Some(why) => format!("refused: {why}"),
                None => tool.policy.to_string(),
            },
            yes_or_no(tool.trusted),
            yes_or_no(tool.open_world),
            if is_set { "an admin" } else { "default" }.to_owned(),
        ]
    });
    out.line("")?;
    Ok(out.table(&["tool", "policy", "trusted", "open world", "set by"], rows)?)
}

async fn set_tool(args: SetTool, with: &CommandContext) -> Result<()> {
    let client = with.client(&args.remote)?;
    let id = id_of(&client, &args.connection).await?;
    let connection = client.connection(&id).await?.into_value().connection;
    let tool = if connection_of(&args.tool) == Some(connection.name.as_str()) {
        args.tool
    } else {
        format!("{}__{}", connection.name, args.tool)
    };
    // The API accepts any name, because a server may offer other tools later. Here, an unknown name is a typo.
    if let Some(tools) = &connection.tools
        && !tools.iter().any(|one| one.name == tool)
        && !connection.tool_settings.contains_key(&tool)
    {
        bail!(
            "connection {} has no tool {tool}; `errand connections get {}` lists its tools",
            connection.name,
            connection.name
        );
    }
    let mut settings = connection.tool_settings;
    let said = settings.entry(tool.clone()).or_default();
    if let Some(choice) = args.trusted {
        said.trusted = choice.value();
    }
    if let Some(choice) = args.open_world {
        said.open_world = choice.value();
    }
    if *said == ToolSettings::default() {
        settings.remove(&tool);
    }
    let changed = client.set_tool_settings(&id, &settings).await?;
    if with.out.json() {
        return Ok(with.out.json_text(&changed.text)?);
    }
    show(&changed.value, with)
}

/// Resolves a connection's ID or name to its ID.
///
/// # Errors
/// No connection has the name.
async fn id_of(client: &Client, connection: &str) -> Result<ConnectionId> {
    if connection.parse::<errand_core::id::ConnectionId>().is_ok() {
        return Ok(connection.into());
    }
    match client.connection_named(connection).await? {
        Some(found) => Ok(found.id),
        None => bail!(
            "no connection is named {connection:?}; `errand connections list` lists all connections"
        ),
    }
}

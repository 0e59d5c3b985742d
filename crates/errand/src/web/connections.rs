//! Connections: MCP servers whose tools assignments can use. Adds, probes, edits and removes them, and shows which
//! assignments use them.
//!
//! Addresses, headers and variables are validated by the functions that the API uses.

mod tool_settings;

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::connection::{NAME_CHARS_MAX, is_name};
use errand_core::id::{AgentId, ConnectionId};
use errand_core::policy::Policy;
use errand_core::role::Permission;
use errand_engine::connect::BegunBy;
use errand_store::model::PageQuery;
use errand_store::{Connection, ConnectionChange, Floors, Idempotent, NewConnection, Setup};
use maud::{Markup, html};
use url::Url;

use super::failure::{PageError, PageResult, sentence};
use super::form::{Fields, Form, FormState, OpenForm, Params, Path};
use super::guard::Visitor;
use super::layout::{Section, page_with_status};
use super::{Web, layout, text, ui};
use crate::usecase::UseCaseError;
use crate::usecase::connection_setup::{check_floors, check_settings, check_setup};
use crate::usecase::sign_in::{self, Callback};
use crate::usecase::webhook_url::address_to_show;

const LIMIT: u32 = 25;
/// Assignments that are searched for uses of a connection.
const AGENTS_MAX: u32 = 500;
/// Minimum policies in the form, with their labels.
const FLOORS: [(&str, &str); 4] = [
    ("", "None: as the server describes each tool"),
    (
        "guard",
        "Guard: ask once the run has read untrusted content",
    ),
    ("ask", "Ask: a person approves each call"),
    ("deny", "Deny: no tool can be called"),
];

pub(super) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let offset = params.get("offset").parse().unwrap_or(0);
    render_list(&web, &visitor, offset, &FormState::default()).await
}

async fn render_list(web: &Web, visitor: &Visitor, offset: u64, state: &FormState) -> PageResult {
    let query = PageQuery {
        limit: LIMIT,
        offset,
    };
    let found = web.store.list_connections(visitor.team_id(), query).await?;
    let shown = found.items.len() as u64;
    let body = html! {
        div.head { h1 { "Connections" } }
        p.lead { "A connection is an MCP server. Assignments can use its tools, each with its own policy." }
        div.card {
            @if found.items.is_empty() { (ui::empty("No connections yet", &html! { "Add a server to give assignments its tools." })) }
            @else {
                (table(visitor, &found.items))
                (ui::pager(offset, shown, found.total, u64::from(LIMIT), &|offset| format!("/connections?offset={offset}")))
            }
        }
        @if visitor.may(Permission::ManageConnections) {
            section.card.pad {
                div.head { h2 { "New connection" } }
                (ui::alert(state.message.as_deref()))
                (form(web, visitor, "/connections", &state.sent, None))
            }
        }
    };
    Ok(page_with_status(
        state.status(),
        visitor,
        "Connections",
        Section::Connections,
        &body,
    ))
}

fn table(visitor: &Visitor, connections: &[Connection]) -> Markup {
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Connection" } th scope="col" { "Server" } th.num scope="col" { "Tools" } th scope="col" { "Tools loaded" } } }
                tbody {
                    @for connection in connections {
                        tr {
                            td.title { a.mono href={ "/connections/" (connection.id) } { (ui::name(&connection.name)) } @if !tool_settings::trusted(connection).is_empty() { span.sub { "results trusted" } } }
                            td.mono { (server_of(connection, visitor)) }
                            td.num data-label="tools" { @match &connection.tools { Some(tools) => (tools.len()), None => "–" } }
                            td data-label="probed" { @match connection.probed_at { Some(at) => (ui::time(at, visitor.now)), None => span.dim { "never" } } }
                        }
                    }
                }
            }
        }
    }
}

fn server_of(connection: &Connection, visitor: &Visitor) -> String {
    match &connection.setup {
        Setup::Http { url, .. } => address_to_show(url, visitor.may(Permission::ManageConnections)),
        Setup::Stdio { command, .. } => command.clone(),
    }
}

/// The form. `there`: the connection that is edited; `None` for a new one.
fn form(
    web: &Web,
    visitor: &Visitor,
    action: &str,
    sent: &Fields,
    there: Option<&Connection>,
) -> Markup {
    let is_new = there.is_none();
    let is_probed = there.is_some_and(|of| of.tools.as_ref().is_some_and(|t| !t.is_empty()));
    let declared: Vec<&str> = web.connections.declared().collect();
    let kind = sent.given("kind").unwrap_or("http");
    let floor = sent.get("floor");
    html! {
        form.form method="post" action=(action) {
            (ui::form_token(visitor))
            @if is_new {
                div.field { label for="name" { "Name " span.hint { "the model sees its tools as name__tool" } } input #name name="name" value=(sent.get("name")) placeholder="mail" maxlength=(NAME_CHARS_MAX) required autocomplete="off"; }
            }
            fieldset {
                legend { "Server" }
                label.choice { input type="radio" name="kind" value="http" checked[kind == "http"]; span { "Remote server (URL)" } }
                div.field { label for="url" { "URL" } input #url name="url" type="url" value=(sent.get("url")) placeholder="https://mcp.example.com/mcp" autocomplete="off"; }
                label.choice { input type="radio" name="kind" value="stdio" checked[kind == "stdio"] disabled[declared.is_empty()]; span { "Local program (configured by your operator)" @if declared.is_empty() { span.hint { "errand.toml declares none" } } } }
                @if !declared.is_empty() {
                    div.field { label for="command" { "Program" } select #command name="command" { @for name in &declared { option value=(name) selected[sent.get("command") == *name] { (name) } } } }
                }
            }
            div.field.wide {
                label for="values" { "Headers or environment variables " span.hint { "one per line, NAME: value; insert a secret with {{ secret.NAME }}" } }
                textarea.code #values name="values" rows="3" spellcheck="false" placeholder="Authorization: Bearer {{ secret.MAIL_TOKEN }}" { (sent.get("values")) }
            }
            div.field {
                label for="floor" { "Minimum policy " span.hint { "for all tools; a build can only be stricter" } }
                select #floor name="floor" { @for (word, text) in FLOORS { option value=(word) selected[word == floor] { (text) } } }
            }
            @if let Some(connection) = there { (tool_settings::rows(connection, sent)) }
            @if !is_probed {
                label.choice { input type="checkbox" name="trusted" value="on" checked[sent.is_on("trusted")]; span { "Trust tool results" span.hint { "applies to tools that do not reach the open world; you can choose per tool once the tools are loaded" } } }
            }
            div.buttons { button.main { @if is_new { "Add" } @else { "Save" } } }
        }
    }
}

/// Parses lines of `NAME: value`.
fn values_of(text: &str) -> Result<BTreeMap<String, String>, PageError> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| {
                PageError::bad(format!("“{line}” has no colon. Write NAME: value."))
            })?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

fn setup_of(sent: &Fields) -> Result<Setup, PageError> {
    let values = values_of(sent.get("values"))?;
    Ok(if sent.get("kind") == "stdio" {
        Setup::Stdio {
            command: sent.get("command").to_owned(),
            env: values,
        }
    } else {
        Setup::Http {
            url: sent.get("url").trim().to_owned(),
            headers: values,
            client: None,
        }
    })
}

/// Applies the form's minimum policy to the connection's floors. Floors of single tools, which the form does not show,
/// stay.
fn floors_of(sent: &Fields, mut floors: Floors) -> Floors {
    match sent.given("floor").and_then(policy_of) {
        Some(policy) => floors.insert("*".to_owned(), policy),
        None => floors.remove("*"),
    };
    floors
}

fn policy_of(word: &str) -> Option<Policy> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

/// Names a refused field as the form does, without `transport.`.
fn with_form_names(error: UseCaseError) -> PageError {
    match error {
        UseCaseError::Invalid { field, message } => {
            let field = field.trim_start_matches("transport.");
            PageError::bad(format!("{field}: {message}"))
        }
        other => other.into(),
    }
}

pub(super) async fn create(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    match try_create(&web, &visitor, &sent).await {
        Ok(id) => Ok(Redirect::to(&format!("/connections/{id}")).into_response()),
        Err(error) => {
            let state = FormState::refused(error, sent)?;
            render_list(&web, &visitor, 0, &state).await
        }
    }
}

async fn try_create(
    web: &Web,
    visitor: &Visitor,
    sent: &Fields,
) -> Result<ConnectionId, PageError> {
    let name = sent.get("name").trim().to_owned();
    if !is_name(&name) {
        return Err(PageError::bad(format!(
            "The name must have 1 to {NAME_CHARS_MAX} lowercase letters, digits, “-” and single “_”, and must start with a letter."
        )));
    }
    let floors = floors_of(sent, Floors::new());
    check_floors(&name, &floors).map_err(with_form_names)?;
    let now = web.clock.now();
    let setup = setup_of(sent)?;
    check_setup(web, visitor.team_id(), &setup)
        .await
        .map_err(with_form_names)?;
    let new = NewConnection {
        id: web.ids.connection(now),
        team: visitor.team_id(),
        name,
        setup,
        floors,
        trusted: sent.is_on("trusted"),
        settings: BTreeMap::new(),
        by: visitor.user_id(),
        now,
    };
    let id = new.id;
    web.store
        .create_connection(new, Idempotent::not_recorded())
        .await?;
    Ok(id)
}

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
) -> PageResult {
    render_one(&web, &visitor, id, None, &FormState::default()).await
}

async fn render_one(
    web: &Web,
    visitor: &Visitor,
    id: ConnectionId,
    above: Option<&Markup>,
    state: &FormState,
) -> PageResult {
    let connection = web.store.connection(visitor.team_id(), id).await?;
    let users = users_of(web, visitor, id).await?;
    let manages = visitor.may(Permission::ManageConnections);
    let fields = state.fields_or(|| fields_of(&connection));
    let body = html! {
        div.crumbs { a href="/connections" { "Connections" } }
        div.head {
            h1 { (ui::name(&connection.name)) }
            (ui::id(&id.to_string()))
            @if manages {
                div.actions {
                    form method="post" action={ "/connections/" (id) "/probe" } { (ui::form_token(visitor)) button { (ui::icon("again")) "Fetch tools" } }
                    @if matches!(connection.setup, Setup::Http { .. }) {
                        form method="post" action={ "/connections/" (id) "/sign-in" } { (ui::form_token(visitor)) button { (ui::icon("key")) @if connection.signed_in_at.is_some() { "Sign in again" } @else { "Sign in" } } }
                    }
                    @if connection.signed_in_at.is_some() {
                        form method="post" action={ "/connections/" (id) "/sign-out" } data-confirm="Sign out? Calls that need this sign-in will fail." { (ui::form_token(visitor)) button { "Sign out" } }
                    }
                    form method="post" action={ "/connections/" (id) "/delete" } data-confirm="Remove this connection? Assignments that use it will lose its tools." { (ui::form_token(visitor)) button.risky { "Remove" } }
                }
            }
        }
        @if let Some(above) = above { (above) }
        div.grid-2 {
            div {
                section {
                    div.head { h2 { "Tools" } @if let Some(at) = connection.probed_at { span.dim.small { "loaded " (ui::time(at, visitor.now)) } } }
                    div.card { (tools(&connection)) }
                }
                @if manages {
                    section.card.pad {
                        div.head { h2 { "Edit" } }
                        (ui::alert(state.message.as_deref()))
                        (form(web, visitor, &format!("/connections/{id}"), &fields, Some(&connection)))
                    }
                }
            }
            div {
                dl.facts {
                    dt { "Server" } dd.mono { (server_of(&connection, visitor)) }
                    dt { "Trusted" } dd { (trusted_tools(&connection)) }
                    dt { "Signed in" } dd { @match &connection.signed_in_at { Some(issuer) => (issuer), None => "no" } }
                    dt { "Created" } dd { (ui::time(connection.created_at, visitor.now)) }
                }
                section {
                    div.head { h2 { "Used by" } }
                    @if users.is_empty() { p.dim.small { "No assignment uses it." } }
                    ul.files { @for (agent, name) in &users { li { a.name href={ "/assignments/" (agent) } { (ui::name(name)) } } } }
                }
            }
        }
    };
    Ok(page_with_status(
        state.status(),
        visitor,
        &connection.name,
        Section::Connections,
        &body,
    ))
}

fn trusted_tools(connection: &Connection) -> Markup {
    let trusted = tool_settings::trusted(connection);
    html! {
        @if !trusted.is_empty() {
            "The guard policy treats results as trusted from " span.mono { (trusted.join(", ")) } "."
        } @else if connection.trusted && connection.tools.is_none() {
            "All tools that do not reach the open world, once the tools are loaded."
        } @else { "no" }
    }
}

fn tools(connection: &Connection) -> Markup {
    let Some(tools) = connection.tools.as_ref() else {
        return ui::empty(
            "Tools not loaded yet",
            &html! { "Fetch the tools to see what the server offers." },
        );
    };
    if tools.is_empty() {
        return ui::empty(
            "The server has no tools",
            &html! { "Fetch the tools again when it has some." },
        );
    }
    html! {
        div.scroll {
            table.stack {
                thead { tr { th scope="col" { "Tool" } th scope="col" { "Effect" } th scope="col" { "Default policy" } } }
                tbody {
                    @for tool in tools {
                        @let policy = super::assignments::word_of(connection.view().default_policy(tool));
                        tr {
                            td.title { span.mono { (ui::name(&tool.name)) } span.sub dir="auto" { (text::exact_line(&text::clip(&tool.description, 300))) }
                                @if let Err(why) = errand_core::schema::weigh(&tool.input_schema) { span.sub { "Unavailable to assignments: the schema of its arguments cannot be checked (" (why) ")." } } }
                            td.small { (does(connection, tool)) }
                            td { (ui::state(policy, policy)) }
                        }
                    }
                }
            }
        }
    }
}

fn does(connection: &Connection, tool: &errand_core::connection::ProbedTool) -> String {
    let hints = &tool.hints;
    let effect = if hints.reads() {
        "read-only"
    } else {
        "makes changes"
    };
    let mut words = vec![effect];
    if hints.destructive && !hints.reads() {
        words.push("can delete");
    }
    if hints.idempotent {
        words.push("safe to retry");
    }
    if tool.is_open(connection.settings_of(&tool.name)) {
        words.push("reaches the open world");
    }
    words.join(", ")
}

fn fields_of(connection: &Connection) -> Fields {
    let mut fields = Fields::default();
    let values = match &connection.setup {
        Setup::Http { url, headers, .. } => {
            fields.set("kind", "http");
            fields.set("url", url);
            headers
        }
        Setup::Stdio { command, env } => {
            fields.set("kind", "stdio");
            fields.set("command", command);
            env
        }
    };
    let lines: Vec<String> = values
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    fields.set("values", &lines.join("\n"));
    if let Some(policy) = connection.floors.get("*") {
        fields.set("floor", super::assignments::word_of(*policy));
    }
    if connection.trusted {
        fields.set("trusted", "on");
    }
    fields
}

/// The assignments whose latest build uses the connection.
async fn users_of(
    web: &Web,
    visitor: &Visitor,
    id: ConnectionId,
) -> Result<Vec<(AgentId, String)>, PageError> {
    let all = PageQuery {
        limit: AGENTS_MAX,
        offset: 0,
    };
    let agents = web.store.list_agents(visitor.team_id(), all).await?;
    let wanted = id.to_string();
    let uses = |config: &serde_json::Value| {
        config
            .pointer("/data/connections")
            .and_then(serde_json::Value::as_array)
            .is_some_and(|ids| ids.iter().any(|id| id.as_str() == Some(&wanted)))
    };
    Ok(agents
        .items
        .into_iter()
        .filter(|(_, build)| build.as_ref().is_some_and(|build| uses(&build.config)))
        .map(|(agent, _)| (agent.id, agent.name))
        .collect())
}

pub(super) async fn save(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
    Form(sent): Form,
) -> PageResult {
    match try_save(&web, &visitor, id, &sent).await {
        Ok(()) => Ok(Redirect::to(&format!("/connections/{id}")).into_response()),
        Err(error) => {
            let state = FormState::refused(error, sent)?;
            render_one(&web, &visitor, id, None, &state).await
        }
    }
}

async fn try_save(
    web: &Web,
    visitor: &Visitor,
    id: ConnectionId,
    sent: &Fields,
) -> Result<(), PageError> {
    let team = visitor.team_id();
    let connection = web.store.connection(team, id).await?;
    let floors = floors_of(sent, connection.floors.clone());
    check_floors(&connection.name, &floors).map_err(with_form_names)?;
    let mut setup = setup_of(sent)?;
    check_setup(web, team, &setup)
        .await
        .map_err(with_form_names)?;
    // The form has no fields for the OAuth client, so it stays unchanged.
    if let (Setup::Http { client, .. }, Setup::Http { client: was, .. }) =
        (&mut setup, &connection.setup)
    {
        client.clone_from(was);
    }
    let (trusted, settings) = tool_settings::of_form(&connection, sent);
    check_settings(&connection.name, Some(&connection), &settings).map_err(with_form_names)?;
    // Trust in the tools of one server must not carry over to another server.
    let is_same_place = match (&setup, &connection.setup) {
        (Setup::Http { url, .. }, Setup::Http { url: was, .. }) => url == was,
        (Setup::Stdio { command, .. }, Setup::Stdio { command: was, .. }) => command == was,
        _ => false,
    };
    let change = ConnectionChange {
        setup: Some(setup),
        floors: Some(floors),
        trusted: Some(trusted),
        settings: is_same_place.then_some(settings),
    };
    web.store
        .change_connection(
            team,
            id,
            change,
            web.clock.now(),
            Idempotent::not_recorded(),
        )
        .await?;
    Ok(())
}

pub(super) async fn probe(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
    Form(_): Form,
) -> PageResult {
    let connection = web.store.connection(visitor.team_id(), id).await?;
    match web.connections.probe(&connection).await? {
        Ok(_) => Ok(Redirect::to(&format!("/connections/{id}")).into_response()),
        Err(error) => {
            let above = html! { div.alert role="alert" { "Could not reach the server: " (sentence(&error)) } };
            render_one(&web, &visitor, id, Some(&above), &FormState::default()).await
        }
    }
}

/// Shows a link to the page where the person signs in. Not a redirect: `form-action` forbids forms that lead to other
/// sites, and people should see where they go.
pub(super) async fn sign_in(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
    Form(_): Form,
) -> PageResult {
    let connection = web.store.connection(visitor.team_id(), id).await?;
    let by = BegunBy {
        user: visitor.user_id(),
        in_web: true,
    };
    let above = match sign_in::begin(&web, &connection, by, &web.settings.public_url).await {
        Ok(begun) => {
            let host = Url::parse(&begun.url).ok();
            let host = host.as_ref().and_then(Url::host_str).unwrap_or_default();
            html! {
                div.note.look role="status" {
                    p { "Sign in at " strong { (host) } ". You will return to this page afterwards. The link expires " (ui::time(begun.ends, visitor.now)) "." }
                    p { a.button.main #sign-in href=(begun.url) rel="noreferrer" { "Go to " (host) } }
                }
            }
        }
        Err(UseCaseError::Refused(why)) => {
            html! { div.alert role="alert" { (sentence(&why)) } }
        }
        Err(error) => return Err(error.into()),
    };
    render_one(&web, &visitor, id, Some(&above), &FormState::default()).await
}

/// Deletes the stored sign-in.
pub(super) async fn sign_out(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
    Form(_): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .sign_out(team, id, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to(&format!("/connections/{id}")).into_response())
}

/// Completes a sign-in that was started over the API, after the person has confirmed for whose connection it is.
pub(super) async fn confirm_sign_in(
    State(web): State<Web>,
    OpenForm(sent): OpenForm,
) -> PageResult {
    let begun = web.connections.sign_in_under_way(sent.get("state"));
    if begun.is_none_or(|begun| begun.by.in_web) {
        return Err(PageError::not_found());
    }
    let callback = Callback {
        code: sent.get("code").to_owned(),
        state: sent.get("state").to_owned(),
        issuer: sent.given("iss").map(str::to_owned),
    };
    sign_in::finish(&web, &callback).await?;
    Ok(layout::signed_in_page())
}

pub(super) async fn delete(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<ConnectionId>,
    Form(_): Form,
) -> PageResult {
    let (team, now) = (visitor.team_id(), web.clock.now());
    web.store
        .delete_connection(team, id, now, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to("/connections").into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_parsed_from_lines_with_a_colon() {
        let values = values_of("Authorization: Bearer {{ secret.X }}\n\n a : b:c \n")
            .ok()
            .unwrap();
        assert_eq!(values["Authorization"], "Bearer {{ secret.X }}");
        assert_eq!(values["a"], "b:c");
        assert!(values_of("no colon").is_err());
    }

    #[test]
    fn a_floor_is_the_name_of_a_policy() {
        assert_eq!(policy_of("ask"), Some(Policy::Ask));
        assert_eq!(policy_of("x"), None);
    }
}

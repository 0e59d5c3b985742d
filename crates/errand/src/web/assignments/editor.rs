//! The editor of an assignment. Saving creates a new build.
//!
//! Guarantees: parts of a build's `config` that the form does not show stay unchanged. An error appears next to its
//! field, for a playbook next to its line, and nothing that was typed is lost.

mod fields;

pub(super) use fields::yaml;

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::config::BadConfig;
use errand_core::display::is_name;
use errand_core::id::AgentId;
use errand_core::limits::{CONFIG_BYTES_MAX, NAME_CHARS_MAX};
use errand_core::policy;
use errand_store::model::{NewAgent, NewBuild, PageQuery};
use errand_store::{Connection, Idempotent, StoreError};
use maud::{Markup, html};
use serde_json::{Value, json};

use super::locate::line_of;
use super::{Tab, head, word_of};
use crate::usecase::UseCaseError;
use crate::usecase::build_checks::check_reach;
use crate::web::failure::{PageError, PageResult, sentence};
use crate::web::form::{Fields, Form, Path};
use crate::web::guard::Visitor;
use crate::web::layout::{Section, page_with_status};
use crate::web::{Web, text, ui};

/// Connections shown in the form.
const CONNECTIONS_MAX: u32 = 100;

/// Why a form is refused: the field, the message, and the line within a playbook.
pub(super) struct FieldError {
    field: String,
    message: String,
    line: Option<u64>,
}

impl FieldError {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: message.into(),
            line: None,
        }
    }
}

pub(in crate::web) async fn blank(State(web): State<Web>, visitor: Visitor) -> PageResult {
    let offered = offered(&web, &visitor).await?;
    let blank = json!({ "version": "v2", "data": {} });
    let fields = fields::of_config(&blank, &offered.connections);
    Ok(new_page(&visitor, &offered, &fields, None))
}

/// The choices in the form.
struct Offered {
    connections: Vec<Connection>,
    /// Tools that do not work on this server, and why.
    off: BTreeMap<String, String>,
    /// The assignments of the team, which `run_assignment` can start.
    assignments: Vec<(AgentId, String)>,
}

async fn offered(web: &Web, visitor: &Visitor) -> Result<Offered, StoreError> {
    let all = PageQuery {
        limit: CONNECTIONS_MAX,
        offset: 0,
    };
    let page = web.store.list_connections(visitor.team_id(), all).await?;
    let off = web
        .tools
        .iter()
        .filter_map(|tool| Some((tool.name().to_owned(), tool.unavailable()?)))
        .collect();
    let agents = web.store.list_agents(visitor.team_id(), all).await?;
    let assignments = agents
        .items
        .into_iter()
        .map(|(agent, _)| (agent.id, agent.name));
    Ok(Offered {
        connections: page.items,
        off,
        assignments: assignments.collect(),
    })
}

pub(in crate::web) async fn create(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let base = json!({ "version": "v2", "data": {} });
    let offered = offered(&web, &visitor).await?;
    let made = made(&web, &visitor, &sent, (base, &offered)).await?;
    let (name, config) = match made {
        Ok(made) => made,
        Err(error) => return Ok(new_page(&visitor, &offered, &sent, Some(&error))),
    };
    let now = web.clock.now();
    let agent = NewAgent {
        team: visitor.team_id(),
        id: web.ids.agent(now),
        name,
        build: Some(new_build(&web, &visitor, &sent, config)),
        created_by: visitor.user_id(),
        now,
    };
    let id = agent.id;
    web.store
        .create_agent(agent, Idempotent::not_recorded())
        .await?;
    Ok(Redirect::to(&format!("/assignments/{id}")).into_response())
}

pub(in crate::web) async fn edit(
    State(web): State<Web>,
    visitor: Visitor,
    Path(agent): Path<AgentId>,
) -> PageResult {
    let (agent, build) = web.store.agent(visitor.team_id(), agent).await?;
    let config = build.map_or_else(
        || json!({ "version": "v2", "data": {} }),
        |build| build.config,
    );
    let offered = offered(&web, &visitor).await?;
    let mut fields = fields::of_config(&config, &offered.connections);
    fields.set("name", &agent.name);
    Ok(edit_page(&visitor, &agent, &offered, &fields, None))
}

pub(in crate::web) async fn save(
    State(web): State<Web>,
    visitor: Visitor,
    Path(id): Path<AgentId>,
    Form(sent): Form,
) -> PageResult {
    let team = visitor.team_id();
    let (agent, build) = web.store.agent(team, id).await?;
    let base = build.as_ref().map_or_else(
        || json!({ "version": "v2", "data": {} }),
        |build| build.config.clone(),
    );
    let offered = offered(&web, &visitor).await?;
    let made = made(&web, &visitor, &sent, (base, &offered)).await?;
    let (name, config) = match made {
        Ok(made) => made,
        Err(error) => return Ok(edit_page(&visitor, &agent, &offered, &sent, Some(&error))),
    };
    let now = web.clock.now();
    if name != agent.name {
        web.store
            .rename_agent(
                team,
                id,
                name,
                (visitor.user_id(), now),
                Idempotent::not_recorded(),
            )
            .await?;
    }
    if build.is_none_or(|build| build.config != config) {
        let new = new_build(&web, &visitor, &sent, config);
        web.store
            .create_build(team, id, new, now, Idempotent::not_recorded())
            .await?;
    }
    Ok(Redirect::to(&format!("/assignments/{id}")).into_response())
}

/// Name and configuration from a form, validated like in the API. The inner error is for the person.
async fn made(
    web: &Web,
    visitor: &Visitor,
    sent: &Fields,
    (base, offered): (Value, &Offered),
) -> Result<Result<(String, Value), FieldError>, PageError> {
    let made = name_of(sent).and_then(|name| Ok((name, config_of(sent, base, offered)?)));
    let (name, config) = match made {
        Ok(made) => made,
        Err(error) => return Ok(Err(error)),
    };
    let parsed = match web.store.parse_config(&config) {
        Ok(parsed) => parsed,
        Err(bad) => return Ok(Err(error_at(&bad, sent))),
    };
    match check_reach(web, visitor.team_id(), &parsed, "").await {
        Ok(_) => Ok(Ok((name, config))),
        Err(UseCaseError::Invalid { field, message }) => {
            let path = field.strip_prefix("config.").unwrap_or(&field).to_owned();
            Ok(Err(error_at(&BadConfig { path, message }, sent)))
        }
        Err(error) => Err(error.into()),
    }
}

fn new_build(web: &Web, visitor: &Visitor, sent: &Fields, config: Value) -> NewBuild {
    let name = sent
        .given("build_name")
        .unwrap_or("Edited in the web interface");
    NewBuild {
        id: web.ids.build(web.clock.now()),
        name: name.chars().take(NAME_CHARS_MAX).collect(),
        description: None,
        config,
        created_by: visitor.user_id(),
        draft: false,
        warnings: Vec::new(),
    }
}

fn name_of(sent: &Fields) -> Result<String, FieldError> {
    let name = sent.get("name").trim();
    if !is_name(name) {
        let message = format!("The name must have 1 to {NAME_CHARS_MAX} visible characters.");
        return Err(FieldError::new("name", message));
    }
    Ok(name.to_owned())
}

/// Builds the configuration that a form describes, based on `base`.
fn config_of(sent: &Fields, base: Value, offered: &Offered) -> Result<Value, FieldError> {
    let config = fields::to_config(sent, base, &offered.connections)?;
    if config.to_string().len() > CONFIG_BYTES_MAX {
        return Err(FieldError::new(
            "instructions",
            format!("The whole configuration must not exceed {CONFIG_BYTES_MAX} bytes."),
        ));
    }
    Ok(config)
}

/// Finds the form field that belongs to a path in the configuration.
fn error_at(bad: &BadConfig, sent: &Fields) -> FieldError {
    let path = bad.path.trim_start_matches("data.");
    let message = sentence(&bad.message);
    let field = match path.split(['.', '[']).next().unwrap_or_default() {
        "models" => "model",
        "input" => "instructions",
        "tools" => "tools",
        "connections" => "connections",
        "assignments" => "assignments",
        "limits" => return FieldError::new(&path.replace("limits.", "limit_"), message),
        "human_requests" => "expires_in",
        "human_in_the_loop" => "people",
        "playbook" => {
            let inside = path.trim_start_matches("playbook").trim_start_matches('.');
            return FieldError {
                field: "playbook".to_owned(),
                message: if inside.is_empty() {
                    message
                } else {
                    format!("{inside}: {}", bad.message)
                },
                line: line_of(sent.get("playbook"), inside),
            };
        }
        _ => return FieldError::new("", format!("{path}: {}", bad.message)),
    };
    FieldError::new(field, message)
}

fn new_page(
    visitor: &Visitor,
    offered: &Offered,
    fields: &Fields,
    error: Option<&FieldError>,
) -> Response {
    let body = html! {
        div.crumbs { a href="/assignments" { "Assignments" } }
        div.head { h1 { "New assignment" } }
        (form(visitor, "/assignments/new", (offered, fields), error, "Create"))
    };
    respond(visitor, "New assignment", error, &body)
}

fn edit_page(
    visitor: &Visitor,
    agent: &errand_store::model::Agent,
    offered: &Offered,
    fields: &Fields,
    error: Option<&FieldError>,
) -> Response {
    let action = format!("/assignments/{}/edit", agent.id);
    let body = html! {
        (head(visitor, agent, Tab::Edit))
        (form(visitor, &action, (offered, fields), error, "Save as a new build"))
    };
    respond(visitor, &agent.name, error, &body)
}

fn respond(visitor: &Visitor, title: &str, error: Option<&FieldError>, body: &Markup) -> Response {
    let status = ui::status_of(error.is_some());
    page_with_status(status, visitor, title, Section::Assignments, body)
}

fn form(
    visitor: &Visitor,
    action: &str,
    (offered, fields): (&Offered, &Fields),
    error: Option<&FieldError>,
    does: &str,
) -> Markup {
    let of = |field: &str| error.filter(|error| error.field == field);
    html! {
        @if let Some(error) = error {
            div.alert role="alert" {
                "Could not save. "
                @if error.field.is_empty() { (error.message) }
                @else { a href={ "#" (error.field) } { "Check “" (error.field.replace('_', " ")) "”" } ": " (error.message) }
            }
        }
        form.form method="post" action=(action) {
            (ui::form_token(visitor))
            (line("name", "Name", "", fields, of("name"), true))
            (line("model", "Model", "provider/name, for example anthropic/claude-sonnet-4-5; builtin/playbook runs the playbook below", fields, of("model"), false))
            div.field.wide {
                label for="instructions" { "Instructions " span.hint { "Markdown; the agent reads this before anything else" } }
                textarea #instructions name="instructions" rows="8" aria-describedby=[of("instructions").map(|_| "instructions-wrong")] { (fields.get("instructions")) }
                (says("instructions", of("instructions")))
            }
            (connections_of(&offered.connections, fields, of("connections")))
            (policies(offered, fields, of("tools")))
            (assignments_of(&offered.assignments, fields, of("assignments")))
            (people(fields, of("expires_in"), of("people")))
            fieldset {
                legend { "Limits of a run " span.hint { "leave a field empty for no limit; by default the active time is limited to one day and a run can start 100 runs" } }
                div.row {
                    @for (name, label) in [("limit_steps", "Steps"), ("limit_tokens", "Tokens"), ("limit_cost_usd", "Budget (USD)"), ("limit_seconds", "Active time (seconds)"), ("limit_children", "Child runs")] {
                        (line(name, label, "", fields, of(name), false))
                    }
                }
            }
            (playbook(fields, of("playbook")))
            (line("build_name", "What changes with this build", "optional; shown in the list of builds", fields, None, false))
            div.buttons { button.main { (does) } a.button href=(action.trim_end_matches("/edit").trim_end_matches("/new")) { "Cancel" } }
        }
    }
}

fn says(field: &str, error: Option<&FieldError>) -> Markup {
    html! { @if let Some(error) = error { p.wrong id={ (field) "-wrong" } { (error.message) } } }
}

fn line(
    name: &str,
    label: &str,
    hint: &str,
    fields: &Fields,
    error: Option<&FieldError>,
    required: bool,
) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) @if !hint.is_empty() { " " span.hint { (hint) } } }
            input id=(name) name=(name) value=(fields.get(name)) required[required] autocomplete="off" aria-invalid=[error.map(|_| "true")] aria-describedby=[error.map(|_| format!("{name}-wrong"))];
            (says(name, error))
        }
    }
}

fn connections_of(offered: &[Connection], fields: &Fields, error: Option<&FieldError>) -> Markup {
    let chosen: Vec<&str> = fields.all("connection").collect();
    html! {
        @if !offered.is_empty() {
            fieldset #connections {
                legend { "Connections " span.hint { "a selected connection gives the assignment all of its tools that are not off below" } }
                (says("connections", error))
                @for connection in offered {
                    @let id = connection.id.to_string();
                    label.choice { input type="checkbox" name="connection" value=(id) checked[chosen.contains(&id.as_str())]; span.mono { (ui::name(&connection.name)) } }
                }
            }
        }
    }
}

fn assignments_of(
    offered: &[(AgentId, String)],
    fields: &Fields,
    error: Option<&FieldError>,
) -> Markup {
    let chosen: Vec<&str> = fields.all("assignment").collect();
    // A selected assignment that is not in the list stays selected.
    let known = |id: &str| offered.iter().any(|(of, _)| of.to_string() == id);
    html! {
        @if !offered.is_empty() || !chosen.is_empty() {
            fieldset #assignments {
                legend { "Other assignments " span.hint { "assignments that run_assignment can start; their runs are at least as strict as this one and count toward its token and cost limits" } }
                (says("assignments", error))
                @for (id, name) in offered {
                    @let id = id.to_string();
                    label.choice { input type="checkbox" name="assignment" value=(id) checked[chosen.contains(&id.as_str())]; (name) }
                }
                @for id in chosen.iter().filter(|id| !known(id)) {
                    label.choice { input type="checkbox" name="assignment" value=(id) checked; span.mono { (id) } }
                }
            }
        }
    }
}

fn policies(offered: &Offered, fields: &Fields, error: Option<&FieldError>) -> Markup {
    let probed = |name: &str| {
        let tools = offered.connections.iter().flat_map(|of| of.tools.iter());
        tools.flatten().any(|tool| tool.name == name)
    };
    // Tools of connections have their own groups below. A tool that its connection no longer has is listed with the
    // built-in ones.
    let names = fields::tools(fields)
        .into_iter()
        .filter(|name| !probed(name));
    html! {
        fieldset #tools {
            legend { "Tools " span.hint { "Allow: runs immediately · Ask: a person approves the exact call first · Guard: asks once the run has read untrusted content (for a tool that only reads public sources: and private content as well) · Deny: always refused · Off: not offered to the model" } }
            (says("tools", error))
            div.card.scroll {
                table.policies {
                    thead { tr { th scope="col" { "Tool" } @for word in fields::POLICIES { th.mid scope="col" { (word) } } } }
                    tbody {
                        @for name in names {
                            @let off = offered.off.get(&name);
                            (policy_row(&name, fields, &html! {
                                @if let Some(what) = about(&name) { span.sub { (what) } }
                                @if let Some(why) = off { span.off { (ui::state("off", "not available here")) " " (why) } }
                            }))
                        }
                    }
                    @for connection in offered.connections.iter().filter(|of| of.tools.as_ref().is_some_and(|tools| !tools.is_empty())) {
                        (tools_of(connection, fields))
                    }
                }
            }
        }
    }
}

/// The tools of a connection, each with its default policy.
fn tools_of(connection: &Connection, fields: &Fields) -> Markup {
    html! {
        tbody {
            tr {
                th.group scope="rowgroup" colspan="6" {
                    span.mono { (ui::name(&connection.name)) }
                    span.hint { "Applies if the connection is selected above. Tools that are off are not offered to the model." }
                }
            }
            @for tool in connection.tools.iter().flatten() {
                @let by_default = word_of(connection.view().default_policy(tool));
                (policy_row(&tool.name, fields, &html! {
                    " " span.small.dim { "default " (ui::state(by_default, by_default)) }
                    span.sub.clamp { (text::exact_line(&text::clip(&tool.description, 160))) }
                }))
            }
        }
    }
}

fn policy_row(name: &str, fields: &Fields, about: &Markup) -> Markup {
    let field = format!("tool.{name}");
    let chosen = fields.given(&field).unwrap_or("off");
    html! {
        tr {
            td { span.mono { (name) } (about) }
            @for word in fields::POLICIES {
                td.mid data-label=(word) { input type="radio" name=(field) value=(word) checked[word == chosen] aria-label={ (name) ": " (word) }; }
            }
        }
    }
}

/// A short description of a built-in tool.
fn about(name: &str) -> Option<&'static str> {
    policy::builtin(name)?;
    Some(match name {
        "list_files" => "lists a directory in the sandbox",
        "read_file" => "reads a file in the sandbox",
        "write_file" => "writes a file in the sandbox",
        "edit_file" => "changes part of a file",
        "search_files" => "searches files for text",
        "run_command" => "runs an isolated command in the sandbox",
        "request_approval" => "asks a person to approve or deny",
        "ask_human" => "asks a person questions",
        "fetch_url" => {
            "reads a web page; guard is recommended: with allow and no list of hosts in the build, it can send anything the run has read to any address"
        }
        "run_assignment" => "starts a run of another assignment and waits for its result",
        _ => return None,
    })
}

fn people(fields: &Fields, expires: Option<&FieldError>, error: Option<&FieldError>) -> Markup {
    let chosen = fields.given("on_expire").unwrap_or("deny");
    html! {
        fieldset #people {
            legend { "People" }
            label.choice {
                input type="checkbox" name="people" value="on" checked[fields.is_on("people")];
                span { "Runs can ask people" span.hint { "If off, calls that need approval are denied immediately." } }
            }
            (says("people", error))
            div.row {
                (line("expires_in", "Requests expire after", "for example 12h or 3d; empty: never", fields, expires, false))
                div.field {
                    label for="on_expire" { "When a request expires" }
                    select #on_expire name="on_expire" {
                        @for (word, text) in [("deny", "Deny it"), ("fail", "Fail the run"), ("continue", "Continue without an answer")] {
                            option value=(word) selected[word == chosen] { (text) }
                        }
                    }
                }
            }
        }
    }
}

fn playbook(fields: &Fields, error: Option<&FieldError>) -> Markup {
    let text = fields.get("playbook");
    html! {
        div.field.wide {
            label for="playbook" { "Playbook " span.hint { "YAML; fixed steps, run without a model by builtin/playbook" } }
            textarea.code #playbook name="playbook" rows=(if text.is_empty() { 6 } else { 16 }) spellcheck="false" aria-invalid=[error.map(|_| "true")] aria-describedby=[error.map(|_| "playbook-wrong")] { (text) }
            @if let Some(error) = error {
                div #playbook-wrong {
                    @match error.line {
                        None => p.wrong { (error.message) },
                        Some(at) => { p.wrong { "Line " (at) ": " (error.message) } (with_lines(text, at, &error.message)) }
                    }
                }
            }
        }
    }
}

/// The text with line numbers, and the message at the incorrect line.
fn with_lines(text: &str, at: u64, message: &str) -> Markup {
    html! {
        pre.block-code.lines tabindex="0" aria-label="The playbook with line numbers" {
            @for (line, number) in text.lines().zip(1_u64..) {
                span class=[(number == at).then_some("here")] { (line) }
                @if number == at { span.says { " " (message) } }
            }
        }
    }
}

//! The column next to a transcript: facts, steps with their durations, files, deliveries.

use std::collections::HashMap;

use errand_core::author::AuthorKind;
use errand_core::id::{RunId, SandboxId, UserId};
use errand_core::time::Timestamp;
use errand_core::transcript::{Body, Entry, ModelCall, Outcome};
use errand_core::wire::RunBody;
use maud::{Markup, html};

use crate::web::failure::PageError;
use crate::web::guard::Visitor;
use crate::web::{Web, files, runs, ui, webhooks};

/// Newest steps shown.
const STEPS_MAX: usize = 40;
const FILES_MAX: usize = 12;

pub(super) async fn of(
    web: &Web,
    visitor: &Visitor,
    run: &RunBody,
    entries: &[Entry],
) -> Result<Markup, PageError> {
    let id = RunId::from_stored(run.id);
    let deliveries = web.store.deliveries_of(visitor.team_id(), id).await?;
    let files = match run.sandbox_id.as_deref().and_then(SandboxId::parse) {
        Some(sandbox) => Some(files::top(web, visitor, &sandbox).await),
        None => None,
    };
    let steps = steps(entries);
    let started_by = started_by(web, run).await?;
    Ok(html! {
        (facts(run, started_by.as_ref(), visitor.now))
        section {
            div.head { h2 { "Files" } @if files.is_some() { a.small href={ "/runs/" (run.id) "/files" } { "All files" } } }
            @match files {
                None => p.dim.small { "No files yet." },
                Some(None) => p.dim.small { "The sandbox has expired." },
                Some(Some(found)) if found.is_empty() => p.dim.small { "The sandbox is empty." },
                Some(Some(found)) => (files::links(id, found.iter().take(FILES_MAX))),
            }
        }
        section {
            div.head { h2 { "Steps" } }
            (steps_list(&steps))
        }
        @if !deliveries.is_empty() {
            section {
                div.head { h2 { "Webhooks" } }
                @for delivery in &deliveries { (webhooks::delivery_fold(visitor, delivery)) }
            }
        }
    })
}

/// Who started a run: a person, or an API key and the person who created it.
async fn started_by(web: &Web, run: &RunBody) -> Result<Option<Markup>, PageError> {
    let Some(author) = &run.author else {
        return Ok(None);
    };
    let person = match author.kind {
        AuthorKind::User => author.id,
        AuthorKind::ApiKey => author.created_by,
        AuthorKind::System => return Ok(None),
    };
    let people = match person.map(UserId::from_stored) {
        Some(user) => web.store.emails_of(vec![user]).await?,
        None => HashMap::new(),
    };
    let email = people.into_values().next();
    Ok(match (author.kind, &author.name, email) {
        (AuthorKind::ApiKey, Some(key), Some(email)) => {
            Some(html! { (ui::api_key(key)) span.dim { " created by " (ui::name(&email)) } })
        }
        (AuthorKind::ApiKey, Some(key), None) => Some(ui::api_key(key)),
        (_, _, Some(email)) => Some(ui::name(&email)),
        _ => None,
    })
}

fn facts(run: &RunBody, started_by: Option<&Markup>, now: Timestamp) -> Markup {
    let usage = &run.usage;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "active time, shown with one decimal"
    )]
    let worked_ms = (usage.seconds * 1000.0) as u64;
    html! {
        dl.facts {
            dt { "Created" } dd { (ui::time(run.created_at, now)) @if let Some(source) = &run.source { " via " (runs::source_label(source)) } }
            @if let Some(started_by) = started_by { dt { "Started by" } dd { (started_by) } }
            @if let Some(end) = run.completed_at { dt { "Ended" } dd { (ui::time(end, now)) } }
            dt { "Active time" } dd { (ui::duration(worked_ms)) }
            dt { "Steps" } dd { (ui::number(usage.steps)) span.dim { " (" (usage.model_calls) " model, " (usage.tool_calls) " tool)" } }
            dt { "Tokens" } dd { (ui::number(usage.input_tokens)) " in, " (ui::number(usage.output_tokens)) " out" @if usage.cached_tokens > 0 { span.dim { " (" (ui::number(usage.cached_tokens)) " cached)" } } @if usage.estimated { span.dim { " (partly estimated: the provider did not report all counts)" } } }
            dt { "Cost" } dd {
                (ui::cost_of(usage.known_usd(), usage.cost_unknown_tokens))
                @if usage.cost_unknown_tokens > 0 { span.dim { " (no price is known for " (ui::number(usage.cost_unknown_tokens)) " tokens)" } }
            }
            @if let Some(error) = &run.error { dt { "Error" } dd { code { (error.code) } } }
            @if let Some(sandbox) = &run.sandbox_id { dt { "Sandbox" } dd { (ui::id(sandbox)) } }
        }
    }
}

/// An activity with its duration.
struct Step {
    kind: &'static str,
    name: String,
    from: Timestamp,
    /// `None` if it is still in progress.
    to: Option<Timestamp>,
    failed: bool,
    /// Tokens and cost, for a model call.
    note: Option<String>,
}

impl Step {
    fn new(kind: &'static str, name: &str, from: Timestamp, to: Option<Timestamp>) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            from,
            to,
            failed: false,
            note: None,
        }
    }
}

/// The step of a model call over the network.
fn model_step(call: &ModelCall, at: Timestamp) -> Step {
    let began = at.as_millis() - i64::try_from(call.ms).unwrap_or(0);
    let name = call.model.rsplit('/').next().unwrap_or(&call.model);
    let tokens = call.input_tokens + call.output_tokens;
    let unpriced = if call.unpriced { tokens } else { 0 };
    let about = if call.estimated { "about " } else { "" };
    Step {
        note: Some(format!(
            "{about}{} tokens, {}",
            ui::number(tokens),
            ui::cost_of(call.cost_usd, unpriced)
        )),
        ..Step::new("model", name, Timestamp::from_millis(began), Some(at))
    }
}

/// The steps in a part of a transcript. For a playbook, a model step is the time before its output.
fn steps(entries: &[Entry]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut open: Vec<(String, usize)> = Vec::new();
    let mut since: Option<Timestamp> = None;
    for entry in entries {
        let at = entry.at;
        match &entry.body {
            Body::Assistant { .. } | Body::ToolCall { .. } | Body::HumanRequest { .. } => {
                if let Some(from) = since.take().filter(|from| *from < at) {
                    steps.push(Step::new("model", "model", from, Some(at)));
                }
            }
            _ => {}
        }
        match &entry.body {
            Body::ModelCall { call } => {
                steps.push(model_step(call, at));
                since = None;
            }
            Body::ModelAttempt { call, .. } => steps.push(Step {
                failed: true,
                ..model_step(call, at)
            }),
            Body::ToolCall { call, .. } => {
                open.push((call.id.clone(), steps.len()));
                steps.push(Step::new("tool", &call.name, at, None));
            }
            Body::ToolResult {
                call_id, outcome, ..
            } => {
                close(
                    &mut steps,
                    &mut open,
                    call_id,
                    at,
                    matches!(outcome, Outcome::Error(_)),
                );
                since = Some(at);
            }
            Body::HumanRequest { request, .. } => {
                open.push((request.id.to_string(), steps.len()));
                steps.push(Step::new("person", "Waiting for an answer", at, None));
            }
            Body::HumanResponse { request_id, .. } => {
                close(&mut steps, &mut open, &request_id.to_string(), at, false);
                since = Some(at);
            }
            Body::Wait { until, .. } => {
                open.push((until.to_string(), steps.len()));
                steps.push(Step::new("timer", "timer", at, None));
            }
            Body::Woke { until } => {
                close(&mut steps, &mut open, &until.to_string(), at, false);
                since = Some(at);
            }
            Body::User { .. } | Body::Assistant { .. } | Body::Retried { .. } => since = Some(at),
            _ => {}
        }
    }
    steps
}

fn close(
    steps: &mut [Step],
    open: &mut Vec<(String, usize)>,
    id: &str,
    at: Timestamp,
    failed: bool,
) {
    let Some(place) = open.iter().position(|(of, _)| of == id) else {
        return;
    };
    let (_, index) = open.remove(place);
    if let Some(step) = steps.get_mut(index) {
        step.to = Some(at);
        step.failed = failed;
    }
}

fn steps_list(steps: &[Step]) -> Markup {
    let Some(first) = steps
        .get(steps.len().saturating_sub(STEPS_MAX)..)
        .filter(|shown| !shown.is_empty())
    else {
        return html! { p.dim.small { "No steps yet." } };
    };
    let from = first.iter().map(|step| step.from).min().unwrap_or_default();
    let to = first
        .iter()
        .map(|step| step.to.unwrap_or(step.from))
        .max()
        .unwrap_or_default();
    let whole = to.ms_since(from).max(1);
    let share = |ms: u64| (ms.saturating_mul(1000) / whole).min(1000);
    html! {
        ol.steps {
            @for step in first {
                @let took = step.to.map(|to| to.ms_since(step.from));
                @let x = share(step.from.ms_since(from)).min(990);
                @let wide = took.map_or(1000 - x, share).max(10).min(1000 - x);
                li {
                    svg.dot viewBox="0 0 8 8" aria-hidden="true" { rect class=(step.kind) width="8" height="8" rx="2" {} }
                    span { span.mono { (ui::name(&step.name)) } @if step.failed { " " (ui::state("failed", "error")) } @if let Some(note) = &step.note { span.sub.dim { (note) } } }
                    span.num.dim { @match took { Some(ms) => (ui::duration(ms)), None => "open" } }
                    svg.span viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true" {
                        rect.track width="1000" height="8" rx="2" {}
                        rect class=(step.kind) x=(x) width=(wide) height="8" rx="2" {}
                    }
                }
            }
        }
        @if steps.len() > STEPS_MAX { p.small.dim { "The newest " (STEPS_MAX) " steps." } }
    }
}

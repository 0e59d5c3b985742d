//! Reads the final state of all runs from the API.

use std::collections::BTreeMap;

use errand_core::wire::MessageBody;
use http::StatusCode;
use serde_json::Value;

use super::caller::{Call, Caller, Refused};
use super::check::{ObservedEvent, ObservedRun, Record};
use super::clients::{ClientRecords, has_ended, text};
use super::plan::{Planned, content};

const MESSAGES_PAGE: u64 = 50;
const RUNS_PAGE: usize = 100;

/// One record per run of the plan.
pub(super) async fn records(
    caller: &Caller,
    plan: &[Planned],
    stories: &ClientRecords,
) -> Vec<Record> {
    let mut records = Vec::with_capacity(plan.len());
    for planned in plan {
        let story = stories.get(&planned.number).cloned().unwrap_or_default();
        let seen = match story.ids.first() {
            Some(id) => one(caller, id, planned)
                .await
                .map_err(|refused| refused.why),
            None => Err("it was never accepted".to_owned()),
        };
        records.push(Record {
            number: planned.number,
            kind: planned.kind,
            expected: planned.expected(),
            ids: story.ids,
            refused: story.refused,
            seen,
        });
    }
    records
}

/// IDs of all runs.
pub(super) async fn listed(caller: &Caller) -> Result<Vec<String>, Refused> {
    let mut ids = Vec::new();
    loop {
        let path = format!(
            "/v1/runs?limit={RUNS_PAGE}&offset={}&sort_order=asc",
            ids.len()
        );
        let page = caller.json(&Call::get(path)).await?;
        let runs = page.pointer("/runs").and_then(Value::as_array);
        let runs = runs.map(Vec::as_slice).unwrap_or_default();
        for run in runs {
            ids.push(text(run, "/id")?);
        }
        if runs.len() < RUNS_PAGE {
            return Ok(ids);
        }
    }
}

async fn one(caller: &Caller, id: &str, planned: &Planned) -> Result<ObservedRun, Refused> {
    let got = caller.json(&Call::get(format!("/v1/runs/{id}"))).await?;
    let note = |pointer| got.pointer(pointer).filter(|value| !value.is_null());
    let note = note("/run/error").or_else(|| note("/run/waiting_on"));
    let (messages, messages_total) = messages(caller, id).await?;
    let events = if has_ended(&got) {
        events(caller, id).await?
    } else {
        Vec::new()
    };
    let sandbox = got.pointer("/run/sandbox_id").and_then(Value::as_str);
    let mut files = BTreeMap::new();
    for path in planned.expected().files.into_keys() {
        let there = match sandbox {
            Some(sandbox) => file(caller, sandbox, &path).await?,
            None => None,
        };
        files.insert(path, there);
    }
    Ok(ObservedRun {
        status: text(&got, "/run/status")?,
        note: note.map(Value::to_string).unwrap_or_default(),
        asks: got.pointer("/pending_human_request/id").is_some(),
        messages,
        messages_total,
        events,
        files,
    })
}

async fn messages(caller: &Caller, id: &str) -> Result<(Vec<MessageBody>, u64), Refused> {
    #[derive(serde::Deserialize)]
    struct Page {
        messages: Vec<MessageBody>,
        total: u64,
    }
    let mut all = Vec::new();
    loop {
        let offset = all.len();
        let path = format!("/v1/runs/{id}/messages?limit={MESSAGES_PAGE}&offset={offset}");
        let page = caller.bytes(&Call::get(path)).await?;
        let page: Page = serde_json::from_slice(&page)
            .map_err(|error| Refused::new(format!("its messages cannot be read: {error}")))?;
        let is_last = (page.messages.len() as u64) < MESSAGES_PAGE;
        all.extend(page.messages);
        if is_last {
            return Ok((all, page.total));
        }
    }
}

/// The event stream of a run that has ended, which the server closes.
async fn events(caller: &Caller, id: &str) -> Result<Vec<ObservedEvent>, Refused> {
    let call = Call::get(format!("/v1/runs/{id}/events"));
    let stream = String::from_utf8_lossy(&caller.bytes(&call).await?).into_owned();
    let mut events = Vec::new();
    for block in stream.split("\n\n") {
        let field = |name: &str| {
            let mut lines = block.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.trim_start()))
        };
        let Some(number) = field("id:").and_then(|number| number.parse().ok()) else {
            continue;
        };
        let data: Value = serde_json::from_str(field("data:").unwrap_or_default())
            .map_err(|error| Refused::new(format!("event {number} cannot be parsed: {error}")))?;
        let word = |key: &str| data.get(key).and_then(Value::as_str).map(str::to_owned);
        events.push(ObservedEvent {
            number,
            kind: field("event:").unwrap_or_default().to_owned(),
            id: word("id").unwrap_or_default(),
            status: word("status"),
        });
    }
    Ok(events)
}

/// `None` if the file does not exist.
async fn file(caller: &Caller, sandbox: &str, path: &str) -> Result<Option<String>, Refused> {
    let path = format!("/v1/sandboxes/{sandbox}/files/content?path={path}");
    match caller.bytes(&Call::get(path)).await {
        Ok(bytes) => Ok(Some(content(&bytes))),
        Err(refused) if refused.status == Some(StatusCode::NOT_FOUND) => Ok(None),
        Err(refused) => Err(refused),
    }
}

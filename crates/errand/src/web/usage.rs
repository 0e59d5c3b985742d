//! Usage: runs, tokens and cost by day, assignment, model and key, as charts, tables and CSV; what the team may spend in
//! a month.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::budget::TeamMonth;
use errand_core::role::Permission;
use errand_core::time::Timestamp;
use errand_store::Once;
use errand_store::model::{UsageBy, UsageRow, UsageSpan};
use http::StatusCode;
use http::header::{self, HeaderValue};
use maud::{Markup, html};

use super::failure::{PageError, Shown};
use super::form::{Fields, Form, Params};
use super::guard::Visitor;
use super::layout::{Section, page_with_status};
use super::{Web, ui};

const DAY_MS: i64 = 86_400_000;
/// What the pages show at most of each kind.
const ROWS: usize = 20;
/// What can be chosen.
const SPANS: [(&str, &str, i64); 4] = [
    ("7", "7 days", 7),
    ("30", "30 days", 30),
    ("90", "90 days", 90),
    ("365", "a year", 365),
];

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> Shown {
    render(&web, &visitor, &params, None).await
}

async fn render(web: &Web, visitor: &Visitor, params: &Fields, wrong: Option<&str>) -> Shown {
    let team = visitor.team_id();
    let days = days_of(params);
    let span = span_of(days, visitor.now);
    let by = async |by: UsageBy| web.store.usage(team, span, by).await;
    let by_day = by(UsageBy::Day).await?;
    let total = by(UsageBy::Total).await?;
    let by_agent = by(UsageBy::Agent).await?;
    let by_model = by(UsageBy::Model).await?;
    let by_key = by(UsageBy::Key).await?;
    let month = web.store.team_month(team, visitor.now).await?;
    let chosen = days.to_string();
    let body = html! {
        div.head {
            h1 { "Usage" }
            form.filters.actions method="get" action="/usage" {
                div.field {
                    label.visually-hidden for="days" { "Time" }
                    select #days name="days" data-submits {
                        @for (value, text, _) in SPANS { option value=(value) selected[value == chosen] { "The last " (text) } }
                    }
                }
                noscript { button { "Show" } }
            }
        }
        (tiles(total.first()))
        section { div.head { h2 { "By day" } (csv_link("day", days)) } (chart(&by_day, days, visitor.now)) }
        (table("By assignment", "agent", days, &by_agent, "deleted"))
        (table("By model", "model", days, &by_model, "–"))
        (table("By API key", "key", days, &by_key, "without a key: web, schedules, other runs"))
        (limit(visitor, month, wrong))
    };
    let status = if wrong.is_some() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    Ok(page_with_status(
        status,
        visitor,
        "Usage",
        Section::Usage,
        &body,
    ))
}

fn days_of(params: &Fields) -> i64 {
    let wanted = params.get("days");
    SPANS
        .iter()
        .find(|(value, _, _)| *value == wanted)
        .map_or(30, |(_, _, days)| *days)
}

fn span_of(days: i64, now: Timestamp) -> UsageSpan {
    UsageSpan {
        since: Some(Timestamp::from_millis(
            now.as_millis() - (days - 1) * DAY_MS,
        )),
        until: Some(now),
    }
}

fn tiles(total: Option<&UsageRow>) -> Markup {
    let tile = |name: &str, figure: String| {
        html! { div.card.tile { span.dim { (name) } span.figure { (figure) } } }
    };
    let of = |get: fn(&UsageRow) -> u64| ui::number(total.map_or(0, get));
    html! {
        div.tiles {
            (tile("Runs started", of(|row| row.runs)))
            (tile("Model calls", of(|row| row.model_calls)))
            (tile("Tokens in", of(|row| row.input_tokens)))
            (tile("Tokens out", of(|row| row.output_tokens)))
            (tile("Cost", ui::cost(total.map_or(0.0, |row| row.cost_usd))))
        }
    }
}

fn csv_link(by: &str, days: i64) -> Markup {
    html! { a.small href={ "/usage/csv?by=" (by) "&days=" (days) } download { "CSV" } }
}

/// Bars of cost, or, where nothing cost anything, of runs.
fn chart(rows: &[UsageRow], days: i64, now: Timestamp) -> Markup {
    let is_cost = rows.iter().any(|row| row.cost_usd > 0.0);
    #[expect(clippy::cast_precision_loss, reason = "a bar's height")]
    let value = |row: &UsageRow| {
        if is_cost {
            row.cost_usd
        } else {
            row.runs as f64
        }
    };
    let most = rows.iter().map(value).fold(0.0, f64::max);
    if most <= 0.0 {
        return html! { div.card { (ui::empty("Nothing was used in this time", &html! { "The chart begins with the first run." })) } };
    }
    let shown = |v: f64| {
        if is_cost {
            ui::cost(v)
        } else {
            format!("{v:.0}")
        }
    };
    let first = now.as_millis() / DAY_MS - (days - 1);
    let all = (0..days).map(|n| {
        let day: String = Timestamp::from_millis((first + n) * DAY_MS)
            .to_string()
            .chars()
            .take(10)
            .collect();
        let row = rows
            .iter()
            .find(|row| row.key.as_deref() == Some(day.as_str()));
        (n, day, row)
    });
    #[expect(clippy::cast_precision_loss, reason = "a year of days")]
    let wide = 848.0 / days as f64;
    html! {
        figure.card.chart {
            div.scroll tabindex="0" role="region" aria-label="Chart" {
                svg viewBox="0 0 900 176" role="img" aria-labelledby="usage-title" {
                    title #usage-title { @if is_cost { "Cost by day" } @else { "Runs by day" } }
                    line.grid x1="48" x2="896" y1="16" y2="16" {}
                    line.grid x1="48" x2="896" y1="144" y2="144" {}
                    text x="42" y="20" text-anchor="end" { (shown(most)) }
                    text x="42" y="148" text-anchor="end" { "0" }
                    @for (n, day, row) in all {
                        @if let Some(row) = row { (bar(n, wide, value(row) / most, &format!("{day}: {}, {}", ui::counted(row.runs, "run", "runs"), ui::cost(row.cost_usd)))) }
                    }
                }
            }
            figcaption.legend { @if is_cost { "US dollars by day (UTC)" } @else { "Runs started by day (UTC)" } }
        }
    }
}

fn bar(n: i64, wide: f64, share: f64, says: &str) -> Markup {
    #[expect(clippy::cast_precision_loss, reason = "a year of days")]
    let x = 48.0 + n as f64 * wide;
    let tall = (share * 128.0).max(1.0);
    html! {
        g {
            title { (says) }
            rect.bar-open x=(format!("{x:.1}")) y=(format!("{:.1}", 144.0 - tall)) width=(format!("{:.1}", (wide * 0.8).max(1.0))) height=(format!("{tall:.1}")) {}
        }
    }
}

/// What a row is called.
fn name_of<'a>(row: &'a UsageRow, none: &'a str) -> &'a str {
    row.label.as_deref().or(row.key.as_deref()).unwrap_or(none)
}

fn table(title: &str, by: &str, days: i64, rows: &[UsageRow], none: &str) -> Markup {
    html! {
        section {
            div.head { h2 { (title) } (csv_link(by, days)) }
            div.card {
                @if rows.is_empty() { (ui::empty("Nothing yet", &html! { "Rows come with the first run." })) }
                @else {
                    div.scroll {
                        table.stack {
                            thead { tr { th scope="col" { "Name" } @for name in ["Runs", "Model calls", "Tokens in", "of these cached", "Tokens out", "Cost"] { th.num scope="col" { (name) } } } }
                            tbody {
                                @for row in rows.iter().take(ROWS) {
                                    tr {
                                        td.title { (name_of(row, none)) }
                                        td.num data-label="runs" { (ui::number(row.runs)) }
                                        td.num data-label="calls" { (ui::number(row.model_calls)) }
                                        td.num data-label="in" { (ui::number(row.input_tokens)) }
                                        td.num data-label="cached" { (ui::number(row.cached_tokens)) }
                                        td.num data-label="out" { (ui::number(row.output_tokens)) }
                                        td.num data-label="cost" { (ui::cost(row.cost_usd)) }
                                    }
                                }
                            }
                        }
                    }
                    @if rows.len() > ROWS { p.pager { "The first " (ROWS) "; the others are in the CSV." } }
                }
            }
        }
    }
}

fn limit(visitor: &Visitor, month: TeamMonth, wrong: Option<&str>) -> Markup {
    html! {
        section.card.pad {
            div.head { h2 { "This month" } }
            p { strong { (ui::cost(month.spent_usd)) } " spent"
                @match month.limit_usd { Some(limit) => { " of " (ui::cost(limit)) } None => ", no limit" } "." }
            @if visitor.may(Permission::ManageModels) {
                (ui::alert(wrong))
                form.row.block method="post" action="/usage/limit" {
                    (ui::form_token(visitor))
                    div.field { label for="limit" { "Most US dollars in a month " span.hint { "empty: no limit; it is looked at before each model call" } } input #limit name="limit" inputmode="decimal" value=[month.limit_usd.map(|usd| usd.to_string())]; }
                    button { "Save" }
                }
            }
        }
    }
}

pub(super) async fn set_limit(State(web): State<Web>, visitor: Visitor, Form(sent): Form) -> Shown {
    let limit = match sent.given("limit").map(str::parse::<f64>) {
        None => None,
        Some(Ok(usd)) if usd.is_finite() && usd > 0.0 => Some(usd),
        Some(_) => {
            let wrong = "It takes a number above 0, or nothing.";
            return render(&web, &visitor, &Fields::default(), Some(wrong)).await;
        }
    };
    web.store
        .set_team_limit(
            visitor.team_id(),
            limit,
            web.clock.now(),
            Once::not_recorded(),
        )
        .await?;
    Ok(Redirect::to("/usage").into_response())
}

/// The same figures for a spreadsheet.
pub(super) async fn csv(State(web): State<Web>, visitor: Visitor, Params(params): Params) -> Shown {
    let (by, head) = match params.get("by") {
        "day" => (UsageBy::Day, "day"),
        "agent" => (UsageBy::Agent, "assignment_id"),
        "model" => (UsageBy::Model, "model"),
        "key" => (UsageBy::Key, "api_key_id"),
        _ => return Err(PageError::not_found()),
    };
    let span = span_of(days_of(&params), visitor.now);
    let rows = web.store.usage(visitor.team_id(), span, by).await?;
    let mut text = format!(
        "{head},name,runs,model_calls,input_tokens,cached_tokens,output_tokens,cost_usd\r\n"
    );
    for row in rows {
        let fields = [
            quoted(row.key.as_deref().unwrap_or_default()),
            quoted(row.label.as_deref().unwrap_or_default()),
            row.runs.to_string(),
            row.model_calls.to_string(),
            row.input_tokens.to_string(),
            row.cached_tokens.to_string(),
            row.output_tokens.to_string(),
            row.cost_usd.to_string(),
        ];
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    Ok(as_file(text, head))
}

fn as_file(text: String, name: &str) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/csv; charset=utf-8"),
    );
    if let Ok(value) =
        HeaderValue::try_from(format!("attachment; filename=\"usage-by-{name}.csv\""))
    {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

/// A field as RFC 4180 has it. One that a spreadsheet would take for a formula is made a text.
fn quoted(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        "'"
    } else {
        ""
    };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_formula_in_a_spreadsheet() {
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
        assert_eq!(quoted("=1+1"), "\"'=1+1\"");
        assert_eq!(quoted(""), "\"\"");
    }
}

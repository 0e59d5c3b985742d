//! Usage: runs, tokens and cost by day, assignment, model and key, as charts, tables and CSV; the team's monthly
//! budget.
//!
//! The figures and the CSV are those of `GET /v1/usage`. Only people who can see API keys see figures by key.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::budget::TeamMonth;
use errand_core::role::Permission;
use errand_core::time::{Day, Timestamp};
use errand_store::{Idempotent, UsageKey, UsageLine, UsageQuery, UsageSums};
use maud::{Markup, html};

use super::failure::{PageError, PageResult};
use super::form::{Fields, Form, Params};
use super::guard::Visitor;
use super::layout::{Section, page_with_status};
use super::{Web, ui};
use crate::http::file_response;
use crate::usecase::usage_csv::usage_csv;

/// Rows per table.
const ROWS: usize = 20;
/// Selectable periods in days.
const SPANS: [(&str, &str, i64); 4] = [
    ("7", "Last 7 days", 7),
    ("30", "Last 30 days", 30),
    ("90", "Last 90 days", 90),
    ("365", "Last year", 365),
];
/// The figures that have a chart.
const MEASURES: [Measure; 3] = [
    Measure {
        name: "Cost",
        of: |sums| sums.cost_usd,
        format: ui::cost,
    },
    Measure {
        name: "Tokens",
        of: |sums| float(sums.input_tokens + sums.output_tokens),
        format: ui::short,
    },
    Measure {
        name: "Runs started",
        of: |sums| float(sums.runs),
        format: ui::short,
    },
];

struct Measure {
    name: &'static str,
    of: fn(&UsageSums) -> f64,
    format: fn(f64) -> String,
}

#[expect(clippy::cast_precision_loss, reason = "the height of a bar")]
fn float(n: u64) -> f64 {
    n as f64
}

/// The selected days.
#[derive(Clone, Copy)]
struct Span {
    since: Day,
    until: Day,
    days: i64,
}

impl Span {
    fn of(params: &Fields, now: Timestamp) -> Self {
        let wanted = params.get("days");
        let chosen = SPANS.iter().find(|(value, _, _)| *value == wanted);
        let days = chosen.map_or(30, |(_, _, days)| *days);
        let until = now.day().plus(1);
        Self {
            since: until.plus(-days),
            until,
            days,
        }
    }

    fn query(self, visitor: &Visitor, by: UsageKey) -> UsageQuery {
        UsageQuery {
            team: visitor.team_id(),
            by: vec![by],
            since: self.since,
            until: self.until,
        }
    }
}

pub(super) async fn show(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    render(&web, &visitor, &params, None).await
}

async fn render(
    web: &Web,
    visitor: &Visitor,
    params: &Fields,
    message: Option<&str>,
) -> PageResult {
    let span = Span::of(params, visitor.now);
    let by = async |key: UsageKey| web.store.usage_by(span.query(visitor, key)).await;
    let (by_day, sum) = by(UsageKey::Day).await?;
    let (by_agent, _) = by(UsageKey::Agent).await?;
    let (by_model, _) = by(UsageKey::Model).await?;
    let by_key = if visitor.may(Permission::ManageKeys) {
        Some(by(UsageKey::ApiKey).await?.0)
    } else {
        None
    };
    let month = web.store.team_month(visitor.team_id(), visitor.now).await?;
    let chosen = span.days.to_string();
    let body = html! {
        div.head {
            h1 { "Usage" }
            form.actions method="get" action="/usage" {
                label.visually-hidden for="days" { "Period" }
                select #days name="days" {
                    @for (value, text, _) in SPANS { option value=(value) selected[value == chosen] { (text) } }
                }
                button { "Show" }
            }
        }
        (tiles(&sum))
        (unknown(&sum))
        section {
            div.head { h2 { "By day" } (csv_link("day", "day", span)) }
            (charts(&by_day, span))
        }
        (table("By assignment", "agent", span, &by_agent))
        (table("By model", "model", span, &by_model))
        @if let Some(by_key) = &by_key { (table("By API key", "key", span, by_key)) }
        (limit(visitor, month, message))
        (disk(web, visitor))
    };
    let status = ui::status_of(message.is_some());
    Ok(page_with_status(
        status,
        visitor,
        "Usage",
        Section::Usage,
        &body,
    ))
}

fn tiles(sum: &UsageSums) -> Markup {
    let tile = |name: &str, figure: String| {
        html! { div.card.tile { span.dim { (name) } span.figure { (figure) } } }
    };
    html! {
        div.tiles {
            (tile("Runs started", ui::number(sum.runs)))
            (tile("Model calls", ui::number(sum.model_calls)))
            (tile("Tokens in", ui::number(sum.input_tokens)))
            (tile("Tokens out", ui::number(sum.output_tokens)))
            (tile("Cost", ui::cost_of(sum.cost_usd, sum.unpriced_tokens)))
        }
    }
}

/// What the figures do not include, and which of them are estimates.
fn unknown(sum: &UsageSums) -> Markup {
    html! {
        @if sum.unpriced_tokens > 0 {
            p.small.dim {
                "The cost of " (ui::number(sum.unpriced_tokens)) " tokens is unknown because their models have no price. The operator can set one with "
                code { "[models.prices.\"provider/name\"]" } " or " code { "[models.default_price]" } "; it applies from then on."
            }
        }
        @if sum.estimated_tokens > 0 {
            p.small.dim { (ui::number(sum.estimated_tokens)) " tokens are estimated because the provider did not report counts." }
        }
    }
}

fn csv_link(by: &str, word: &str, span: Span) -> Markup {
    html! { a.small href={ "/usage/csv?by=" (by) "&days=" (span.days) } download aria-label={ "By " (word) ", as CSV" } { "CSV" } }
}

/// A chart for each figure that is not zero.
fn charts(lines: &[UsageLine], span: Span) -> Markup {
    let some: Vec<&Measure> = MEASURES
        .iter()
        .filter(|measure| lines.iter().any(|line| (measure.of)(&line.sums) > 0.0))
        .collect();
    if some.is_empty() {
        return html! { div.card { (ui::empty("No usage in this period", &html! { "The charts start with your first run." })) } };
    }
    html! { div.charts { @for measure in some { (chart(measure, lines, span)) } } }
}

fn chart(measure: &Measure, lines: &[UsageLine], span: Span) -> Markup {
    let value = |line: &UsageLine| (measure.of)(&line.sums);
    let most = lines.iter().map(value).fold(0.0, f64::max);
    let id = format!(
        "chart-{}",
        measure.name.split(' ').next().unwrap_or_default()
    );
    #[expect(clippy::cast_precision_loss, reason = "a year of days")]
    let wide = 292.0 / span.days as f64;
    let last = span.until.plus(-1).to_string();
    html! {
        figure.card.chart {
            figcaption { (measure.name) }
            svg viewBox="0 0 340 128" role="img" aria-labelledby=(id) {
                title id=(id) { (measure.name) " by day, at most " ((measure.format)(most)) }
                line.grid x1="44" x2="336" y1="12" y2="12" {}
                line.grid x1="44" x2="336" y1="104" y2="104" {}
                text x="38" y="16" text-anchor="end" { ((measure.format)(most)) }
                text x="38" y="108" text-anchor="end" { "0" }
                text x="44" y="122" { (span.since.to_string().get(5..).unwrap_or_default()) }
                text x="336" y="122" text-anchor="end" { (last.get(5..).unwrap_or_default()) }
                @for line in lines {
                    @if let Some(day) = line.day {
                        (bar(day.number() - span.since.number(), wide, value(line) / most, &format!("{day}: {}", (measure.format)(value(line)))))
                    }
                }
            }
        }
    }
}

fn bar(n: i64, wide: f64, share: f64, says: &str) -> Markup {
    if share <= 0.0 {
        return html! {};
    }
    #[expect(clippy::cast_precision_loss, reason = "a year of days")]
    let x = 44.0 + n as f64 * wide;
    let tall = (share * 92.0).max(1.0);
    html! {
        g {
            title { (says) }
            rect.bar-used x=(format!("{x:.1}")) y=(format!("{:.1}", 104.0 - tall)) width=(format!("{:.1}", (wide * 0.8).max(1.0))) height=(format!("{tall:.1}")) {}
        }
    }
}

/// The label of a row.
fn name_of(line: &UsageLine) -> Markup {
    if let Some(agent) = &line.agent {
        return html! { a href={ "/assignments/" (agent.id) } { (ui::name(agent.name.as_deref().unwrap_or("deleted"))) } };
    }
    if let Some(model) = &line.model {
        return html! { span.mono { (model) } };
    }
    match line.api_key.as_ref() {
        Some(Some(key)) => html! { (ui::name(key.name.as_deref().unwrap_or("a deleted key"))) },
        _ => html! { span.dim { "no key (web, schedules, other runs)" } },
    }
}

fn table(title: &str, by: &str, span: Span, lines: &[UsageLine]) -> Markup {
    let by_cost = lines.iter().any(|line| line.sums.cost_usd > 0.0);
    let weight = |line: &UsageLine| {
        if by_cost {
            line.sums.cost_usd
        } else {
            float(line.sums.runs)
        }
    };
    let most = lines.iter().map(weight).fold(0.0, f64::max);
    let word = title.trim_start_matches("By ");
    html! {
        section {
            div.head { h2 { (title) } (csv_link(by, word, span)) }
            div.card {
                @if lines.is_empty() { (ui::empty("No data yet", &html! { "Figures appear with your first run." })) }
                @else {
                    div.scroll {
                        table.stack {
                            thead { tr { th scope="col" { "Name" } @for name in ["Runs", "Model calls", "Tokens in", "Cached", "Tokens out", "Cost"] { th.num scope="col" { (name) } } } }
                            tbody { @for line in lines.iter().take(ROWS) { (row(line, weight(line), most)) } }
                        }
                    }
                    @if lines.len() > ROWS { p.pager { "The first " (ROWS) " rows. Download the CSV for all." } }
                }
            }
        }
    }
}

/// A row with a bar for its share.
fn row(line: &UsageLine, weight: f64, most: f64) -> Markup {
    let sums = &line.sums;
    let share = if weight > 0.0 {
        (weight / most * 100.0).max(1.0)
    } else {
        0.0
    };
    html! {
        tr {
            td.title {
                (name_of(line))
                svg.share viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true" { rect.bar-used width=(format!("{share:.1}")) height="4" rx="1" {} }
            }
            td.num data-label="runs" { (ui::number(sums.runs)) }
            td.num data-label="calls" { (ui::number(sums.model_calls)) }
            td.num data-label="in" { (ui::number(sums.input_tokens)) }
            td.num data-label="cached" { (ui::number(sums.cached_tokens)) }
            td.num data-label="out" { (ui::number(sums.output_tokens)) }
            td.num data-label="cost" { (ui::cost_of(sums.cost_usd, sums.unpriced_tokens)) }
        }
    }
}

fn limit(visitor: &Visitor, month: TeamMonth, message: Option<&str>) -> Markup {
    html! {
        section.card.pad {
            div.head { h2 { "This month" } }
            p {
                strong { (ui::cost(month.spent_usd)) } " spent"
                @match month.limit_usd { Some(limit) => { " of " (ui::cost(limit)) } None => ", no limit" } "."
                @if month.unpriced_tokens > 0 { " The cost of " (ui::number(month.unpriced_tokens)) " more tokens is unknown because their models have no price." }
            }
            @if month.limit_usd.is_some() {
                p.small.dim { "While there is a budget, models without a known price are not used." }
            }
            @if visitor.may(Permission::ManageModels) {
                (ui::alert(message))
                form.row.block method="post" action="/usage/limit" {
                    (ui::form_token(visitor))
                    div.field {
                        label for="limit" { "Monthly budget (USD) " span.hint { "leave empty for no limit; checked before each model call" } }
                        input #limit name="limit" inputmode="decimal" value=[month.limit_usd] autocomplete="off";
                    }
                    button { "Save" }
                }
            }
        }
    }
}

/// Disk usage of the team's sandboxes.
fn disk(web: &Web, visitor: &Visitor) -> Markup {
    let held = web.sandboxes.team_bytes(visitor.team_id());
    html! {
        section.card.pad {
            div.head { h2 { "Files" } }
            p {
                strong { (ui::size(held)) } " on the server's disk"
                @match web.sandboxes.team_bytes_max() { Some(most) => { " of " (ui::size(most)) } None => ", no limit" } "."
            }
            @if web.sandboxes.team_bytes_max().is_some_and(|most| held >= most) {
                (ui::alert(Some("The quota is used up, so uploads and runs that write files are refused. Delete sandboxes that you no longer need, or ask the operator to raise the quota.")))
            }
        }
    }
}

pub(super) async fn set_limit(
    State(web): State<Web>,
    visitor: Visitor,
    Form(sent): Form,
) -> PageResult {
    let limit = match sent.given("limit").map(str::parse::<f64>) {
        None => None,
        Some(Ok(usd)) if usd.is_finite() && usd > 0.0 => Some(usd),
        Some(_) => {
            let message = "The budget must be a number above 0, or empty.";
            return render(&web, &visitor, &Fields::default(), Some(message)).await;
        }
    };
    web.store
        .set_team_limit(
            visitor.team_id(),
            limit,
            web.clock.now(),
            Idempotent::not_recorded(),
        )
        .await?;
    Ok(Redirect::to("/usage").into_response())
}

/// The figures as CSV.
pub(super) async fn csv(
    State(web): State<Web>,
    visitor: Visitor,
    Params(params): Params,
) -> PageResult {
    let key = match params.get("by") {
        "day" => UsageKey::Day,
        "agent" => UsageKey::Agent,
        "model" => UsageKey::Model,
        "key" if visitor.may(Permission::ManageKeys) => UsageKey::ApiKey,
        _ => return Err(PageError::not_found()),
    };
    let query = Span::of(&params, visitor.now).query(&visitor, key);
    let (lines, _) = web.store.usage_by(query.clone()).await?;
    let name = format!("usage-{}-{}.csv", query.since, query.until);
    Ok(file_response::csv(&name, usage_csv(&query.by, &lines))?)
}

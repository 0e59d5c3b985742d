//! The home page: open requests, active runs, failures, and the last 30 days.

use std::collections::HashMap;

use axum::extract::State;
use errand_core::run::Status;
use errand_core::time::Timestamp;
use errand_store::DayFigures;
use errand_store::model::{PageQuery, RunFilter};
use maud::{Markup, html};

use super::failure::PageResult;
use super::guard::Visitor;
use super::layout::{Section, page};
use super::runs::{TableData, table};
use super::{Web, inbox, ui};

/// Days in the chart.
const DAYS: u32 = 30;
const DAY_MS: i64 = 86_400_000;
/// Requests and runs shown per list.
const SHOWN: u32 = 5;

pub(super) async fn show(State(web): State<Web>, visitor: Visitor) -> PageResult {
    let team = visitor.team_id();
    let first = PageQuery {
        limit: SHOWN,
        offset: 0,
    };
    let of = |statuses: Vec<Status>| RunFilter {
        statuses,
        ..RunFilter::default()
    };
    let open = web.store.open_requests(team, first).await?;
    let working = of(vec![Status::Pending, Status::Starting, Status::Running]);
    let working = web.store.list_runs(team, working, first).await?;
    let failed = web
        .store
        .list_runs(team, of(vec![Status::Failed]), first)
        .await?;
    let since = first_day(visitor.now);
    let days = web.store.figures_by_day(team, since).await?;
    let beside_working = TableData::of(&web, team, &working.items).await?;
    let beside_failed = TableData::of(&web, team, &failed.items).await?;
    let body = html! {
        div.head {
            h1 { "Home" }
            div.actions { a.button href="/assignments" { (ui::icon("play")) "Start a run" } }
        }
        (tiles(&days, open.total, working.total))
        section {
            div.head { h2 { "Needs your attention" } @if open.total > u64::from(SHOWN) { a href="/inbox" { "All " (open.total) " in the inbox" } } }
            @if open.items.is_empty() {
                div.card { (ui::empty("You're all caught up", &html! { "Runs that need an approval or an answer appear here." })) }
            } @else {
                div.card { (inbox::short(&open.items, visitor.now)) }
            }
        }
        section {
            div.head { h2 { "Running" } @if working.total > u64::from(SHOWN) { a href="/runs?status=working" { "All " (ui::number(working.total)) } } }
            div.card { (runs(&working.items, &beside_working, visitor.now, "No runs in progress", "Start a run from an assignment or through the API.")) }
        }
        section {
            div.head { h2 { "Failed" } @if failed.total > u64::from(SHOWN) { a href="/runs?status=failed" { "All " (ui::number(failed.total)) } } }
            div.card { (runs(&failed.items, &beside_failed, visitor.now, "No failed runs", "Runs that end with an error appear here, with a button to retry them.")) }
        }
        section {
            div.head { h2 { "The last 30 days" } }
            (chart(&days, visitor.now))
        }
    };
    Ok(page(&visitor, "Home", Section::Home, &body))
}

fn runs(
    items: &[errand_core::wire::RunBody],
    beside: &TableData,
    now: Timestamp,
    title: &str,
    more: &str,
) -> Markup {
    if items.is_empty() {
        return ui::empty(title, &html! { (more) });
    }
    table(items, beside, now)
}

/// The first day of the chart.
fn first_day(now: Timestamp) -> Timestamp {
    let today = now.as_millis() / DAY_MS;
    Timestamp::from_millis((today - i64::from(DAYS - 1)) * DAY_MS)
}

fn tiles(days: &[DayFigures], open: u64, working: u64) -> Markup {
    let sum = |of: fn(&DayFigures) -> u64| days.iter().map(of).sum::<u64>();
    let (completed, failed) = (sum(|day| day.completed), sum(|day| day.failed));
    let all = completed + failed + sum(|day| day.interrupted) + sum(|day| day.open);
    let cost: f64 = days.iter().map(|day| day.cost_usd).sum();
    let tile = |href: &str, name: &str, figure: String| {
        // A long figure would not fit beside another tile on a phone.
        let is_long = figure.len() > 9;
        html! { a.card.tile href=(href) { span.dim { (name) } span.figure.long[is_long] { (figure) } } }
    };
    html! {
        div.tiles {
            (tile("/inbox", "Needs your attention", ui::number(open)))
            (tile("/runs?status=working", "Running", ui::number(working)))
            (tile("/runs?since=30d", "Runs in 30 days", ui::number(all)))
            (tile("/runs?status=failed&since=30d", "Failed in 30 days", ui::number(failed)))
            (tile("/runs?since=30d", "Cost in 30 days", ui::cost(cost)))
        }
    }
}

/// A bar chart of runs per day as SVG, with the same data as a table for people who cannot see it.
fn chart(days: &[DayFigures], now: Timestamp) -> Markup {
    let by_day: HashMap<i64, &DayFigures> =
        days.iter().map(|day| (day.day.as_millis(), day)).collect();
    let first = first_day(now).as_millis();
    let none = DayFigures::default();
    let all: Vec<(Timestamp, &DayFigures)> = (0..i64::from(DAYS))
        .map(|n| first + n * DAY_MS)
        .map(|day| {
            (
                Timestamp::from_millis(day),
                by_day.get(&day).copied().unwrap_or(&none),
            )
        })
        .collect();
    let total = |day: &DayFigures| day.completed + day.failed + day.interrupted + day.open;
    let most = all.iter().map(|(_, day)| total(day)).max().unwrap_or(0);
    if most == 0 {
        return html! { div.card { (ui::empty("No runs in the last 30 days", &html! { "The chart starts with your first run." })) } };
    }
    let top = axis_top(most);
    html! {
        figure.card.chart {
            @for shape in [WIDE, NARROW] { (plot(&all, top, &shape)) }
            figcaption.legend {
                @for (kind, name) in [("completed", "completed"), ("failed", "failed"), ("interrupted", "stopped"), ("open", "in progress")] {
                    span { svg viewBox="0 0 10 10" aria-hidden="true" { rect class={ "bar-" (kind) } width="10" height="10" rx="2" {} } (name) }
                }
                @if max_cost(&all) > 0.0 { span { svg viewBox="0 0 10 10" aria-hidden="true" { line.line-cost x1="0" x2="10" y1="5" y2="5" {} } "cost, at most " (ui::cost(max_cost(&all))) " a day" } }
            }
            details.small {
                summary { "As a table" }
                div.scroll tabindex="0" role="region" aria-label="Runs by day" {
                    table {
                        thead { tr { th scope="col" { "Day" } @for name in ["Completed", "Failed", "Stopped", "In progress", "Cost"] { th.num scope="col" { (name) } } } }
                        tbody {
                            @for (at, day) in all.iter().rev().filter(|(_, day)| total(day) > 0) {
                                tr {
                                    td { (day_name(*at)) }
                                    @for n in [day.completed, day.failed, day.interrupted, day.open] { td.num { (ui::number(n)) } }
                                    td.num { (ui::cost(day.cost_usd)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Measures of the chart, in its own units.
struct Shape {
    class: &'static str,
    /// Width of the whole chart.
    width: usize,
    /// Where the first day begins.
    left: usize,
    /// Distance from one day to the next.
    pitch: usize,
    /// Width of one bar.
    bar: usize,
}

const WIDE: Shape = Shape {
    class: "wide",
    width: 900,
    left: 48,
    pitch: 28,
    bar: 20,
};
/// All days side by side in the width of a phone, in which the wide one would have to be scrolled to today.
const NARROW: Shape = Shape {
    class: "narrow",
    width: 340,
    left: 36,
    pitch: 10,
    bar: 7,
};

fn plot(all: &[(Timestamp, &DayFigures)], top: u64, shape: &Shape) -> Markup {
    let left = shape.left - 4;
    html! {
        svg class=(shape.class) viewBox={ "0 0 " (shape.width) " 176" } role="img" aria-label="Runs and cost by day, last 30 days" {
            @for (y, label) in [(16, top), (80, top / 2), (144, 0)] {
                line.grid x1=(left) x2=(shape.width - 4) y1=(y) y2=(y) {}
                text x=(left - 6) y=(y + 4) text-anchor="end" { (ui::number(label)) }
            }
            @for (index, (at, day)) in all.iter().enumerate() {
                (bar(index, *at, day, top, shape))
            }
            (cost_line(all, shape))
        }
    }
}

fn max_cost(all: &[(Timestamp, &DayFigures)]) -> f64 {
    all.iter().map(|(_, day)| day.cost_usd).fold(0.0, f64::max)
}

/// The cost per day as a line, with its own scale.
fn cost_line(all: &[(Timestamp, &DayFigures)], shape: &Shape) -> Markup {
    let most = max_cost(all);
    if most <= 0.0 {
        return html! {};
    }
    let points: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(index, (_, day))| {
            format!(
                "{},{:.1}",
                shape.left + index * shape.pitch + shape.bar / 2,
                144.0 - day.cost_usd / most * 128.0
            )
        })
        .collect();
    html! { polyline.line-cost points=(points.join(" ")) {} }
}

fn bar(index: usize, at: Timestamp, day: &DayFigures, top: u64, shape: &Shape) -> Markup {
    let x = shape.left + index * shape.pitch;
    // The name of a day near the edge ends at its bar, so that it is not cut.
    let is_at_edge = x + 24 > shape.width;
    let (label_x, anchor) = if is_at_edge {
        (x + shape.bar, "end")
    } else {
        (x + shape.bar / 2, "middle")
    };
    let height = |n: u64| (n * 128).div_ceil(top.max(1)).min(128);
    let mut y = 144;
    let mut parts = Vec::new();
    for (kind, n) in [
        ("bar-completed", day.completed),
        ("bar-failed", day.failed),
        ("bar-interrupted", day.interrupted),
        ("bar-open", day.open),
    ] {
        let tall = height(n).min(y - 16);
        if tall > 0 {
            y -= tall;
            parts.push((kind, y, tall));
        }
    }
    let runs = day.completed + day.failed + day.interrupted + day.open;
    let name = day_name(at);
    html! {
        g {
            title { (name) ": " (ui::counted(runs, "run", "runs")) ", " (day.failed) " failed, cost " (ui::cost(day.cost_usd)) }
            @for (kind, y, tall) in parts { rect class=(kind) x=(x) y=(y) width=(shape.bar) height=(tall) {} }
            rect x=(x) y="16" width=(shape.pitch) height="128" fill="transparent" {}
            @if index % 7 == 1 { text x=(label_x) y="162" text-anchor=(anchor) { (name.get(5..).unwrap_or_default()) } }
        }
    }
}

/// `2026-11-23`.
fn day_name(at: Timestamp) -> String {
    at.to_string().chars().take(10).collect()
}

/// The smallest round, even number that is at least `most`: the top of the axis.
fn axis_top(most: u64) -> u64 {
    let mut step = 1_u64;
    loop {
        for factor in [2, 4, 6, 8] {
            if step.saturating_mul(factor) >= most {
                return step.saturating_mul(factor);
            }
        }
        step = step.saturating_mul(10);
        if step > most {
            return step.max(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number() {
        for (most, top) in [
            (1, 2),
            (2, 2),
            (3, 4),
            (7, 8),
            (9, 10),
            (11, 20),
            (85, 100),
            (4_100, 6_000),
        ] {
            assert_eq!(axis_top(most), top, "{most}");
        }
    }
}

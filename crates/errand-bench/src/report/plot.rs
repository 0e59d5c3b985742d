//! Two kinds of SVG drawings: bars, and times by percentile.

use std::fmt::Write as _;

use crate::line::Curve;

/// Distinguishable for people with color vision deficiency.
const COLORS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const WIDTH: f64 = 860.0;
const ROW: f64 = 24.0;
const TOP: f64 = 40.0;
/// Left edge of the bars. Their labels are to the left of it.
const LEFT: f64 = 480.0;
/// Space to the right of a bar, for its figure.
const RIGHT: f64 = 100.0;

pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// The figure, as text.
    pub(super) shown: String,
}

/// Draws bars, with a line at `goal`. A bar longer than `most` is cut off and marked with an arrow.
pub(super) fn bars(title: &str, bars: &[Bar], goal: f64, most: f64) -> String {
    let longest = bars
        .iter()
        .map(|bar| bar.value.min(most))
        .fold(goal * 1.2, f64::max);
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value.clamp(0.0, longest) / longest;
    let height = TOP + ROW * bars.len() as f64 + 16.0;
    let mut svg = begin(title, height);
    for (n, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * n as f64;
        let color = if bar.value >= goal {
            "#009e73"
        } else {
            "#d55e00"
        };
        let end = x(bar.value.min(most));
        let arrow = if bar.value > most { " →" } else { "" };
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text><rect x="{LEFT:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="{color}"/><text x="{:.1}" y="{:.1}">{}{arrow}</text>"#,
            LEFT - 8.0,
            y + 15.0,
            escaped(&bar.label),
            y + 3.0,
            end - LEFT,
            ROW - 7.0,
            end + 6.0,
            y + 15.0,
            escaped(&bar.shown),
        );
        svg.push('\n');
    }
    let _ = writeln!(
        svg,
        r##"<line x1="{0:.1}" y1="{1:.1}" x2="{0:.1}" y2="{2:.1}" stroke="#222" stroke-dasharray="4 3"/>"##,
        x(goal),
        TOP - 4.0,
        height - 12.0
    );
    svg.push_str("</svg>\n");
    svg
}

/// Draws times by percentile on two logarithmic axes: each step to the right is ten times rarer, each step upwards
/// ten times longer.
pub(super) fn percentiles(title: &str, curves: &[&Curve]) -> String {
    const LEFT: f64 = 70.0;
    let (plot_bottom, legend) = (380.0, ROW * curves.len() as f64);
    let height = plot_bottom + 40.0 + legend;
    let values = || {
        let points = curves.iter().flat_map(|curve| &curve.points);
        points.map(|(_, ms)| *ms).filter(|ms| *ms > 0.0)
    };
    let low = values()
        .fold(f64::INFINITY, f64::min)
        .min(1.0)
        .log10()
        .floor();
    let high = values().fold(1.0, f64::max).log10().ceil().max(low + 1.0);
    // The 50th percentile is at 0.3, the 99.9th at 3, and the maximum at 3.5.
    let place = |percent: f64| {
        if percent >= 100.0 {
            3.5
        } else {
            -(1.0 - percent / 100.0).log10()
        }
    };
    let x = |percent: f64| LEFT + (WIDTH - LEFT - 30.0) * place(percent) / 3.5;
    let y = |ms: f64| {
        let log = ms.max(10_f64.powf(low)).log10();
        plot_bottom - (plot_bottom - TOP) * (log - low) / (high - low)
    };
    let mut svg = begin(title, height);
    let mut power = low;
    while power <= high {
        let ms = 10_f64.powf(power);
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" y1="{0:.1}" x2="{1}" y2="{0:.1}" stroke="#ddd"/><text x="{2}" y="{3:.1}" text-anchor="end">{ms} ms</text>"##,
            y(ms),
            WIDTH - 30.0,
            LEFT - 6.0,
            y(ms) + 4.0,
        );
        power += 1.0;
    }
    for (percent, name) in [
        (50.0, "p50"),
        (90.0, "p90"),
        (99.0, "p99"),
        (99.9, "p99.9"),
        (100.0, "max"),
    ] {
        let _ = writeln!(
            svg,
            r##"<line x1="{0:.1}" y1="{TOP}" x2="{0:.1}" y2="{plot_bottom}" stroke="#ddd"/><text x="{0:.1}" y="{1}" text-anchor="middle">{name}</text>"##,
            x(percent),
            plot_bottom + 18.0,
        );
    }
    for (n, (curve, color)) in curves.iter().zip(COLORS.iter().cycle()).enumerate() {
        let points: Vec<String> = curve
            .points
            .iter()
            .map(|(percent, ms)| format!("{:.1},{:.1}", x(*percent), y(*ms)))
            .collect();
        let line = plot_bottom + 44.0 + ROW * n as f64;
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2"/><rect x="{LEFT}" y="{:.1}" width="16" height="4" fill="{color}"/><text x="{}" y="{line:.1}">{}</text>"#,
            points.join(" "),
            line - 6.0,
            LEFT + 24.0,
            escaped(&curve.name),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n<text x=\"12\" y=\"22\" font-size=\"15\">{}</text>\n",
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

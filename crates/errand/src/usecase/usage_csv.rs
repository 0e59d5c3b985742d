//! The usage report as a CSV file.

use errand_store::{UsageKey, UsageLine};

use super::csv::Csv;

/// The report, with a column for each key by which it is grouped.
pub(crate) fn usage_csv(by: &[UsageKey], lines: &[UsageLine]) -> String {
    let is = |key: UsageKey| by.contains(&key);
    let mut head = Vec::new();
    for (key, columns) in [
        (UsageKey::Day, &["day"][..]),
        (UsageKey::Agent, &["agent_id", "agent_name"]),
        (UsageKey::Model, &["model"]),
        (UsageKey::ApiKey, &["api_key_id", "api_key_name"]),
    ] {
        if is(key) {
            head.extend_from_slice(columns);
        }
    }
    head.extend_from_slice(&[
        "runs",
        "model_calls",
        "input_tokens",
        "cached_tokens",
        "output_tokens",
        "cost_usd",
        "model_seconds",
    ]);
    let mut csv = Csv::new(&head);
    for line in lines {
        if let Some(day) = line.day {
            csv.value(day);
        }
        if is(UsageKey::Agent) {
            let agent = line.agent.as_ref();
            csv.value(agent.map(|agent| agent.id.to_string()).unwrap_or_default());
            csv.text(
                agent
                    .and_then(|agent| agent.name.as_deref())
                    .unwrap_or_default(),
            );
        }
        if let Some(model) = &line.model {
            csv.text(model);
        }
        if let Some(key) = &line.api_key {
            let key = key.as_ref();
            csv.value(key.map(|key| key.id.to_string()).unwrap_or_default());
            csv.text(key.and_then(|key| key.name.as_deref()).unwrap_or_default());
        }
        let sums = &line.sums;
        for number in [
            sums.runs,
            sums.model_calls,
            sums.input_tokens,
            sums.cached_tokens,
            sums.output_tokens,
        ] {
            csv.value(number);
        }
        if sums.unpriced_tokens == 0 {
            csv.value(sums.cost_usd);
        } else {
            // An unknown cost.
            csv.text("");
        }
        csv.value(seconds(sums.model_ms));
        csv.end_line();
    }
    csv.finish()
}

pub(crate) fn seconds(ms: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds stay far below 2^52"
    )]
    let ms = ms as f64;
    ms / 1000.0
}

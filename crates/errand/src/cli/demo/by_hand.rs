//! The commands that do by hand what the demo did. They work as they stand: on the demo's server while it is kept
//! running, on any other with its own address and key.

use anyhow::Result;

use super::{ASSIGNMENT, INVOICES_PATH, MESSAGE, REPORT_PATH};
use crate::cli::assignment;

pub(super) fn commands(url: &str, webhook_url: &str) -> Result<String> {
    let agent = quoted(&assignment::parse(ASSIGNMENT)?.to_string());
    let message = serde_json::to_string(MESSAGE)?;
    Ok(format!(
        r#"export ERRAND_URL={url}
export ERRAND_API_KEY=dv_…        # errand keys create --name NAME
api() {{ curl -sS --fail-with-body -H "authorization: Bearer $ERRAND_API_KEY" "$@"; }}

AGENT=$(api "$ERRAND_URL/v1/agents" --json {agent} | jq -r .agent.id)
SANDBOX=$(api -X POST "$ERRAND_URL/v1/sandboxes" | jq -r .sandbox_id)
api "$ERRAND_URL/v1/sandboxes/$SANDBOX/files" -F file=@examples/invoices.csv -F path={INVOICES_PATH}
RUN=$(api "$ERRAND_URL/v1/runs" --json '{{"agent_id": "'$AGENT'", "sandbox_id": "'$SANDBOX'", "message": {message}, "webhook_url": "{webhook_url}"}}' | jq -r .run.id)
api -N "$ERRAND_URL/v1/runs/$RUN/events"        # the transcript, live; Ctrl-C ends it
REQUEST=$(api "$ERRAND_URL/v1/runs/$RUN" | jq -r .pending_human_request.id)
api "$ERRAND_URL/v1/runs/$RUN/human-requests/$REQUEST/respond" --json '{{"approved": true}}'
api "$ERRAND_URL/v1/runs/$RUN" | jq .run.status
api "$ERRAND_URL/v1/sandboxes/$SANDBOX/files/content?path={REPORT_PATH}""#
    ))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assignment_stays_one_word() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
        let text = commands("http://127.0.0.1:1", "http://127.0.0.1:2/webhooks").unwrap();
        assert!(text.contains(r#"--json '{"#), "{text}");
        assert!(text.contains(r#""message": "Please pay this month's invoices.""#) || !text.contains("month's invoices.\","), "{text}");
    }
}

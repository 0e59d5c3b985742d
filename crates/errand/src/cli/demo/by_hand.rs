//! Shell commands that repeat the demo's steps. They work unchanged on the demo's server while it is kept running, and
//! on any other server with its own URL and key.

use super::{INVOICES_PATH, MESSAGE, REPORT_PATH};

pub(super) fn commands(url: &str, webhook_url: &str) -> String {
    format!(
        r#"export ERRAND_URL={url}
export ERRAND_API_KEY=dv_…        # errand keys create --name NAME
api() {{ curl -sS --fail-with-body -H "authorization: Bearer $ERRAND_API_KEY" "$@"; }}

AGENT=$(api "$ERRAND_URL/v1/agents" --json @examples/invoices.json | jq -r .agent.id)
SANDBOX=$(api -X POST "$ERRAND_URL/v1/sandboxes" | jq -r .sandbox_id)
api "$ERRAND_URL/v1/sandboxes/$SANDBOX/files" -F file=@examples/invoices.csv -F path={INVOICES_PATH}
RUN=$(api "$ERRAND_URL/v1/runs" --json "{{
    \"agent_id\": \"$AGENT\", \"sandbox_id\": \"$SANDBOX\", \"message\": \"{MESSAGE}\",
    \"webhook_url\": \"{webhook_url}\"
}}" | jq -r .run.id)
api -N "$ERRAND_URL/v1/runs/$RUN/events"        # the transcript, live; Ctrl-C ends it
REQUEST=$(api "$ERRAND_URL/v1/runs/$RUN" | jq -r .pending_human_request.id)
api "$ERRAND_URL/v1/runs/$RUN/human-requests/$REQUEST/respond" --json '{{"approved": true}}'
api "$ERRAND_URL/v1/runs/$RUN" | jq .run.status
api "$ERRAND_URL/v1/sandboxes/$SANDBOX/files/content?path={REPORT_PATH}""#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_name_the_server_and_hold_nothing_that_a_shell_would_change() {
        let text = commands("http://127.0.0.1:1", "http://127.0.0.1:2/webhooks");
        assert!(
            text.contains("export ERRAND_URL=http://127.0.0.1:1\n"),
            "{text}"
        );
        assert!(
            text.contains(r#"\"webhook_url\": \"http://127.0.0.1:2/webhooks\""#),
            "{text}"
        );
        assert!(
            !MESSAGE.contains(['"', '\\', '$', '`', '!']),
            "it stands between double quotes"
        );
    }
}

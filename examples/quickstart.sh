#!/usr/bin/env bash
# The API by example: an assignment reads a file, asks a person, and writes a result. Needs curl and jq.
#
#   errand serve &
#   export ERRAND_API_KEY=$(errand keys create --name quickstart)
#   examples/quickstart.sh
#
# ERRAND_URL      the server (http://127.0.0.1:8700)
# ERRAND_API_KEY  the key
# WEBHOOK_URL     the address to which the server sends webhooks (optional; this script polls in any case)
set -euo pipefail

url=${ERRAND_URL:-http://127.0.0.1:8700}
: "${ERRAND_API_KEY:?set it to a key; \`errand keys create --name NAME\` makes one}"

# api METHOD PATH [curl options]: prints the response body; a status of 400 or above ends the script.
api() {
    local method=$1 path=$2
    shift 2
    curl --silent --show-error --fail-with-body --request "$method" "$url$path" \
        --header "authorization: Bearer $ERRAND_API_KEY" "$@"
}

say() { printf '\n\033[1m%s\033[0m\n' "$*" >&2; }
[[ -t 2 ]] || say() { printf '\n%s\n' "$*" >&2; }

say "1. An agent, and what it does"
# The built-in model follows a list of steps and needs no key.
agent=$(api POST /v1/agents --json '{
    "name": "Count words",
    "build": {
        "name": "first",
        "config": {
            "version": "v2",
            "data": {
                "models": {"agent": {"model": "builtin/playbook"}},
                "tools": {"read_file": "allow", "write_file": "allow"},
                "playbook": {"steps": [
                    {"tool": "read_file", "with": {"path": "/workspace/letter.txt"}, "as": "letter"},
                    {"set": {"words": "{{ letter | split | length }}"}},
                    {"approve": {"title": "Write down that the letter has {{ words }} words?"}, "as": "answer"},
                    {"fail": "Not approved", "if": "{{ not answer.approved }}"},
                    {"tool": "write_file", "with": {"path": "/workspace/count.txt", "content": "{{ words }} words\n"}},
                    {"finish": "The letter has {{ words }} words."}
                ]}
            }
        }
    }
}' | jq --raw-output .agent.id)
echo "agent $agent"

say "2. A sandbox, with a file in it"
sandbox=$(api POST /v1/sandboxes | jq --raw-output .sandbox_id)
echo "Dear reader, this is a letter of nine words." |
    api POST "/v1/sandboxes/$sandbox/files" --form 'file=@-;filename=letter.txt' --form path=/workspace/letter.txt |
    jq --compact-output .

say "3. A run"
# The response comes immediately, and the run continues by itself. The same Idempotency-Key never starts a second run.
request=$(jq --null-input --arg agent "$agent" --arg sandbox "$sandbox" --arg webhook "${WEBHOOK_URL:-}" \
    '{agent_id: $agent, sandbox_id: $sandbox, message: "Count the words, please."}
     + if $webhook == "" then {} else {webhook_url: $webhook} end')
run=$(api POST /v1/runs --header "idempotency-key: quickstart-$sandbox" --json "$request" | jq --raw-output .run.id)
echo "run $run"

# wait_for STATUS…: polls for up to a minute until the run has one of these statuses.
wait_for() {
    local status
    for _ in {1..300}; do
        status=$(api GET "/v1/runs/$run" | jq --raw-output .run.status)
        for wanted in "$@"; do
            if [[ $status == "$wanted" ]]; then
                echo "status $status"
                return
            fi
        done
        sleep 0.2
    done
    echo "run $run is still $status after a minute" >&2
    return 1
}

say "4. It asks before it goes on"
wait_for waiting completed failed interrupted
pending=$(api GET "/v1/runs/$run" | jq .pending_human_request)
jq --compact-output '{id, type, title}' <<<"$pending"

say "5. A person answers"
api POST "/v1/runs/$run/human-requests/$(jq --raw-output .id <<<"$pending")/respond" --json '{"approved": true}' |
    jq --compact-output '.human_request | {response, responded_at}'

say "6. It ends"
wait_for completed failed interrupted
api GET "/v1/runs/$run/messages?limit=50" |
    jq --raw-output '.messages[] | "\(.role)\t\(.type)\t\(.text_content // .tool_call.name // .tool_result.result // "")"'

say "7. The result"
api GET "/v1/sandboxes/$sandbox/files" | jq --raw-output '.files[] | "\(.path)\t\(.size_bytes) bytes"'
api GET "/v1/sandboxes/$sandbox/files/content?path=/workspace/count.txt"

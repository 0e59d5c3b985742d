//! Code samples that start this assignment. They work unchanged once the API key is set.

use maud::{Markup, html};

use crate::web::ui;

pub(super) fn card(url: &str, agent: &str) -> Markup {
    let examples = [
        ("curl", "curl", curl(url, agent)),
        ("python", "Python", python(url, agent)),
        ("javascript", "JavaScript", javascript(url, agent)),
    ];
    html! {
        section {
            div.head { h2 { "API trigger" } }
            div.card.pad.form {
                p.dim { "Start this assignment from a program. Put an API key in " code { "ERRAND_API_KEY" } ". The API responds immediately, the run continues in the background, and a webhook reports when it ends." }
                @for (index, (id, name, text)) in examples.iter().enumerate() {
                    details.fold open[index == 0] {
                        summary { strong { (name) } }
                        div.inside {
                            pre.block-code.raw tabindex="0" id={ "trigger-" (id) } { (text) }
                            div.buttons { button type="button" data-copy="" data-copy-from={ "trigger-" (id) } { (ui::icon("copy")) "Copy" } a href="/v1/documentation" { "API documentation" } }
                        }
                    }
                }
            }
        }
    }
}

fn curl(url: &str, agent: &str) -> String {
    format!(
        r#"curl {url}/v1/runs \
  -H "Authorization: Bearer $ERRAND_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{{"agent_id": "{agent}", "message": "Go ahead."}}'"#
    )
}

fn python(url: &str, agent: &str) -> String {
    format!(
        r#"import json, os, urllib.request

request = urllib.request.Request(
    "{url}/v1/runs",
    data=json.dumps({{"agent_id": "{agent}", "message": "Go ahead."}}).encode(),
    headers={{
        "Authorization": f"Bearer {{os.environ['ERRAND_API_KEY']}}",
        "Content-Type": "application/json",
    }},
)
with urllib.request.urlopen(request) as response:
    print(json.load(response)["run"]["id"])"#
    )
}

fn javascript(url: &str, agent: &str) -> String {
    format!(
        r#"const response = await fetch("{url}/v1/runs", {{
  method: "POST",
  headers: {{
    "Authorization": `Bearer ${{process.env.ERRAND_API_KEY}}`,
    "Content-Type": "application/json",
  }},
  body: JSON.stringify({{ agent_id: "{agent}", message: "Go ahead." }}),
}});
const {{ run }} = await response.json();
console.log(run.id);"#
    )
}

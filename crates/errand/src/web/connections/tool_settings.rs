//! The form rows in which admins set, for each tool of a connection, whether it reaches the open world and whether its
//! results are trusted.

use errand_core::connection::{ProbedTool, ToolSettings};
use errand_store::{Connection, ToolSettingsByName};
use maud::{Markup, html};

use crate::web::form::Fields;

/// Present in forms that have a row for each tool.
const HAS_ROWS: &str = "tool_settings";

/// The rows of all probed tools.
pub(super) fn rows(connection: &Connection, sent: &Fields) -> Markup {
    let tools = connection.tools.as_deref().unwrap_or_default();
    if tools.is_empty() {
        return html! {};
    }
    let repeated = !sent.get(HAS_ROWS).is_empty();
    html! {
        fieldset {
            legend { "Tools " span.hint { "“Open world”: the tool's arguments leave the team, and it reads public content. “Trusted”: nobody outside the team can write what the tool returns, so the guard policy does not ask because of it. A mailbox, for example, contains text from strangers." } }
            input type="hidden" name=(HAS_ROWS) value="on";
            div.scroll {
                table {
                    thead { tr { th scope="col" { "Tool" } th scope="col" { "Open world" } th.mid scope="col" { "Trusted" } } }
                    tbody { @for tool in tools { (row(connection, tool, repeated.then_some(sent))) } }
                }
            }
        }
    }
}

fn row(connection: &Connection, tool: &ProbedTool, sent: Option<&Fields>) -> Markup {
    let settings = match sent {
        Some(sent) => of_row(&tool.name, sent),
        None => connection.settings_of(&tool.name),
    };
    let hints = tool.engine_hints(settings, connection.trusted && sent.is_none());
    let by_server = if tool.is_open(ToolSettings::default()) {
        "detected: yes"
    } else {
        "detected: no"
    };
    let chosen = match settings.open_world {
        None => "",
        Some(true) => "yes",
        Some(false) => "no",
    };
    html! {
        tr {
            td.title { span.mono { (tool.name) } }
            td {
                select name={ "open." (tool.name) } aria-label={ "Does " (tool.name) " reach the open world?" } {
                    @for (word, text) in [("", by_server), ("yes", "yes"), ("no", "no")] { option value=(word) selected[word == chosen] { (text) } }
                }
            }
            td.mid { input type="checkbox" name={ "trusted." (tool.name) } value="on" checked[!hints.untrusted] aria-label={ "Trust what " (tool.name) " returns" }; }
        }
    }
}

fn of_row(tool: &str, sent: &Fields) -> ToolSettings {
    let open = format!("open.{tool}");
    ToolSettings {
        open_world: match sent.get(&open) {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        },
        trusted: sent.is_on(&format!("trusted.{tool}")).then_some(true),
    }
}

/// Reads from a form whether the connection as a whole is trusted, and the settings of its tools. A form with rows sets
/// each tool.
pub(super) fn of_form(connection: &Connection, sent: &Fields) -> (bool, ToolSettingsByName) {
    if sent.get(HAS_ROWS).is_empty() {
        return (sent.is_on("trusted"), connection.settings.clone());
    }
    let mut settings = connection.settings.clone();
    for tool in connection.tools.iter().flatten() {
        let said = of_row(&tool.name, sent);
        if said == ToolSettings::default() {
            settings.remove(&tool.name);
        } else {
            settings.insert(tool.name.clone(), said);
        }
    }
    (false, settings)
}

/// The tools whose results count as trusted.
pub(super) fn trusted(connection: &Connection) -> Vec<&str> {
    let tools = connection.tools.iter().flatten();
    let trusted = tools.filter(|tool| {
        let settings = connection.settings_of(&tool.name);
        !tool.engine_hints(settings, connection.trusted).untrusted
    });
    trusted.map(|tool| tool.name.as_str()).collect()
}

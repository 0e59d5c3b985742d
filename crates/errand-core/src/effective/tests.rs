use super::*;
use crate::connection::{ToolHints, ToolSettings};
use serde_json::{Value, json};

fn build(data: Value) -> BuildConfig {
    let mut data = data;
    data["models"] = json!("test/m");
    data["connections"] = json!(["01997e5e-7c00-7000-8000-000000000001"]);
    BuildConfig::parse(&json!({"version": "v2", "data": data})).unwrap()
}

fn probed(name: &str, read_only: bool, open_world: bool) -> ProbedTool {
    ProbedTool {
        name: format!("mail__{name}"),
        server_name: name.to_owned(),
        description: String::new(),
        input_schema: json!({"type": "object"}),
        hints: ToolHints {
            read_only,
            destructive: name == "wipe",
            idempotent: false,
            open_world,
            says_destructive: true,
            says_open_world: true,
        },
    }
}

/// `name policy by` for each tool of the connection.
fn of(data: Value, floors: &[(&str, Policy)], caller: Option<&CallerPolicies>) -> Vec<String> {
    let tools = [
        probed("read", true, false),
        probed("search", true, true),
        probed("send", false, true),
        probed("wipe", true, false),
    ];
    let floors = floors
        .iter()
        .map(|(name, policy)| ((*name).to_owned(), *policy))
        .collect();
    let settings: BTreeMap<String, ToolSettings> = BTreeMap::new();
    let view = ConnectionView {
        name: "mail",
        tools: Some(&tools),
        floors: &floors,
        settings: &settings,
    };
    let build = build(data);
    let all = super::tools(&build, &policy::builtin, &[view], caller);
    all.iter()
        .filter(|tool| tool.probed.is_some() || caller.is_some())
        .map(|tool| {
            let name = tool.name.trim_start_matches("mail__");
            format!("{name} {} {}", tool.policy.as_str(), tool.by.as_str())
        })
        .collect()
}

#[test]
fn a_connection_without_named_tools_offers_nothing() {
    for data in [
        json!({}),
        json!({"tools": null}),
        json!({"tools": {}}),
        json!({"tools": {"read_file": "allow"}}),
        json!({"tools": {"mail__read": "off", "mail__send": "off"}}),
        json!({"tools": {"mail__*": "off"}}),
        json!({"tools": {"other__*": "default"}}),
    ] {
        assert!(of(data.clone(), &[], None).is_empty(), "{data}");
    }
}

#[test]
fn a_connections_tools_get_the_given_policy_or_that_of_hints() {
    let by_hints = [
        "read allow hints",
        "search guard hints",
        "send guard hints",
        "wipe ask hints",
    ];
    for word in [json!("default"), json!(null)] {
        assert_eq!(of(json!({"tools": {"mail__*": word}}), &[], None), by_hints);
    }
    assert_eq!(
        of(
            json!({"tools": {"mail__*": "ask", "mail__read": "allow", "mail__send": "off"}}),
            &[],
            None
        ),
        [
            "read allow build",
            "search ask connection",
            "wipe ask connection"
        ]
    );
    assert_eq!(
        of(
            json!({"tools": {"mail__*": "default"}}),
            &[("*", Policy::Guard), ("mail__read", Policy::Deny)],
            None
        ),
        [
            "read deny floor",
            "search guard hints",
            "send guard hints",
            "wipe ask hints"
        ]
    );
}

#[test]
fn a_child_run_gets_the_stricter_of_both_policies() {
    let caller = CallerPolicies(BTreeMap::from([
        ("mail__read".to_owned(), Policy::Ask),
        ("run_command".to_owned(), Policy::Guard),
        ("write_file".to_owned(), Policy::Deny),
    ]));
    let data = json!({"tools": {"mail__*": "allow", "run_command": "allow", "write_file": "allow",
        "read_file": "allow", "fetch_url": "allow", "edit_file": "ask"}});
    assert_eq!(
        of(data, &[], Some(&caller)),
        [
            "edit_file ask build",
            // The caller lacks this tool, and it sends data out, so it is guarded.
            "fetch_url guard caller",
            "read_file allow build",
            "run_command guard caller",
            "write_file deny caller",
            "read ask caller",
            "search guard caller",
            "send guard caller",
            "wipe guard caller",
        ]
    );
}

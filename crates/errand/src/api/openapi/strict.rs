//! Adds the server's validation rules to the document: unknown fields, permitted words, and patterns.
//!
//! The handlers' annotations define the fields; the permitted values are added here, from the same constants that the
//! handlers use. Each entry names its place, and a test finds entries whose place does not exist.

#![expect(
    clippy::indexing_slicing,
    reason = "the document's structure is fixed, as the tests of this module verify"
)]

use std::collections::BTreeSet;

use errand_core::limits::{LIST_PAGE_MAX, NAME_CHARS_MAX, RUN_CHILDREN_MAX};
use errand_core::role::Role;
use errand_core::run::Status;
use errand_core::webhook::WebhookEvent;
use errand_engine::model::network::Kind;
use errand_store::{RETRIABLE, STOPPABLE};
use serde_json::{Map, Value, json};

use crate::api::v1::runs::{SOURCES, STATUS_ALIASES};

/// `http` or `https`, in upper or lower case.
const WEB_ADDRESS: &str = "^[Hh][Tt][Tt][Pp][Ss]?://";
/// A name has no control characters and at least one visible character.
const NAME: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$";

/// Adds all rules to the document. `unknown_fields_refused`: the server's setting.
pub(super) fn tighten(document: &mut Value, unknown_fields_refused: bool) {
    split_bulk_requests(document);
    open_optional_body(document);
    for (schema, more) in schemas() {
        merge(&mut document["components"]["schemas"][schema], more);
    }
    for (schema, field, more) in fields() {
        let at = &mut document["components"]["schemas"][schema]["properties"][field];
        let more = nullable(at, more);
        merge(at, more);
    }
    for (method, path, name, more) in parameters() {
        if let Some(parameter) = parameter_mut(&mut document["paths"][path][method], name) {
            merge(&mut parameter["schema"], more);
        }
    }
    if unknown_fields_refused {
        close_request_bodies(document);
    }
}

/// Rules for complete schemas.
fn schemas() -> Vec<(&'static str, Value)> {
    // A null field counts as absent.
    let given = |field: &str| json!({"required": [field], "properties": {field: {"not": {"type": "null"}}}});
    let one_source = json!({"oneOf": [given("config"), given("source_build_id")]});
    // At most one of two names of a field. Null counts as absent.
    let both_names = json!({"not": {"anyOf": [
        {"required": ["name", "revision_name"], "properties": {"name": {"type": "string"}, "revision_name": {"type": "string"}}},
        {"required": ["description", "revision_description"]},
    ]}});
    let any_change = json!({"anyOf": [
        given("url"), given("events"), given("enabled"), {"required": ["description"]},
    ]});
    let marked_message = json!({"anyOf": [
        given("message"), {"properties": {"untrusted": {"enum": [false, null]}}},
    ]});
    let mut criteria: Vec<Value> = ["status", "agent_id", "source", "since", "until"]
        .map(given)
        .to_vec();
    criteria.push(json!({"required": ["all"], "properties": {"all": {"const": true}}}));
    let which = json!({ "anyOf": criteria });
    vec![
        ("BuildDraft", one_source.clone()),
        ("CreateBuildRequest", one_source),
        (
            "RespondRequest",
            json!({"oneOf": [
                {"required": ["approved"], "properties": {"approved": {"type": "boolean"}}},
                {"required": ["answers"], "properties": {"answers": {"type": "object"}, "reason": {"type": "null"}}},
            ]}),
        ),
        ("ChangeBuildRequest", both_names),
        ("ChangeWebhookRequest", any_change),
        ("StartRunRequest", marked_message.clone()),
        ("ForkRunRequest", marked_message),
        ("StopRunsRequest", which.clone()),
        ("RetryRunsRequest", which),
    ]
}

/// Rules for fields of request bodies: schema, field, rule.
fn fields() -> Vec<(&'static str, &'static str, Value)> {
    let name = json!({"minLength": 1, "maxLength": NAME_CHARS_MAX, "pattern": NAME});
    let url = json!({"format": "uri", "minLength": 1, "maxLength": 2048, "pattern": WEB_ADDRESS});
    let words = |words: &[&str]| json!({ "enum": words });
    let statuses = |statuses: &[Status]| {
        let words: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
        json!({"items": {"type": "string", "enum": words}})
    };
    let events =
        json!({"items": {"type": "string", "enum": WebhookEvent::ALL.map(WebhookEvent::as_str)}});
    let roles = words(&Role::ALL.map(Role::as_str));
    let sources = words(&SOURCES.map(|(word, _)| word));
    let kinds = words(&Kind::ALL.map(Kind::as_str));
    let config = config();
    let mut fields = vec![
        ("StartRunRequest", "message", json!({"minLength": 1})),
        (
            "StartRunRequest",
            "sandbox_id",
            json!({"pattern": "^sb_[0-9a-f]{32}$"}),
        ),
        ("PostMessageRequest", "message", json!({"minLength": 1})),
        ("ForkRunRequest", "message", json!({"minLength": 1})),
        ("UploadUrlRequest", "path", json!({"minLength": 1})),
        ("PutProviderRequest", "kind", kinds),
        ("PutProviderRequest", "base_url", url.clone()),
        (
            "SetSecretRequest",
            "name",
            json!({"minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
        ),
        (
            "ChangeLimitsRequest",
            "cost_usd_month",
            json!({"exclusiveMinimum": 0}),
        ),
        ("CreateInvitationRequest", "role", roles.clone()),
        ("ChangeMemberRequest", "role", roles),
        ("StopRunsRequest", "status", statuses(&STOPPABLE)),
        ("RetryRunsRequest", "status", statuses(&RETRIABLE)),
        ("StopRunsRequest", "source", sources.clone()),
        ("RetryRunsRequest", "source", sources),
        ("CreateWebhookRequest", "events", events.clone()),
        ("ChangeWebhookRequest", "events", events),
        (
            "CreateConnectionRequest",
            "name",
            json!({"pattern": "^[a-z]([a-z0-9]|[-_](?![-_]))*$"}),
        ),
    ];
    for schema in ["StartRunRequest", "ForkRunRequest"] {
        fields.push((schema, "webhook_url", url.clone()));
        fields.push((schema, "human_request_webhook_url", url.clone()));
    }
    for schema in ["CreateWebhookRequest", "ChangeWebhookRequest"] {
        fields.push((schema, "url", url.clone()));
    }
    for schema in ["BuildDraft", "CreateBuildRequest", "ChangeBuildRequest"] {
        fields.push((schema, "config", config.clone()));
    }
    for (schema, field) in [
        ("BuildDraft", "name"),
        ("CreateBuildRequest", "name"),
        ("ChangeBuildRequest", "name"),
        ("ChangeBuildRequest", "revision_name"),
        ("PromoteRequest", "revision_name"),
        ("CreateAgentRequest", "name"),
        ("RenameAgentRequest", "name"),
        ("CreateApiKeyRequest", "name"),
    ] {
        fields.push((schema, field, name.clone()));
    }
    fields
}

/// The rules for a build's `config`, as far as a schema can express them. The server alone checks the playbook
/// language, the names of tools and models, and references to the team's objects. Unknown keys are permitted.
fn config() -> Value {
    let whole = json!({"type": "integer", "minimum": 1, "maximum": 1_000_000_000_000_u64});
    let text_or = |field: &str, inner: Value| {
        let object = json!({"type": "object", "required": [field], "properties": {field: inner}});
        json!({"anyOf": [{"type": "string"}, object]})
    };
    let models = text_or("agent", text_or("model", json!({"type": "string"})));
    json!({
        "type": "object",
        "required": ["version", "data"],
        "properties": {
            "version": {"type": "string", "enum": ["v2"]},
            "data": {
                "type": "object",
                "anyOf": [
                    {"required": ["models"], "properties": {"models": models}},
                    {"required": ["playbook"], "properties": {"playbook": {"type": "object"}}},
                ],
                "properties": {
                    "human_in_the_loop": {"type": ["boolean", "null"]},
                    "limits": {
                        "type": ["object", "null"],
                        "properties": {
                            "steps": whole,
                            "tokens": whole,
                            "seconds": whole,
                            "children": {"type": "integer", "minimum": 0, "maximum": RUN_CHILDREN_MAX},
                            "cost_usd": {"type": "number", "exclusiveMinimum": 0},
                        },
                    },
                    "human_requests": {
                        "type": ["object", "null"],
                        "properties": {
                            "expires_in": {"type": ["string", "null"]},
                            "on_expire": {"enum": ["deny", "fail", "continue", null]},
                        },
                    },
                    "tools": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
                    "connections": {"type": ["array", "null"], "items": {"type": "string", "format": "uuid"}},
                    "assignments": {"type": ["array", "null"], "items": {"type": "string", "format": "uuid"}},
                },
            },
        },
        "example": {"version": "v2", "data": {"models": "builtin/playbook", "playbook": {"steps": [{"finish": "done"}]}}},
    })
}

/// Rules for parameters: method, path, name, rule.
fn parameters() -> Vec<(&'static str, &'static str, &'static str, Value)> {
    let words = |words: &[&str]| json!({ "enum": words });
    let mut statuses: Vec<&str> = Status::ALL.map(Status::as_str).to_vec();
    statuses.extend(STATUS_ALIASES.map(|(alias, _)| alias));
    // A day, or a time on that day.
    let day = json!({"anyOf": [{"format": "date"}, {"format": "date-time"}]});
    vec![
        (
            "get",
            "/v1/runs",
            "status",
            json!({"items": {"type": "string", "enum": statuses}}),
        ),
        (
            "get",
            "/v1/runs",
            "source",
            words(&SOURCES.map(|(word, _)| word)),
        ),
        ("get", "/v1/runs", "sort_order", words(&["desc", "asc"])),
        ("get", "/v1/runs", "sort_by", words(&["created_at"])),
        (
            "get",
            "/v1/runs",
            "q",
            json!({"pattern": "^[^\\u0000]*\\S[^\\u0000]*$"}),
        ),
        (
            "get",
            "/v1/runs",
            "search",
            json!({"pattern": "^[^\\u0000]*\\S[^\\u0000]*$"}),
        ),
        ("get", "/v1/runs/summary", "since", day.clone()),
        ("get", "/v1/runs/summary", "until", day.clone()),
        (
            "get",
            "/v1/usage",
            "group_by",
            json!({"items": {"type": "string", "enum": ["day", "agent", "model", "key"]}}),
        ),
        ("get", "/v1/usage", "since", day.clone()),
        ("get", "/v1/usage", "until", day),
        ("get", "/v1/usage", "format", words(&["json", "csv"])),
        (
            "get",
            "/v1/agents",
            "limit",
            json!({"minimum": 1, "maximum": LIST_PAGE_MAX}),
        ),
        (
            "get",
            "/v1/sandboxes/{sandbox_id}/files/content",
            "path",
            json!({"minLength": 1}),
        ),
        (
            "post",
            "/v1/sandboxes/{sandbox_id}/files",
            "path",
            json!({"minLength": 1}),
        ),
        (
            "put",
            "/v1/providers/{provider}",
            "provider",
            json!({"pattern": "^[a-z0-9_-]{1,40}$"}),
        ),
        (
            "delete",
            "/v1/providers/{provider}",
            "provider",
            json!({"pattern": "^[a-z0-9_-]{1,40}$"}),
        ),
    ]
}

/// Stopping and retrying several runs accept the same fields, but different statuses.
fn split_bulk_requests(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    let Some(both) = schemas
        .as_object_mut()
        .and_then(|schemas| schemas.remove("ManyRunsRequest"))
    else {
        return;
    };
    for (path, name) in [
        ("/v1/runs/stop", "StopRunsRequest"),
        ("/v1/runs/retry", "RetryRunsRequest"),
    ] {
        document["components"]["schemas"][name] = both.clone();
        let body = &mut document["paths"][path]["post"]["requestBody"];
        body["content"]["application/json"]["schema"] =
            json!({"$ref": format!("#/components/schemas/{name}")});
    }
}

/// A promotion accepts any body: an object is parsed, anything else is ignored.
fn open_optional_body(document: &mut Value) {
    if let Some(schema) = document["components"]["schemas"]["PromoteRequest"].as_object_mut() {
        schema.remove("type");
    }
    let body = &mut document["paths"]["/v1/revisions/{build_id}/promote"]["post"]["requestBody"];
    body["required"] = json!(false);
    body["content"]["application/json"]["schema"] =
        json!({"$ref": "#/components/schemas/PromoteRequest"});
}

/// The rule for a field, extended by null if its annotation permits null.
fn nullable(field: &Value, mut more: Value) -> Value {
    let is_nullable = field["type"]
        .as_array()
        .is_some_and(|types| types.contains(&json!("null")));
    if !is_nullable {
        return more;
    }
    // Not by indexing, which would insert a null if there is no list of words.
    if let Some(words) = more.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
    } else if more["type"].is_string() {
        more["type"] = json!([more["type"], "null"]);
    }
    more
}

/// Merges one object into another.
fn merge(into: &mut Value, more: Value) {
    let Value::Object(more) = more else { return };
    let target = match into {
        Value::Object(target) => target,
        other => {
            *other = Value::Object(Map::new());
            match other {
                Value::Object(target) => target,
                _ => return,
            }
        }
    };
    target.extend(more);
}

fn parameter_mut<'d>(operation: &'d mut Value, name: &str) -> Option<&'d mut Value> {
    operation
        .get_mut("parameters")?
        .as_array_mut()?
        .iter_mut()
        .find(|parameter| parameter["name"] == name)
}

/// Closes all objects with named fields in request bodies against other fields.
fn close_request_bodies(document: &mut Value) {
    let mut open: Vec<String> = Vec::new();
    for operation in operations_mut(document) {
        if let Some(schema) = operation.pointer_mut("/requestBody/content/application~1json/schema")
        {
            close(schema, &mut open);
        }
    }
    let mut closed = BTreeSet::new();
    while let Some(name) = open.pop() {
        if closed.insert(name.clone()) {
            close(&mut document["components"]["schemas"][&name], &mut open);
        }
    }
}

fn operations_mut(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    document["paths"]
        .as_object_mut()
        .into_iter()
        .flat_map(Map::values_mut)
        .filter_map(Value::as_object_mut)
        .flat_map(Map::values_mut)
}

/// Closes a schema and its subschemas, and collects references to others. A build's `config` stays open.
fn close(schema: &mut Value, referred: &mut Vec<String>) {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|reference| reference.strip_prefix("#/components/schemas/"))
    {
        referred.push(name.to_owned());
        return;
    }
    let Some(object) = schema.as_object_mut() else {
        return;
    };
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, field) in properties {
            if name != "config" {
                close(field, referred);
            }
        }
        object
            .entry("additionalProperties")
            .or_insert(Value::Bool(false));
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        let Some(parts) = object.get_mut(key).and_then(Value::as_array_mut) else {
            continue;
        };
        for part in parts {
            // Conditions that only refer to the schema's own fields stay open.
            if part["type"] == "object" || part["$ref"].is_string() {
                close(part, referred);
            }
        }
    }
    if let Some(items) = object.get_mut("items") {
        close(items, referred);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi::document;

    #[test]
    fn every_rule_has_a_place() {
        let document = document("https://errand.example", true);
        let schemas = &document["components"]["schemas"];
        for (schema, field, _) in fields() {
            let field_of = &schemas[schema]["properties"][field];
            assert!(
                field_of["type"] != Value::Null || field_of["oneOf"].is_array(),
                "{schema}.{field}: {field_of}"
            );
        }
        for (schema, _) in super::schemas() {
            assert!(schemas[schema]["properties"].is_object(), "{schema}");
        }
        for (method, path, name, more) in parameters() {
            let mut operation = document["paths"][path][method].clone();
            let parameter = parameter_mut(&mut operation, name).expect(path).clone();
            for (key, value) in more.as_object().unwrap() {
                assert_eq!(&parameter["schema"][key], value, "{path} {name}");
            }
        }
    }

    #[test]
    fn bodies_are_closed_unless_unknown_fields_are_ignored() {
        for (refused, closed) in [(true, json!(false)), (false, Value::Null)] {
            let document = document("https://errand.example", refused);
            for schema in ["StartRunRequest", "BuildDraft", "CreateAgentRequest"] {
                let schema = &document["components"]["schemas"][schema];
                assert_eq!(schema["additionalProperties"], closed, "{schema}");
            }
        }
    }

    #[test]
    fn a_config_keeps_its_unknown_keys() {
        let document = document("https://errand.example", true);
        let config = &document["components"]["schemas"]["BuildDraft"]["properties"]["config"];
        assert_eq!(config["additionalProperties"], Value::Null, "{config}");
        assert_eq!(config["required"], json!(["version", "data"]));
    }
}

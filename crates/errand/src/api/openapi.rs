//! Builds the OpenAPI document from the handlers' annotations and the table of routes.
//!
//! Content that is common to many endpoints is added here from the table instead of being repeated at each handler:
//! error responses, the `Idempotency-Key` header, and aliases of endpoints.

#![expect(
    clippy::indexing_slicing,
    reason = "the document's structure is fixed, as the tests of this module verify"
)]

mod strict;

use http::Method;
use serde_json::{Map, Value, json};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{Access, ROUTES, Route, health, v1};
use crate::http::error::{ErrorCode, ErrorResponse};
use errand_core::wire::{TestWebhookBody, WebhookBody};

const ABOUT: &str = "A self-hosted service that runs AI assignments for other programs. Start a run over HTTP and continue with \
your work; the run reads files in its sandbox, calls a model and tools, asks people when it must, and reports by webhook.\n\n\
Every request requires `Authorization: Bearer dv_…`, except where noted. Every response has `x-request-id`, and every \
authenticated one `x-ratelimit-limit`, `x-ratelimit-remaining` and `x-ratelimit-reset`. All errors have the same body: \
`{\"error\", \"message\"}`.";

#[derive(OpenApi)]
#[openapi(
    info(title = "errand", description = ABOUT, license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(
        v1::runs::start_run,
        v1::runs::list_runs,
        v1::summary::get_runs_summary,
        v1::runs::get_run,
        v1::messages::list_messages,
        v1::messages::post_message,
        v1::human_requests::list_open_requests,
        v1::human_requests::respond,
        v1::runs::stop_run,
        v1::runs::retry_run,
        v1::forks::fork_run,
        v1::many_runs::stop_runs,
        v1::many_runs::retry_runs,
        v1::events::stream_events,
        v1::usage::list_model_calls,
        v1::sandboxes::create_sandbox,
        v1::sandboxes::delete_sandbox,
        v1::files::list_files,
        v1::uploads::upload_file,
        v1::files::get_content,
        v1::uploads::create_upload_url,
        v1::uploads::put_upload,
        v1::agents::list_agents,
        v1::agents::create_agent,
        v1::agents::get_agent,
        v1::agents::rename_agent,
        v1::agents::delete_agent,
        v1::builds::list_builds,
        v1::builds::create_build,
        v1::builds::create_build_of,
        v1::builds::get_build,
        v1::builds::change_build,
        v1::builds::promote_build,
        v1::api_keys::list_api_keys,
        v1::api_keys::create_api_key,
        v1::api_keys::delete_api_key,
        v1::providers::list_providers,
        v1::providers::put_provider,
        v1::providers::delete_provider,
        v1::usage::get_usage,
        v1::usage::get_limits,
        v1::usage::change_limits,
        v1::tools::list_tools,
        v1::connections::list_connections,
        v1::connections::create_connection,
        v1::connections::get_connection,
        v1::connections::change_connection,
        v1::connections::delete_connection,
        v1::connections::probe_connection,
        v1::sign_ins::authorize_connection,
        v1::sign_ins::sign_out_connection,
        v1::sign_ins::end_sign_in,
        v1::secrets::list_secrets,
        v1::secrets::set_secret,
        v1::secrets::delete_secret,
        v1::webhook_secret::get_webhook_secret,
        v1::webhook_secret::roll_webhook_secret,
        v1::webhooks::list_webhooks,
        v1::webhooks::create_webhook,
        v1::webhooks::get_webhook,
        v1::webhooks::change_webhook,
        v1::webhooks::delete_webhook,
        v1::webhooks::send_webhook_test,
        v1::webhooks::list_webhook_deliveries,
        v1::deliveries::list_run_deliveries,
        v1::deliveries::get_delivery,
        v1::deliveries::resend_delivery,
        v1::members::get_team,
        v1::members::list_members,
        v1::members::get_member,
        v1::members::change_member,
        v1::members::remove_member,
        v1::invitations::list_invitations,
        v1::invitations::create_invitation,
        v1::invitations::delete_invitation,
        v1::documentation::documentation_page,
        v1::documentation::documentation_json,
        health::healthz,
        health::readyz,
    ),
    components(schemas(ErrorResponse, TestWebhookBody, WebhookBody)),
    modifiers(&ApiKeyScheme),
    security(("api_key" = [])),
    tags(
        (name = "Runs", description = "One execution of an agent's build."),
        (name = "Messages", description = "The transcript of a run."),
        		(name = "Human requests", description = "Approvals and questions for people."),
        		(name = "Sandboxes", description = "Directories with the files of runs."),
        		(name = "Agents", description = "Named configurations, with numbered builds."),
        		(name = "Builds", description = "Immutable, numbered snapshots of an agent's configuration. `/revisions` and `/builds` are aliases."),
        (name = "API keys", description = "For admins and owners."),
        		(name = "Models", description = "Model providers and usage."),
        		(name = "Connections", description = "MCP servers whose tools builds can use. Only admins and owners can manage them."),
        		(name = "Secrets", description = "Values for `{{ secret.NAME }}`. For admins and owners; no response contains a value."),
        		(name = "Webhooks", description = "Notifications to your server, signed according to the Standard Webhooks specification."),
        		(name = "Team", description = "The team, its members, and invitations."),
        		(name = "Documentation", description = "This API reference."),
        (name = "Health", description = "For load balancers."),
    ),
)]
struct Annotated;

struct ApiKeyScheme;

impl Modify for ApiKeyScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some("An API key: `Authorization: Bearer dv_…`.".to_owned());
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("api_key", SecurityScheme::Http(scheme));
    }
}

/// Builds the document. `public_url`: the address of the server. `unknown_fields_refused`: whether unknown fields are
/// errors.
pub(crate) fn document(public_url: &str, unknown_fields_refused: bool) -> Value {
    // The document consists of structs and maps with string keys, so it always serializes.
    let mut document = serde_json::to_value(Annotated::openapi()).unwrap_or_default();
    document["servers"] = json!([{"url": public_url}]);
    document["components"]["responses"] = error_components();
    document["webhooks"] = webhooks();
    strict::tighten(&mut document, unknown_fields_refused);
    for route in ROUTES.iter().filter(|route| route.alias_of.is_none()) {
        complete(
            &mut document["paths"][route.path][route.method.as_str().to_lowercase()],
            route,
        );
    }
    for route in ROUTES {
        if let Some(of) = route.alias_of {
            add_alias(&mut document["paths"], route, of);
        }
    }
    document
}

fn error_components() -> Value {
    let component = |code: ErrorCode| {
        let (status, word) = code.parts();
        let content =
            json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}});
        let description = format!(
            "{}: `{word}`",
            status.canonical_reason().unwrap_or_default()
        );
        (
            word.to_owned(),
            json!({"description": description, "content": content}),
        )
    };
    Value::Object(ErrorCode::ALL.into_iter().map(component).collect())
}

fn webhooks() -> Value {
    let of = |schema: &str, summary: &str| {
        let schema = json!({"$ref": format!("#/components/schemas/{schema}")});
        let body = json!({"content": {"application/json": {"schema": schema}}, "required": true});
        json!({"post": {
            "summary": summary,
            "tags": ["Webhooks"],
            "requestBody": body,
            "responses": {"2XX": {"description": "The event was received. Any other status is retried, except 410, which ends the delivery."}},
        }})
    };
    let run = "Sent to a run's `webhook_url` and to the team's webhooks, at least once, signed with the team's secret.";
    let test = "Sent to a webhook as a test.";
    json!({"run": of("WebhookBody", run), "test": of("TestWebhookBody", test)})
}

/// Adds the content that follows from the table of routes.
fn complete(operation: &mut Value, route: &Route) {
    for code in errors_of(route) {
        let (status, word) = code.parts();
        let responses = &mut operation["responses"];
        if responses.get(status.as_str()).is_none() {
            responses[status.as_str()] = json!({"$ref": format!("#/components/responses/{word}")});
        }
    }
    if takes_key(route) {
        let header = json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": "If the same key and body are sent again within 24 hours, the first response is repeated, with `idempotency-replayed: true`.",
            "required": false,
            "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        });
        match operation["parameters"].as_array_mut() {
            Some(parameters) => parameters.push(header),
            None => operation["parameters"] = json!([header]),
        }
    }
}

fn takes_key(route: &Route) -> bool {
    matches!(route.method, Method::POST | Method::PATCH | Method::DELETE)
}

fn errors_of(route: &Route) -> Vec<ErrorCode> {
    use ErrorCode as E;
    let mut errors = match (route.access, route.method == Method::PUT) {
        (Access::Needs(_), _) => vec![
            E::BadRequest,
            E::Unauthorized,
            E::Forbidden,
            E::NotFound,
            E::RateLimited,
            E::Internal,
            E::Unavailable,
        ],
        (Access::Public, true) => {
            vec![
                E::BadRequest,
                E::Unauthorized,
                E::NotFound,
                E::PayloadTooLarge,
                E::RateLimited,
                E::Internal,
                E::Unavailable,
            ]
        }
        (Access::Public, false) if route.path.contains('{') => {
            vec![E::BadRequest, E::NotFound, E::Internal, E::Unavailable]
        }
        (Access::Public, false) => vec![E::Unavailable],
    };
    if takes_key(route) {
        errors.extend([E::Conflict, E::PayloadTooLarge, E::UnsupportedMediaType]);
    }
    if takes_key(route) || route.method == Method::PUT {
        errors.push(E::RequestTimeout);
    }
    // With an API key, a `PUT` has a JSON body. The public `PUT` uploads a file.
    if route.method == Method::PUT && route.access != Access::Public {
        errors.extend([E::PayloadTooLarge, E::UnsupportedMediaType]);
    }
    errors
}

/// Adds an operation under its other path.
fn add_alias(paths: &mut Value, route: &Route, of: &str) {
    let method = route.method.as_str().to_lowercase();
    let mut operation = paths[of][&method].clone();
    if let Some(id) = operation["operationId"].as_str() {
        operation["operationId"] = json!(format!(
            "{id}_{}",
            if route.path.contains("revisions") {
                "as_revision"
            } else {
                "as_build"
            }
        ));
    }
    match paths[route.path].as_object_mut() {
        Some(item) => drop(item.insert(method, operation)),
        None => paths[route.path] = Value::Object(Map::from_iter([(method, operation)])),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn paths() -> Value {
        document("https://errand.example", true)["paths"].clone()
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let routes: BTreeSet<String> = ROUTES
            .iter()
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(routes.len(), ROUTES.len(), "a route is twice in the table");
        let mut documented = BTreeSet::new();
        for (path, item) in paths().as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        assert_eq!(documented, routes);
    }

    #[test]
    fn the_document_has_the_tables_parameters() {
        let paths = paths();
        for route in ROUTES {
            let operation = &paths[route.path][route.method.as_str().to_lowercase()];
            let empty = Vec::new();
            let parameters = operation["parameters"].as_array().unwrap_or(&empty);
            let of = |place: &str| -> BTreeSet<String> {
                parameters
                    .iter()
                    .filter(|p| p["in"] == place)
                    .map(|p| p["name"].as_str().unwrap().to_owned())
                    .collect()
            };
            let query: BTreeSet<String> =
                route.query.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(of("query"), query, "{} {}", route.method, route.path);
            let in_path: BTreeSet<String> = route
                .path
                .split('/')
                .filter_map(|part| Some(part.strip_prefix('{')?.strip_suffix('}')?.to_owned()))
                .collect();
            assert_eq!(of("path"), in_path, "{} {}", route.method, route.path);
        }
    }

    #[test]
    fn operations_have_unique_ids_and_their_access() {
        let paths = paths();
        let mut ids = BTreeSet::new();
        for route in ROUTES {
            let operation = &paths[route.path][route.method.as_str().to_lowercase()];
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{operation}"
            );
            let is_open = operation["security"] == json!([{}]);
            assert_eq!(
                is_open,
                route.access == Access::Public,
                "{} {}",
                route.method,
                route.path
            );
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document("https://errand.example", true);
        let mut left = vec![&document];
        while let Some(value) = left.pop() {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(reference)) = object.get("$ref") {
                        assert!(
                            document
                                .pointer(reference.trim_start_matches('#'))
                                .is_some(),
                            "{reference}"
                        );
                    }
                    left.extend(object.values());
                }
                Value::Array(items) => left.extend(items),
                _ => {}
            }
        }
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    }
}

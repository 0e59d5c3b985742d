//! Renders the OpenAPI document as a web page without scripts.

#![expect(
    clippy::indexing_slicing,
    reason = "reading a JSON value by a name that it does not have gives null"
)]

use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}\
code,pre{font:14px/1.5 ui-monospace,monospace}table{border-collapse:collapse;width:100%;margin:.5rem 0}\
td,th{border-bottom:1px solid #ddd;padding:.25rem .5rem;text-align:left;vertical-align:top}section{margin:2rem 0}\
h3{margin:1.5rem 0 .25rem}.method{display:inline-block;min-width:4.5rem;font-weight:600}.quiet{color:#666}\
@media(prefers-color-scheme:dark){body{color:#e6e6e6;background:#161616}td,th{border-color:#444}a{color:#8ab4f8}.quiet{color:#aaa}}";

/// HTTP methods in the order of the page.
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// Renders the page.
pub(crate) fn of(document: &Value) -> String {
    let title = text(&document["info"]["title"]);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) " API" }
                style { (maud::PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) " API " span.quiet { (text(&document["info"]["version"])) } }
                @for paragraph in text(&document["info"]["description"]).split("\n\n") { p { (marked(paragraph)) } }
                p { "For programs: " a href="/v1/documentation/json" { "OpenAPI 3.1" } ". Server: " code { (text(&document["servers"][0]["url"])) } }
                @for tag in items(&document["tags"]) { (section(document, tag)) }
                section {
                    h2 { "Objects" }
                    @for (name, schema) in entries(&document["components"]["schemas"]) { (object(name, schema)) }
                }
            }
        }
    };
    page.into_string()
}

fn section(document: &Value, tag: &Value) -> Markup {
    let name = text(&tag["name"]);
    html! {
        section {
            h2 { (name) }
            p { (marked(text(&tag["description"]))) }
            @for (path, item) in entries(&document["paths"]) {
                @for method in METHODS {
                    @if items(&item[method]["tags"]).iter().any(|tag| text(tag) == name) { (operation(method, path, &item[method])) }
                }
            }
        }
    }
}

fn operation(method: &str, path: &str, operation: &Value) -> Markup {
    let id = text(&operation["operationId"]);
    let about = [text(&operation["summary"]), text(&operation["description"])].join(" ");
    html! {
        h3 id=(id) { code { span.method { (method.to_uppercase()) } (path) } }
        p { (marked(about.trim())) @if operation["security"] == serde_json::json!([{}]) { " " span.quiet { "No key is needed." } } }
        table {
            @for parameter in items(&operation["parameters"]) {
                tr {
                    td { code { (text(&parameter["name"])) } " " span.quiet { (text(&parameter["in"])) } }
                    td { (type_of(&parameter["schema"])) }
                    td { (marked(text(&parameter["description"]))) }
                }
            }
            @for (kind, content) in entries(&operation["requestBody"]["content"]) {
                tr { td { "body" } td { (type_of(&content["schema"])) } td.quiet { (kind) } }
            }
            @for (status, response) in entries(&operation["responses"]) {
                @if response["$ref"].is_null() {
                    tr {
                        td { "response " code { (status) } }
                        td { @for (_, content) in entries(&response["content"]) { (type_of(&content["schema"])) } }
                        td { (marked(text(&response["description"]))) }
                    }
                }
            }
        }
        p.quiet {
            "Errors: "
            @for (status, response) in entries(&operation["responses"]) { @if !response["$ref"].is_null() { (status) " " } }
        }
    }
}

fn object(name: &str, schema: &Value) -> Markup {
    html! {
        h3 id=(name) { (name) }
        p { (marked(text(&schema["description"]))) }
        table {
            @for (field, of) in fields(schema) {
                tr {
                    td { code { (field) } }
                    td { (type_of(of)) @if is_required(schema, field) { " " span.quiet { "always" } } }
                    td { (marked(text(&of["description"]))) }
                }
            }
        }
    }
}

/// The fields of an object, including those of the objects that it is composed of.
fn fields(schema: &Value) -> Vec<(&String, &Value)> {
    let own = entries(&schema["properties"]).into_iter();
    own.chain(items(&schema["allOf"]).iter().flat_map(fields))
        .collect()
}

fn is_required(schema: &Value, field: &str) -> bool {
    items(&schema["required"])
        .iter()
        .any(|name| text(name) == field)
}

fn type_of(schema: &Value) -> Markup {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|reference| reference.rsplit('/').next())
    {
        return html! { a href={"#" (name)} { (name) } };
    }
    let alternatives = [items(&schema["oneOf"]), items(&schema["anyOf"])].concat();
    if !alternatives.is_empty() {
        return html! { @for (number, alternative) in alternatives.iter().enumerate() { @if number > 0 { " or " } (type_of(alternative)) } };
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => html! { "list of " (type_of(&schema["items"])) },
        Value::String(name) => html! { (name) },
        Value::Array(names) => html! { (names.iter().map(text).collect::<Vec<_>>().join(" or ")) },
        _ => html! { "any" },
    }
}

/// Text with Markdown's inline code as HTML.
fn marked(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn entries(value: &Value) -> Vec<(&String, &Value)> {
    value
        .as_object()
        .map(Map::iter)
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ROUTES, openapi};

    #[test]
    fn every_endpoint_is_on_the_page() {
        let page = of(&openapi::document("https://errand.example", true));
        for route in ROUTES {
            assert!(
                page.contains(&format!(
                    "<span class=\"method\">{}</span>{}",
                    route.method, route.path
                )),
                "{} {}",
                route.method,
                route.path
            );
        }
        assert!(page.contains("https://errand.example"));
    }

    #[test]
    fn text_is_not_markup() {
        let document = serde_json::json!({"info": {"title": "<b>", "description": "`<i>` & co"}});
        let page = of(&document);
        assert!(page.contains("<code>&lt;i&gt;</code> &amp; co") && !page.contains("<b>"));
    }
}

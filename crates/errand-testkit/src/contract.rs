//! Holds each response against the OpenAPI document that the program itself serves.

use std::collections::HashMap;
use std::sync::Mutex;

use jsonschema::Validator;
use serde_json::{Value, json};

/// The document, and validators made from it as they are needed.
pub struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Option<std::sync::Arc<Validator>>>>,
}

impl Contract {
    /// From `GET /v1/documentation/json`.
    #[must_use]
    pub fn new(document: Value) -> Self {
        Self {
            document,
            validators: Mutex::default(),
        }
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Panics unless the document describes this response: path and method are there, the status is documented, a JSON
    /// body fits its schema. A response to a path or method that is not in the document must be an error body.
    pub fn check(&self, method: &str, path: &str, status: u16, body: Option<&Value>) {
        // What a browser asks before its request: no part of the document.
        if method == "OPTIONS" && matches!(status, 204 | 403) {
            return;
        }
        let path = path.split('?').next().unwrap_or(path);
        let Some(template) = self.template_of(method, path) else {
            assert!(
                matches!(status, 401 | 404 | 405 | 429 | 503),
                "{method} {path} is not in the document, and answered {status}"
            );
            return self.check_schema(
                "error",
                &json!({"$ref": "#/components/schemas/ErrorResponse"}),
                method,
                path,
                status,
                body,
            );
        };
        let responses = &self.document["paths"][&template][method.to_lowercase()]["responses"];
        let documented = &responses[status.to_string()];
        let documented = if documented.is_null() {
            &responses["default"]
        } else {
            documented
        };
        assert!(
            !documented.is_null(),
            "{method} {template} answered {status}, which its documentation does not name"
        );
        let documented = match documented["$ref"].as_str() {
            Some(reference) => self
                .document
                .pointer(reference.trim_start_matches('#'))
                .expect("a response that is referred to"),
            None => documented,
        };
        let schema = &documented["content"]["application/json"]["schema"];
        let has_other_forms = documented["content"]
            .as_object()
            .is_some_and(|forms| forms.len() > 1);
        match (schema.is_null(), body) {
            (true, _) => {}
            (false, None) if has_other_forms => {}
            (false, None) => {
                panic!("{method} {template} answered {status} without the JSON that is documented")
            }
            (false, Some(_)) => self.check_schema(
                &format!("{method} {template} {status}"),
                schema,
                method,
                path,
                status,
                body,
            ),
        }
    }

    fn check_schema(
        &self,
        key: &str,
        schema: &Value,
        method: &str,
        path: &str,
        status: u16,
        body: Option<&Value>,
    ) {
        let validator = self
            .validators
            .lock()
            .unwrap()
            .entry(key.to_owned())
            .or_insert_with(|| {
                let mut whole = schema.clone();
                whole["components"] = self.document["components"].clone();
                jsonschema::validator_for(&whole)
                    .ok()
                    .map(std::sync::Arc::new)
            })
            .clone();
        let validator = validator.unwrap_or_else(|| panic!("the schema of {key} cannot be used"));
        let body = body.unwrap_or_else(|| panic!("{method} {path} answered {status} without JSON"));
        let errors: Vec<String> = validator
            .iter_errors(body)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(
            errors.is_empty(),
            "{method} {path} answered {status} with what its documentation does not allow: {errors:?}\n{body:#}"
        );
    }

    fn template_of(&self, method: &str, path: &str) -> Option<String> {
        let segments: Vec<&str> = path.split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == segments.len()
                && parts
                    .iter()
                    .zip(&segments)
                    .all(|(part, segment)| part.starts_with('{') || part == segment)
        };
        let paths = self.document["paths"].as_object()?;
        // As OpenAPI has it: a path that stands there word for word is meant before one with parameters.
        let (template, item) = paths
            .iter()
            .filter(|(template, _)| fits(template))
            .min_by_key(|(template, _)| template.matches('{').count())?;
        (!item[method.to_lowercase()].is_null()).then(|| template.clone())
    }
}

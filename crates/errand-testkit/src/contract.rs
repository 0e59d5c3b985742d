//! Checks each response against the OpenAPI document that the program itself serves.

use std::collections::HashMap;
use std::sync::Mutex;

use jsonschema::Validator;
use serde_json::{Value, json};

/// The document, and validators that are compiled from it on demand.
pub struct Contract {
    document: Value,
    validators: Mutex<HashMap<String, Option<std::sync::Arc<Validator>>>>,
}

impl Contract {
    /// `document`: the response of `GET /v1/documentation/json`.
    #[must_use]
    pub fn new(document: Value) -> Self {
        Self {
            document,
            validators: Mutex::default(),
        }
    }

    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Panics unless the document describes this response: path, method and status are documented, and a JSON body
    /// conforms to its schema. Anything else must be one of the errors for unknown routes.
    pub fn check(&self, method: &str, path: &str, status: u16, body: Option<&Value>) {
        // A browser's preflight request, which the document does not describe.
        if method == "OPTIONS" && matches!(status, 204 | 403) {
            return;
        }
        let path = path.split('?').next().unwrap_or(path);
        let Some(template) = self.template_of(method, path) else {
            assert!(
                matches!(status, 401 | 404 | 405 | 429 | 503),
                "{method} {path} is not in the document, but answered {status}"
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
            "{method} {template} answered {status}, which is not documented"
        );
        let documented = match documented["$ref"].as_str() {
            Some(reference) => self
                .document
                .pointer(reference.trim_start_matches('#'))
                .expect("a response that exists"),
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
                panic!("{method} {template} answered {status} without the documented JSON")
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
        let validator = validator.unwrap_or_else(|| panic!("the schema of {key} is not valid"));
        let body = body.unwrap_or_else(|| panic!("{method} {path} answered {status} without JSON"));
        let errors: Vec<String> = validator
            .iter_errors(body)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(
            errors.is_empty(),
            "{method} {path} answered {status} with a body that does not conform to its schema: {errors:?}\n{body:#}"
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
        // As in OpenAPI: a path without parameters takes precedence over one that matches with parameters.
        let (template, item) = paths
            .iter()
            .filter(|(template, _)| fits(template))
            .min_by_key(|(template, _)| template.matches('{').count())?;
        (!item[method.to_lowercase()].is_null()).then(|| template.clone())
    }
}

//! Converts a server's question to a human request, and the person's answer to the form that the server expects.
//!
//! # Guarantees
//!
//! - Each property of the server's form becomes one question, with its choices if it has any.
//! - If an answer does not fit its property (text instead of a number), the whole form is declined; no value is
//!   invented.
//! - The server's text is shown to people as a quote, never as errand's own words.

use std::collections::{BTreeMap, BTreeSet};

use errand_core::human::{
    Ask, HEADER_CHARS_MAX, LABEL_CHARS_MAX, Origin, QUESTION_CHARS_MAX, Question, QuestionOption,
    Quote, RequestDraft, Resolution, check_lengths,
};
use errand_core::transcript::ToolCall;
use serde_json::{Map, Value, json};

const QUESTIONS_MAX: usize = 20;
/// Maximum number of characters of a server's text that are shown.
const TEXT_CHARS_MAX: usize = 2_000;

/// A form for a person.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Form {
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    /// The text of the question, which is the key of the answer.
    question: String,
    property: String,
    kind: Kind,
    required: bool,
    /// Pairs of the label that is shown and the value that the server receives.
    choices: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Whole,
    Boolean,
    Several,
}

/// The description of the request. It marks everything else as the server's words.
const ASKS: &str = "The server of a connection asks this while a call is in progress. The quoted words and the questions are the server's, and the answer goes to the server.";

/// The answer by which a person omits an optional property.
const LEFT_OUT: &str = "-";

/// The text, truncated to `most` characters, the last of which is then an ellipsis.
fn cut(text: &str, most: usize) -> String {
    if text.chars().nth(most).is_none() {
        return text.to_owned();
    }
    let kept = most.saturating_sub(1);
    text.chars().take(kept).chain(['…']).collect()
}

fn short(text: &str) -> String {
    cut(text, TEXT_CHARS_MAX)
}

impl Form {
    /// Parses a server's question `{message, requestedSchema}`, already masked. `None` if a person cannot be asked
    /// this.
    pub(super) fn read(
        connection: &str,
        call: &ToolCall,
        params: &Value,
    ) -> Option<(Self, RequestDraft)> {
        let message = short(params.get("message")?.as_str()?);
        let schema = params.get("requestedSchema")?;
        let properties = schema.get("properties")?.as_object()?;
        let required: BTreeSet<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if properties.len() > QUESTIONS_MAX {
            return None;
        }
        let mut form = Self { fields: Vec::new() };
        let mut questions = Vec::new();
        for (property, schema) in properties {
            let (field, question) = field(property, schema, required.contains(property.as_str()))?;
            if form.fields.iter().any(|f| f.question == field.question) {
                return None;
            }
            form.fields.push(field);
            questions.push(question);
        }
        // Each text was cut, but there may be too many texts.
        check_lengths(&questions).ok()?;
        // A form without properties only needs approval.
        let ask = if questions.is_empty() {
            Ask::Approval
        } else {
            Ask::Question { questions }
        };
        let draft = RequestDraft {
            title: format!("{connection} asks"),
            description: Some(ASKS.to_owned()),
            ask,
            origin: Origin::Connection {
                call_id: call.id.clone(),
            },
            tool_call: Some(call.clone()),
            expires_in_ms: None,
            on_expire: None,
            reason: None,
            quote: Some(Quote {
                by: connection.to_owned(),
                text: message,
            }),
        };
        Some((form, draft))
    }

    /// The content for the server. `None` declines the form.
    pub(super) fn answer(&self, resolution: &Resolution) -> Option<Value> {
        let answers = match resolution {
            Resolution::Approved { .. } if self.fields.is_empty() => return Some(json!({})),
            Resolution::Answered { answers } => answers,
            _ => return None,
        };
        let mut content = Map::new();
        for field in &self.fields {
            match field.value(answers.get(&field.question)?) {
                Ok(Some(value)) => {
                    content.insert(field.property.clone(), value);
                }
                Ok(None) => {}
                Err(()) => return None,
            }
        }
        Some(Value::Object(content))
    }
}

impl Field {
    /// The value of the property; `None` if it is omitted. The error means that the answer does not fit.
    fn value(&self, answer: &Value) -> Result<Option<Value>, ()> {
        let known = |label: &str| {
            let choice = self.choices.iter().find(|(shown, _)| shown == label);
            choice.map_or_else(|| label.to_owned(), |(_, value)| value.clone())
        };
        if self.kind == Kind::Several {
            let list = match answer {
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect(),
                Value::String(text) => text.split(',').map(str::trim).collect::<Vec<_>>(),
                _ => return Err(()),
            };
            let values = list.into_iter().filter(|label| *label != LEFT_OUT);
            return Ok(Some(values.map(|label| json!(known(label))).collect()));
        }
        let text = answer.as_str().ok_or(())?.trim();
        if !self.required && text == LEFT_OUT {
            return Ok(None);
        }
        let value = match self.kind {
            Kind::Whole => json!(text.parse::<i64>().map_err(|_| ())?),
            Kind::Number => {
                let number: f64 = text.parse().map_err(|_| ())?;
                json!(Some(number).filter(|n| n.is_finite()).ok_or(())?)
            }
            Kind::Boolean => match text {
                "true" | "yes" => json!(true),
                "false" | "no" => json!(false),
                _ => return Err(()),
            },
            Kind::Text | Kind::Several => json!(known(text)),
        };
        Ok(Some(value))
    }
}

fn field(property: &str, schema: &Value, required: bool) -> Option<(Field, Question)> {
    let text = |key: &str| schema.get(key).and_then(Value::as_str).map(short);
    let several = text("type").as_deref() == Some("array");
    let options = if several {
        schema.get("items")?
    } else {
        schema
    };
    let choices = choices(options);
    if !labels_are_distinct(&choices) {
        return None;
    }
    let kind = match schema.get("type").and_then(Value::as_str) {
        Some("string") | None => Kind::Text,
        Some("number") => Kind::Number,
        Some("integer") => Kind::Whole,
        Some("boolean") => Kind::Boolean,
        Some("array") if !choices.is_empty() => Kind::Several,
        Some(_) => return None,
    };
    let title = text("title").unwrap_or_else(|| property.to_owned());
    let question = match text("description") {
        Some(about) if about != title => format!("{title}: {about}"),
        _ => title,
    };
    let ours = if required {
        String::new()
    } else {
        format!(" (`{LEFT_OUT}` to omit)")
    };
    let mut question = cut(
        &question,
        QUESTION_CHARS_MAX.saturating_sub(ours.chars().count()),
    );
    question.push_str(&ours);
    let mut labels: Vec<String> = choices.iter().map(|(label, _)| label.clone()).collect();
    if kind == Kind::Boolean {
        labels = vec!["true".to_owned(), "false".to_owned()];
    }
    let free_text = labels.is_empty();
    if !required && !free_text {
        labels.push(LEFT_OUT.to_owned());
    }
    let asked = Question {
        question: question.clone(),
        header: Some(cut(property, HEADER_CHARS_MAX)),
        options: labels
            .into_iter()
            .map(|label| QuestionOption {
                label,
                description: None,
            })
            .collect(),
        multi_select: kind == Kind::Several,
        free_text,
    };
    let field = Field {
        question,
        property: property.to_owned(),
        kind,
        required,
        choices,
    };
    Some((field, asked))
}

/// Whether each label has one value. Cutting may have made labels equal.
fn labels_are_distinct(choices: &[(String, String)]) -> bool {
    let by_label: BTreeMap<&str, &str> = choices
        .iter()
        .map(|(label, value)| (label.as_str(), value.as_str()))
        .collect();
    choices
        .iter()
        .all(|(label, value)| by_label.get(label.as_str()) == Some(&value.as_str()))
}

/// The choices of a property, as pairs of label and value.
fn choices(schema: &Value) -> Vec<(String, String)> {
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    if let Some(titled) = list("oneOf").or_else(|| list("anyOf")) {
        return titled
            .iter()
            .filter_map(|item| {
                let value = item.get("const")?.as_str()?;
                let title = item.get("title").and_then(Value::as_str).unwrap_or(value);
                Some((cut(title, LABEL_CHARS_MAX), value.to_owned()))
            })
            .collect();
    }
    let names = list("enumNames");
    list("enum")
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, value)| {
            let value = value.as_str()?;
            let name = names.and_then(|names| names.get(index)?.as_str());
            Some((
                cut(name.unwrap_or(value), LABEL_CHARS_MAX),
                value.to_owned(),
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(properties: Value, required: Value) -> Option<(Form, RequestDraft)> {
        let call = ToolCall {
            id: "c".to_owned(),
            name: "mail__send".to_owned(),
            arguments: Map::new(),
        };
        let schema = json!({"type": "object", "properties": properties, "required": required});
        let params = json!({"message": "Who are you?", "requestedSchema": schema});
        Form::read("mail", &call, &params)
    }

    #[test]
    fn each_property_is_a_question_with_a_typed_answer() {
        let (form, draft) = form(
            json!({
                "name": {"type": "string", "title": "Name", "description": "Yours"},
                "age": {"type": "integer"},
                "rate": {"type": "number"},
                "agree": {"type": "boolean"},
                "color": {"type": "string", "enum": ["r", "g"], "enumNames": ["Red", "Green"]},
                "days": {"type": "array", "items": {"type": "string", "enum": ["mo", "tu"]}},
                "size": {"oneOf": [{"const": "s", "title": "Small"}]},
            }),
            json!(["name", "age", "agree", "color"]),
        )
        .unwrap();
        let Ask::Question { questions } = &draft.ask else {
            panic!("a question: {draft:?}");
        };
        let texts: Vec<&str> = questions.iter().map(|q| q.question.as_str()).collect();
        assert!(
            texts.contains(&"Name: Yours") && texts.contains(&"age"),
            "{texts:?}"
        );
        let mut answers = Map::new();
        for (question, answer) in [
            ("Name: Yours", json!("Ada")),
            ("age", json!("36")),
            ("rate (`-` to omit)", json!("-")),
            ("agree", json!("true")),
            ("color", json!("Green")),
            ("days (`-` to omit)", json!(["mo", "tu"])),
            ("size (`-` to omit)", json!("Small")),
        ] {
            answers.insert(question.to_owned(), answer);
        }
        let given = Resolution::Answered {
            answers: answers.clone(),
        };
        assert_eq!(
            form.answer(&given).unwrap(),
            json!({"name": "Ada", "age": 36, "agree": true, "color": "g", "days": ["mo", "tu"], "size": "s"})
        );
        answers.insert("age".to_owned(), json!("old"));
        assert_eq!(form.answer(&Resolution::Answered { answers }), None);
        assert_eq!(form.answer(&Resolution::Denied { reason: None }), None);
    }

    #[test]
    fn an_empty_form_is_an_approval() {
        let (form_of_none, draft) = form(json!({}), json!([])).unwrap();
        assert_eq!(draft.ask, Ask::Approval);
        assert_eq!(draft.description.as_deref(), Some(ASKS));
        assert_eq!(draft.quote.unwrap().text, "Who are you?");
        let yes = Resolution::Approved { reason: None };
        assert_eq!(form_of_none.answer(&yes), Some(json!({})));
        assert!(form(json!({"x": {"type": "object"}}), json!([])).is_none());
    }

    #[test]
    fn long_texts_of_a_server_are_cut_with_a_mark() {
        let long = "é".repeat(3_000);
        let properties = json!({"a": {
            "type": "string", "title": long, "description": long,
            "enum": ["x", "y"], "enumNames": [long, "Y"],
        }});
        let (form, draft) = form(properties, json!([])).unwrap();
        let Ask::Question { questions } = &draft.ask else {
            panic!("a question: {draft:?}");
        };
        let asked = &questions[0];
        assert_eq!(asked.question.chars().count(), QUESTION_CHARS_MAX);
        assert!(asked.question.ends_with("… (`-` to omit)"));
        let label = &asked.options[0].label;
        assert!(label.chars().count() == LABEL_CHARS_MAX && label.ends_with('…'));
        let mut answers = Map::new();
        answers.insert(asked.question.clone(), json!(label));
        let given = Resolution::Answered { answers };
        assert_eq!(form.answer(&given), Some(json!({"a": "x"})));
    }

    #[test]
    fn ambiguous_or_too_many_choices_are_not_asked() {
        let long = "é".repeat(300);
        let equal =
            json!({"a": {"type": "string", "enum": [format!("{long}1"), format!("{long}2")]}});
        assert!(form(equal, json!([])).is_none());
        let many: Vec<String> = (0..400).map(|number| format!("{number}{long}")).collect();
        let many = json!({"a": {"type": "string", "enum": many}});
        assert!(form(many, json!([])).is_none());
    }
}

//! Answers to human requests from a form.
//!
//! Guarantees: only the value of a button on the card approves, denies or answers. A form without such a value, or with
//! several, changes nothing. A page that sends its form in place gets the outcome of the request; other pages are
//! redirected to where they were, at the answered card.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect, Response};
use errand_core::human::{Answer, Ask, HumanRequest, Question};
use errand_core::id::{HumanRequestId, RunId};
use errand_store::model::Respond;
use errand_store::{FoundRequest, Idempotent, StoreError};
use http::{HeaderMap, StatusCode};
use maud::{Markup, html};
use serde_json::{Map, Value};

use super::{Part, Sent, render};
use crate::web::failure::{PageError, PageResult};
use crate::web::form::{Fields, Form, Path};
use crate::web::guard::Visitor;
use crate::web::layout::fragment;
use crate::web::{Web, card, inbox};

/// Header of pages that update themselves: they want the outcome of the request instead of a page.
const IN_PLACE: &str = "x-in-place";

pub(in crate::web) async fn answer(
    State(web): State<Web>,
    visitor: Visitor,
    Path((run, request)): Path<(RunId, HumanRequestId)>,
    headers: HeaderMap,
    Form(fields): Form,
) -> PageResult {
    let is_in_place = headers.contains_key(IN_PLACE);
    match respond(&web, &visitor, run, request, &fields).await? {
        Ok(()) if is_in_place => in_place(&web, &visitor, request, None).await,
        Ok(()) => Ok(back(run, request, &fields)),
        Err(message) if is_in_place => in_place(&web, &visitor, request, Some(&message)).await,
        // Someone else was first, or the answer is invalid: the message appears at the request.
        Err(message) => {
            let sent = Sent {
                request,
                fields,
                message,
            };
            render(&web, &visitor, run, Part::Newest, Some(sent)).await
        }
    }
}

/// Answers the request. The error is a message for the person.
async fn respond(
    web: &Web,
    visitor: &Visitor,
    run: RunId,
    request: HumanRequestId,
    fields: &Fields,
) -> Result<Result<(), String>, PageError> {
    let view = web.store.run(visitor.team_id(), run).await?;
    let pending = view.pending.filter(|pending| pending.id == request);
    let Some(pending) = pending else {
        let found = web.store.requests(visitor.team_id(), vec![request]).await?;
        return match found.first() {
            Some(FoundRequest::Closed(closed)) if closed.asked.run == run => {
                Ok(Err(card::too_late(closed)))
            }
            _ => Err(StoreError::NotFound.into()),
        };
    };
    let answer = match answer_of(&pending, fields) {
        Ok(answer) => answer,
        Err(message) => return Ok(Err(message)),
    };
    let respond = Respond {
        team: visitor.team_id(),
        run,
        request,
        answer,
        by: visitor.user_id().into(),
        now: web.clock.now(),
    };
    match web.store.respond(respond, Idempotent::not_recorded()).await {
        Ok(_) => Ok(Ok(())),
        Err(error) => Ok(Err(PageError::from(error).into_message()?)),
    }
}

/// Reads the answer from the pressed button. No other field decides anything.
fn answer_of(request: &HumanRequest, fields: &Fields) -> Result<Answer, String> {
    let pressed: Vec<&str> = fields.all("decision").collect();
    let reason = || fields.given("reason").map(str::to_owned);
    match (pressed.as_slice(), &request.ask) {
        (["approve"], Ask::Approval) => Ok(Answer::Approval {
            approved: true,
            reason: reason(),
        }),
        (["deny"], Ask::Approval) => Ok(Answer::Approval {
            approved: false,
            reason: reason(),
        }),
        (["answer"], Ask::Question { questions }) => {
            let answers = answers(questions, fields);
            let missing = questions
                .iter()
                .find(|question| !answers.contains_key(&question.question));
            match missing {
                Some(missing) => Err(format!(
                    "Answer all questions. This one has no answer yet: {}",
                    errand_core::display::one_line(&missing.question)
                )),
                None => Ok(Answer::Answers(answers)),
            }
        }
        (_, Ask::Approval) => {
            Err("Nothing was decided. Press Approve or Deny to decide.".to_owned())
        }
        (_, Ask::Question { .. }) => {
            Err("Nothing was answered. Press Answer to send your answers.".to_owned())
        }
    }
}

/// Redirects to where the form was, at the answered card.
fn back(run: RunId, request: HumanRequestId, fields: &Fields) -> Response {
    let back = fields.get("back");
    let page = match back.split_once('?') {
        _ if back == "/inbox" => format!("/inbox?answered={request}#r-{request}"),
        Some(("/inbox", query)) => {
            let offset: u64 = Fields::parse(query.as_bytes())
                .get("offset")
                .parse()
                .unwrap_or(0);
            format!("/inbox?offset={offset}&answered={request}#r-{request}")
        }
        _ => format!("/runs/{run}?answered={request}#r-{request}"),
    };
    Redirect::to(&page).into_response()
}

/// The outcome of the request, for a page that updates itself.
async fn in_place(
    web: &Web,
    visitor: &Visitor,
    request: HumanRequestId,
    message: Option<&str>,
) -> PageResult {
    let found = web.store.requests(visitor.team_id(), vec![request]).await?;
    let outcome: Markup = match found.first() {
        Some(FoundRequest::Closed(closed)) => inbox::outcome_of(closed, web.clock.now()),
        _ => html! {},
    };
    let response = fragment(html! {
        @if let Some(message) = message { p data-wrong { (message) } }
        (outcome)
    });
    let status = if message.is_some() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    Ok((status, response).into_response())
}

/// The answers by question. Free text takes precedence over options.
fn answers(questions: &[Question], fields: &Fields) -> Map<String, Value> {
    let mut answers = Map::new();
    for (index, question) in questions.iter().enumerate() {
        let name = format!("q{index}");
        let own = fields.given(&format!("q{index}_text")).map(str::to_owned);
        let chosen = fields.all(&name).filter(|label| !label.is_empty());
        let value = if question.multi_select {
            let all: Vec<Value> = chosen
                .map(str::to_owned)
                .chain(own)
                .map(Value::String)
                .collect();
            if all.is_empty() {
                None
            } else {
                Some(Value::Array(all))
            }
        } else {
            let mut chosen = chosen;
            own.or_else(|| chosen.next().map(str::to_owned))
                .map(Value::String)
        };
        if let Some(value) = value {
            answers.insert(question.question.clone(), value);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question(multi_select: bool) -> Question {
        serde_json::from_value(json!({
            "question": "Which?", "options": [{"label": "A"}, {"label": "B"}], "multi_select": multi_select
        }))
        .unwrap()
    }

    #[test]
    fn an_option_is_chosen_or_an_answer_written() {
        let of = |fields: Fields| answers(&[question(false)], &fields);
        assert_eq!(of(Fields::default().with("q0", "A"))["Which?"], json!("A"));
        let both = Fields::default().with("q0", "A").with("q0_text", "other");
        assert_eq!(of(both)["Which?"], json!("other"));
        assert!(of(Fields::default()).is_empty());
    }

    #[test]
    fn several_choices_become_a_list() {
        let of = |fields: Fields| answers(&[question(true)], &fields);
        let two = Fields::default()
            .with("q0", "A")
            .with("q0", "B")
            .with("q0_text", "c, d");
        assert_eq!(of(two)["Which?"], json!(["A", "B", "c, d"]));
        assert!(of(Fields::default()).is_empty());
    }
}

//! Answers to human requests, from a form.

use axum::extract::State;
use axum::response::{IntoResponse as _, Redirect};
use errand_core::human::{Answer, Ask, Question};
use errand_core::id::{HumanRequestId, RunId};
use errand_store::Once;
use errand_store::model::Respond;
use serde_json::{Map, Value};

use super::{Sent, render, to_run};
use crate::web::Web;
use crate::web::failure::{Shown, told};
use crate::web::form::{Fields, Form, Path};
use crate::web::guard::Visitor;

pub(in crate::web) async fn answer(
    State(web): State<Web>,
    visitor: Visitor,
    Path((run, request)): Path<(RunId, HumanRequestId)>,
    Form(fields): Form,
) -> Shown {
    let view = web.store.run(visitor.team_id(), run).await?;
    let pending = view.pending.filter(|pending| pending.id == request);
    let answer = match (fields.get("decision"), pending.as_ref().map(|one| &one.ask)) {
        ("answer", Some(Ask::Question { questions })) => {
            Answer::Answers(answers(questions, &fields))
        }
        ("answer", _) => Answer::Answers(Map::new()),
        (decision, _) => Answer::Approval {
            approved: decision == "approve",
            reason: fields.given("reason").map(str::to_owned),
        },
    };
    let respond = Respond {
        team: visitor.team_id(),
        run,
        request,
        answer,
        by: visitor.user_id(),
        now: web.clock.now(),
    };
    if let Err(error) = web.store.respond(respond, Once::not_recorded()).await {
        // Somebody was first, or the answer does not fit: said where the request stands.
        let wrong = told(error.into())?;
        return render(&web, &visitor, run, None, Some(Sent { fields, wrong })).await;
    }
    Ok(match fields.get("back") {
        "/inbox" => Redirect::to("/inbox?answered=1").into_response(),
        "/" => Redirect::to("/").into_response(),
        _ => to_run(run),
    })
}

/// The answers by question. A text of one's own counts where there is one.
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
    fn one_is_chosen_or_written() {
        let of = |fields: Fields| answers(&[question(false)], &fields);
        assert_eq!(of(Fields::default().with("q0", "A"))["Which?"], json!("A"));
        let both = Fields::default().with("q0", "A").with("q0_text", "other");
        assert_eq!(of(both)["Which?"], json!("other"));
        assert!(of(Fields::default()).is_empty());
    }

    #[test]
    fn several_are_a_list() {
        let of = |fields: Fields| answers(&[question(true)], &fields);
        let two = Fields::default()
            .with("q0", "A")
            .with("q0", "B")
            .with("q0_text", "c, d");
        assert_eq!(of(two)["Which?"], json!(["A", "B", "c, d"]));
        assert!(of(Fields::default()).is_empty());
    }
}

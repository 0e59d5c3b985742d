use super::*;

fn ask(questions: Value) -> Ask {
    Ask::Question {
        questions: serde_json::from_value(questions).unwrap(),
    }
}

fn answers(value: Value) -> Answer {
    Answer::Answers(value.as_object().unwrap().clone())
}

#[test]
fn an_answer_must_match_the_kind_of_its_request() {
    let question = ask(json!([{"question": "Which?"}]));
    assert!(check_answer(&Ask::Approval, answers(json!({"Which?": "A"}))).is_err());
    assert!(
        check_answer(
            &question,
            Answer::Approval {
                approved: true,
                reason: None
            }
        )
        .is_err()
    );
}

#[test]
fn exactly_the_questions_asked_must_be_answered() {
    let question = ask(json!([{"question": "Which?"}, {"question": "When?"}]));
    let missing = check_answer(&question, answers(json!({"Which?": "A"}))).unwrap_err();
    assert!(missing.0.contains("When?"), "{missing}");
    let unknown = check_answer(
        &question,
        answers(json!({"Which?": "A", "When?": "now", "Who?": "I"})),
    )
    .unwrap_err();
    assert!(unknown.0.contains("Who?"), "{unknown}");
    assert!(check_answer(&question, answers(json!({"Which?": "A", "When?": " "}))).is_err());
    assert!(check_answer(&question, answers(json!({"Which?": "A", "When?": 3}))).is_err());
}

#[test]
fn labels_are_split_at_commas_unless_the_text_is_a_label() {
    let question = ask(
        json!([{"question": "Which?", "multi_select": true, "options": [{"label": "A"}, {"label": "B"}, {"label": "A, B"}]}]),
    );
    let of = |value: Value| match check_answer(&question, answers(json!({"Which?": value}))) {
        Ok(Resolution::Answered { answers }) => answers["Which?"].clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(json!("A,B")), json!(["A", "B"]));
    assert_eq!(of(json!("A, B")), json!(["A, B"]));
    assert_eq!(of(json!(["A", "B"])), json!(["A", "B"]));
}

#[test]
fn free_text_is_accepted_unless_disabled() {
    let free = ask(json!([{"question": "Which?", "options": [{"label": "A"}]}]));
    assert!(check_answer(&free, answers(json!({"Which?": "something else"}))).is_ok());
    let closed =
        ask(json!([{"question": "Which?", "options": [{"label": "A"}], "free_text": false}]));
    assert!(check_answer(&closed, answers(json!({"Which?": "something else"}))).is_err());
    assert!(check_answer(&closed, answers(json!({"Which?": "A"}))).is_ok());
}

#[test]
fn an_expired_request_never_approves() {
    for on_expire in [OnExpire::Deny, OnExpire::Continue, OnExpire::Fail] {
        let value = Resolution::Expired { on_expire }
            .value(&Ask::Approval)
            .unwrap();
        assert_eq!(value["approved"], json!(false));
    }
    let question = ask(json!([{"question": "Which?"}]));
    assert!(
        Resolution::Expired {
            on_expire: OnExpire::Deny
        }
        .value(&question)
        .is_err()
    );
    assert!(
        Resolution::Expired {
            on_expire: OnExpire::Continue
        }
        .value(&question)
        .is_ok()
    );
}

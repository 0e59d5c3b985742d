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

#[test]
fn texts_of_a_request_have_bounds_and_the_error_names_them() {
    let call = |arguments: Value| ToolCall {
        id: "c".to_owned(),
        name: "ask_human".to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    };
    let text = |chars: usize| "é".repeat(chars);
    let fits = call(json!({"title": text(200)}));
    assert_eq!(approval_from_call(&fits).unwrap().title, text(200));
    let error = approval_from_call(&call(json!({"title": text(201)})))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "invalid_arguments: title: must be at most 200 characters"
    );
    let asks =
        |question: Value| question_from_call(&call(json!({"title": "T", "questions": [question]})));
    let whole = json!({
        "question": text(2_000), "header": text(100),
        "options": [{"label": text(200), "description": text(1_000)}],
    });
    assert!(asks(whole).is_ok());
    for (question, says) in [
        (
            json!({"question": text(2_001)}),
            "questions[0].question: must be at most 2000 characters",
        ),
        (
            json!({"question": "Q", "header": text(101)}),
            "questions[0].header: must be at most 100 characters",
        ),
        (
            json!({"question": "Q", "options": [{"label": "A"}, {"label": text(201)}]}),
            "questions[0].options[1].label: must be at most 200 characters",
        ),
        (
            json!({"question": "Q", "options": [{"label": "A", "description": text(1_001)}]}),
            "questions[0].options[0].description: must be at most 1000 characters",
        ),
    ] {
        let error = asks(question).unwrap_err().to_string();
        assert_eq!(error, format!("invalid_arguments: {says}"));
    }
    let options: Vec<Value> = (0..70)
        .map(|number| json!({"label": number.to_string(), "description": text(1_000)}))
        .collect();
    let error = asks(json!({"question": "Q", "options": options}))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("at most 65536 characters together"),
        "{error}"
    );
}

//! Templates, schemas and comparisons that attack the server: each costs only its own run, call or page.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use errand_core::id::IdGen;
use errand_core::playbook::{Form, Job};
use errand_core::time::Timestamp;
use errand_engine::evaluate::{EvaluateError, Evaluators, TeamEvaluators};
use errand_testkit::{Team, TestApp};
use serde_json::{Map, Value, json};

use crate::web::Browser;

/// Nested values, built within one template.
pub(crate) fn nested(levels: usize, then: &str) -> String {
    format!("{{% set a=1 %}}{}{then}", "{% set a=[a] %}".repeat(levels))
}

/// Two equal values that share their parts: walking them takes 2^`levels` steps.
pub(crate) fn shared(levels: usize) -> String {
    let one = |name: &str| {
        format!("{{% set {name}=1 %}}")
            + &format!("{{% set {name}=[{name},{name}] %}}").repeat(levels)
    };
    one("a") + &one("b") + "{{ a == b }}"
}

fn evaluators(time: Duration) -> TeamEvaluators {
    let program = Some(PathBuf::from(env!("CARGO_BIN_EXE_errand")));
    let all = Evaluators::with_time(program, time);
    all.of(IdGen::new([1; 32]).team(Timestamp::default()))
}

async fn evaluate(evaluators: &TeamEvaluators, source: &str) -> Result<bool, EvaluateError> {
    let job = Job::new(source, Form::Text, Map::new());
    evaluators.template(job).await.map(|reply| reply.is_ok())
}

#[tokio::test]
async fn a_template_that_overflows_or_never_ends_costs_its_evaluation() {
    let patient = evaluators(Duration::from_secs(60));
    // Some of these end with their own error, the others with their process.
    for then in [
        "{{ (a|string)|length }}",
        "{{ a ~ '' }}",
        "{{ '%s'|format(a) }}",
        "{{ [a]|join }}",
        "{{ a == [a] }}",
        "{{ a|tojson }}",
        "{{ [a, a]|sort }}",
        "{{ [a, a]|unique }}",
        "{{ a in [a, [a]] }}",
        "{{ {a: 1} }}",
        "{{ a }}",
        "{% set b = a %}",
    ] {
        let _ = evaluate(&patient, &nested(9_000, then)).await;
        assert_eq!(
            evaluate(&patient, "{{ [1] }}").await,
            Ok(true),
            "after {then}"
        );
    }
    let deep = format!("{}{{{{ a == 0 }}}}", nested(200_000, ""));
    let _ = evaluate(&patient, &deep).await;
    assert_eq!(evaluate(&patient, "{{ [1] }}").await, Ok(true));
    let hasty = evaluators(Duration::from_secs(1));
    for endless in [shared(60), nested(2_400, "{{ a|pprint }}")] {
        let done = evaluate(&hasty, &endless).await;
        assert_eq!(done, Err(EvaluateError::TooSlow));
    }
    assert_eq!(evaluate(&patient, "{{ [1] }}").await, Ok(true));
}

#[tokio::test]
async fn an_abandoned_evaluation_ends() {
    let evaluators = evaluators(Duration::from_secs(3_600));
    // As many as a team can have at once; dropping them frees their slots.
    for _ in 0..3 {
        let source = shared(60);
        let (a, b) = (
            evaluate(&evaluators, &source),
            evaluate(&evaluators, &source),
        );
        let both = async { tokio::join!(a, b) };
        assert!(
            tokio::time::timeout(Duration::from_millis(100), both)
                .await
                .is_err()
        );
    }
    assert_eq!(evaluate(&evaluators, "{{ [1] }}").await, Ok(true));
}

#[tokio::test]
async fn a_schema_that_never_ends_is_not_evaluated() {
    let hasty = evaluators(Duration::from_secs(1));
    let both = json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]});
    let schema = json!({"$defs": {"a": {"type": "object", "additionalProperties": both}}, "$ref": "#/$defs/a"});
    let value = (0..60).fold(json!({}), |inner, _| json!({"x": inner}));
    assert_eq!(
        hasty.misfit(&schema, &value).await,
        Err(EvaluateError::TooMuch)
    );
    let plain = json!({"properties": {"to": {"type": "string"}}});
    let misfit = hasty.misfit(&plain, &json!({"to": 1})).await.unwrap();
    assert_eq!(misfit.unwrap().place, "/to");
    assert_eq!(hasty.misfit(&plain, &json!({"to": "x"})).await, Ok(None));
}

async fn playbook_run(app: &TestApp, team: &Team, template: &str) -> String {
    let steps = json!([{"set": {"a": template}}, {"finish": "x"}]);
    let agent = app.playbook(team, steps).await;
    app.run(team, json!({"agent_id": agent})).await
}

#[tokio::test]
async fn a_run_whose_template_overflows_fails_and_others_go_on() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let hostile = playbook_run(&app, &team, &nested(2_400, "{{ (a|string)|length }}")).await;
    let other = playbook_run(&app, &team, "{{ [1]|sort }}").await;
    app.settle().await;
    assert_eq!(app.status(&team, &other).await, "completed");
    let run = app.get_run(&team, &hostile).await;
    // It ends by itself if the stack suffices.
    assert!(
        ["failed", "completed"].contains(&run["run"]["status"].as_str().unwrap()),
        "{run}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_chain_of_operators_is_refused_by_its_place() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for chain in ["-", "not ", "(", "[", "1 if 0 else "] {
        let steps =
            json!([{"say": "x"}, {"set": {"a": format!("{{{{ {}1 }}}}", chain.repeat(20_000))}}]);
        let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}}});
        let body = json!({"name": "b", "build": {"name": "v", "config": config}});
        let (_, message) = app.post(&team.key, "/v1/agents", body).await.error(400);
        assert!(message.contains("playbook.steps[1].set.a"), "{message}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_comparison_of_builds_ends_by_its_deadline() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let config = |seed: u64| {
        let mut n = seed;
        let mut line = || {
            n = n
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:04x}\n", (n >> 40) & 0xffff)
        };
        let input: String = (0..80_000).map(|_| line()).collect();
        json!({"version": "v2", "data": {"input": input, "playbook": {"steps": [{"finish": "x"}]}}})
    };
    let agent = app.agent(&team, config(1)).await;
    let first = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    let path = format!("/v1/agents/{agent}/builds");
    let body = json!({"name": "v2", "config": config(2)});
    let second = app.post(&team.key, &path, body).await.expect(201);
    let id = |build: &Value| build["id"].as_str().unwrap().to_owned();
    let (from, to) = (id(&first["build"]), id(&second["build"]));
    let path = format!("/assignments/{agent}/builds/compare?from={from}&to={to}");
    let began = Instant::now();
    let page = owner.get(&path).await.ok();
    // Without its deadline it takes minutes.
    assert!(
        began.elapsed() < Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    assert!(page.contains("too many lines to compare"));
    assert!(page.len() < 8 * 1024 * 1024, "{}", page.len());
    app.finish().await;
}

//! Drafts, the live build, and what clients of the hosted product read about agents and builds.

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::{Value, json};

fn says(text: &str) -> Value {
    json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": text}]}}})
}

/// Creates a build of an agent and returns it.
async fn build(app: &TestApp, team: &Team, agent: &str, body: Value) -> Value {
    let path = format!("/v1/agents/{agent}/revisions");
    let made = app.post(&team.key, &path, body).await.expect(201);
    assert_eq!(made["agent"]["id"], agent);
    made["build"].clone()
}

/// Sends a request with JSON as raw text.
async fn raw(app: &TestApp, team: &Team, text: String) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    app.send(Method::POST, "/v1/agents", &headers, Body::from(text))
        .await
}

async fn status(app: &TestApp, team: &Team, build: &Value) -> String {
    let path = format!("/v1/revisions/{}", build["id"].as_str().unwrap());
    let found = app.get(&team.key, &path).await.expect(200);
    found["build"]["status"].as_str().unwrap().to_owned()
}

async fn build_of_new_run(app: &TestApp, team: &Team, agent: &str) -> Value {
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.get_run(team, &run).await["run"]["build_id"].clone()
}

fn path_of(build: &Value, rest: &str) -> String {
    format!("/v1/revisions/{}{rest}", build["id"].as_str().unwrap())
}

#[tokio::test]
async fn a_draft_is_not_run_until_it_is_promoted() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("one")).await;
    let live = build_of_new_run(&app, &team, &agent).await;
    let draft = json!({"name": "two", "config": says("two"), "draft": true});
    let draft = build(&app, &team, &agent, draft).await;
    assert_eq!(
        (&draft["status"], &draft["number"]),
        (&json!("draft"), &json!(2))
    );
    assert_eq!(build_of_new_run(&app, &team, &agent).await, live);
    let shown = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    assert_eq!(shown["build"]["id"], live);
    let listed = app.get(&team.key, "/v1/agents").await.expect(200);
    assert_eq!(listed["agents"][0]["latest_build"]["id"], draft["id"]);

    let promoted = app
        .post(&team.key, &path_of(&draft, "/promote"), json!({}))
        .await
        .expect(200);
    assert_eq!(promoted, json!({"success": true}));
    assert_eq!(build_of_new_run(&app, &team, &agent).await, draft["id"]);
    assert_eq!(status(&app, &team, &draft).await, "live");
    assert_eq!(status(&app, &team, &json!({"id": live})).await, "historic");
    // Promotes the first again, then a newer one.
    let first = path_of(&json!({"id": live}), "/promote");
    app.post(&team.key, &first, json!({"revision_name": "back"}))
        .await
        .expect(200);
    assert_eq!(build_of_new_run(&app, &team, &agent).await, live);
    assert_eq!(status(&app, &team, &draft).await, "historic");
    app.post(&team.key, &first, json!({})).await.expect(200);
    let third = build(
        &app,
        &team,
        &agent,
        json!({"name": "three", "config": says("three")}),
    )
    .await;
    assert_eq!(third["status"], "live");
    assert_eq!(build_of_new_run(&app, &team, &agent).await, third["id"]);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn promoting_accepts_any_body_and_reads_objects() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("one")).await;
    let live = build_of_new_run(&app, &team, &agent).await;
    let path = path_of(&json!({"id": live}), "/promote");
    let bearer = format!("Bearer {}", team.key);
    let promote = async |kind: &str, body: &'static str| {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        app.send(Method::POST, &path, &headers, Body::from(body))
            .await
    };
    for (kind, body) in [
        ("application/json", "[1]"),
        ("application/json", "null"),
        ("application/json", "not JSON"),
        ("text/plain", "anything"),
        ("text/plain", "{}"),
        ("application/x-www-form-urlencoded", ""),
    ] {
        promote(kind, body).await.expect(200);
    }
    let named = r#"{"revision_name": "new"}"#;
    promote("text/plain", named).await.error(415);
    let misspelt = r#"{"revision_nam": "new"}"#;
    let (_, message) = promote("application/json", misspelt).await.error(400);
    assert!(message.contains("revision_name"), "{message}");
    let name = async || {
        let found = app.get(&team.key, path.trim_end_matches("/promote")).await;
        found.expect(200)["build"]["revision_name"].clone()
    };
    let before = name().await;
    assert_ne!(before, "new");
    promote("application/json", named).await.expect(200);
    assert_eq!(name().await, "new");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn an_agent_with_only_drafts_cannot_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = json!({"name": "a", "build": {"name": "b", "config": says("x"), "draft": true}});
    let made = app.post(&team.key, "/v1/agents", made).await.expect(201);
    assert_eq!(made["build"]["status"], "draft");
    let agent = made["agent"]["id"].as_str().unwrap();
    let shown = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    assert_eq!(shown["build"], Value::Null);
    let (_, message) = app
        .post(&team.key, "/v1/runs", json!({"agent_id": agent}))
        .await
        .error(400);
    assert!(message.contains("promote"), "{message}");
    app.finish().await;
}

#[tokio::test]
async fn a_change_of_config_makes_a_child_of_the_same_kind() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("one")).await;
    let live = json!({"id": build_of_new_run(&app, &team, &agent).await});
    let body = json!({"config": says("two"), "revision_description": "why"});
    let made = app
        .patch(&team.key, &path_of(&live, ""), body)
        .await
        .expect(200);
    assert_eq!(made["warnings"], json!([]), "it created a build");
    let child = made["build"].clone();
    let renamed = app
        .patch(&team.key, &path_of(&live, ""), json!({"name": "one"}))
        .await
        .expect(200);
    assert_eq!(renamed["warnings"], Value::Null, "it created none");
    assert_eq!(
        (
            &child["parent_build_id"],
            &child["status"],
            &child["revision_description"]
        ),
        (&live["id"], &json!("live"), &json!("why"))
    );
    assert_eq!(child["config"], says("two"));
    assert_eq!(build_of_new_run(&app, &team, &agent).await, child["id"]);
    // The first build is historic by now, and stays unchanged.
    let (_, message) = app
        .patch(&team.key, &path_of(&live, ""), json!({"config": says("x")}))
        .await
        .error(400);
    assert!(message.starts_with("config: "), "{message}");

    let draft = json!({"name": "d", "config": says("d1"), "draft": true});
    let draft = build(&app, &team, &agent, draft).await;
    let second = app
        .patch(
            &team.key,
            &path_of(&draft, ""),
            json!({"config": says("d2")}),
        )
        .await
        .expect(200)["build"]
        .clone();
    assert_eq!(
        (
            &second["status"],
            &second["name"],
            &second["parent_build_id"]
        ),
        (&json!("draft"), &json!("d"), &draft["id"])
    );
    for (path, body) in [
        (path_of(&draft, "/promote"), None),
        (path_of(&draft, ""), Some(json!({"config": says("d3")}))),
    ] {
        let reply = match body {
            None => app.post(&team.key, &path, json!({})).await,
            Some(body) => app.patch(&team.key, &path, body).await,
        };
        let (code, message) = reply.error(409);
        assert_eq!(code, "conflict");
        assert!(
            message.contains(second["id"].as_str().unwrap()),
            "{message}"
        );
    }
    assert_eq!(build_of_new_run(&app, &team, &agent).await, child["id"]);
    app.post(&team.key, &path_of(&second, "/promote"), json!({}))
        .await
        .expect(200);
    assert_eq!(build_of_new_run(&app, &team, &agent).await, second["id"]);
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_build_is_copied_by_its_id() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let agent = app.agent(&team, says("one")).await;
    let source = build_of_new_run(&app, &team, &agent).await;
    let copy = build(
        &app,
        &team,
        &agent,
        json!({"name": "copy", "source_build_id": source}),
    )
    .await;
    assert_eq!(
        (&copy["config"], &copy["number"]),
        (&says("one"), &json!(2))
    );
    let path = format!("/v1/agents/{agent}/revisions");
    for (body, named) in [
        (json!({"name": "x"}), "config"),
        (
            json!({"name": "x", "config": says("a"), "source_build_id": source}),
            "source_build_id",
        ),
        (
            json!({"name": "x", "source_build_id": agent}),
            "source_build_id",
        ),
        (
            json!({"name": "x", "config": says("a"), "handover_target_ids": []}),
            "handover_target_ids",
        ),
    ] {
        let (_, message) = app.post(&team.key, &path, body.clone()).await.error(400);
        assert!(message.contains(named), "{body}: {message}");
    }
    let theirs = app.agent(&other, says("b")).await;
    let foreign = format!("/v1/agents/{theirs}/revisions");
    let body = json!({"name": "x", "source_build_id": source});
    let (_, message) = app.post(&other.key, &foreign, body).await.error(400);
    assert!(message.contains("this build does not exist"), "{message}");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn a_change_that_cannot_be_made_is_never_passed_over() {
    let app = TestApp::with_settings(&[("ERRAND_API__UNKNOWN_FIELDS", "ignore")]).await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("one")).await;
    let live = json!({"id": build_of_new_run(&app, &team, &agent).await});
    for body in [
        json!({"handoverTargetIds": []}),
        json!({"name": "x", "source_build_id": live["id"]}),
        json!({"status": "draft"}),
        json!({"colour": "red"}),
    ] {
        app.patch(&team.key, &path_of(&live, ""), body)
            .await
            .error(400);
    }
    let pinned = json!({"name": "x", "slack_enabled": true});
    app.patch(&team.key, &format!("/v1/agents/{agent}"), pinned)
        .await
        .error(400);
    let renamed = json!({"revision_name": "better", "colour": "red"});
    let renamed = app
        .patch(&team.key, &path_of(&live, ""), renamed)
        .await
        .expect(200);
    assert_eq!(renamed["build"]["name"], "better");
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn agents_and_builds_have_the_fields_of_the_hosted_product() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bare = app
        .post(&team.key, "/v1/agents", json!({"name": "bare"}))
        .await
        .expect(201);
    assert!(bare.get("build").is_none(), "{bare}");
    let agent = app.agent(&team, says("one")).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let listed = app
        .get(&team.key, "/v1/agents?include_schedules=false&limit=5")
        .await
        .expect(200);
    let row = listed["agents"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["id"] == agent.as_str())
        .unwrap();
    let created_at = app.get_run(&team, &run).await["run"]["created_at"].clone();
    for (field, value) in [
        ("team_id", json!(team.id.to_string())),
        ("slack_enabled", json!(false)),
        ("microsoft_teams_enabled", json!(false)),
        ("agentic_memory_enabled", json!(false)),
        ("thread_id", Value::Null),
        ("pinned_at", Value::Null),
        ("integration_configs", json!([])),
        ("folder_id", Value::Null),
        ("last_run_at", created_at),
    ] {
        assert_eq!(row.get(field), Some(&value), "{field}");
    }
    for field in ["created_by", "updated_by"] {
        assert_eq!(row[field]["id"], team.owner.to_string());
        assert!(row[field]["name"].is_string() && row[field].get("email").is_some());
    }
    let build = &row["latest_build"];
    for (alias, field) in [
        ("copilot_id", "agent_id"),
        ("revision_number", "number"),
        ("revision_name", "name"),
        ("revision_description", "description"),
        ("updated_at", "created_at"),
    ] {
        assert_eq!(build.get(alias), build.get(field), "{alias}");
    }
    assert_eq!(
        (&build["status"], &build["parent_build_id"]),
        (&json!("live"), &Value::Null)
    );
    assert!(build.get("created_by_name").is_some());
    app.get(&team.key, "/v1/agents?include_schedules=maybe")
        .await
        .error(400);
    app.finish().await;
}

#[tokio::test]
async fn values_that_would_not_round_trip_are_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let with = |rest: &str| {
        format!(
            r#"{{"name": "x", "build": {{"name": "b", "config": {{"version": "v2", "data": {{"playbook": {{"steps": [{{"finish": "a"}}]}}{rest}}}}}}}}}"#
        )
    };
    for (rest, named) in [
        (
            r#", "note": 123456789012345678901234567890"#,
            "build.config.data.note",
        ),
        (
            r#", "note": [0.1000000000000000000001]"#,
            "build.config.data.note[0]",
        ),
        (r#", "note": 1, "note": 2"#, "build.config.data.note"),
    ] {
        let (_, message) = raw(&app, &team, with(rest)).await.error(400);
        assert!(message.starts_with(named), "{message}");
    }
    let kept = r#", "note": [18446744073709551615, 0.1, 5.0, 1e3], "limits": {"steps": 5.0}"#;
    let body = format!("\u{feff}{}", with(kept));
    let made = raw(&app, &team, body).await.expect(201);
    assert_eq!(
        made["build"]["config"]["data"]["note"],
        json!([u64::MAX, 0.1, 5.0, 1e3])
    );
    app.finish().await;
}

#[tokio::test]
async fn an_input_of_text_parts_is_read() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let with = |input: Value| {
        json!({"name": "a", "build": {"name": "b", "config": {"version": "v2", "data": {
        "models": {"agent": {"model": "anthropic/claude-sonnet-4-5[1m]"}}, "input": input}}}})
    };
    for input in [
        json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}]),
        json!([{"type": "input_text", "text": "You are brief."}]),
    ] {
        let made = app
            .post(&team.key, "/v1/agents", with(input.clone()))
            .await
            .expect(201);
        assert_eq!(made["build"]["config"]["data"]["input"], input);
    }
    for (input, named) in [
        (
            json!([{"role": "user", "content": [{"type": "input_image", "text": "a"}]}]),
            "content[0].type",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            "content[0].text",
        ),
        (json!([{"role": "user", "content": 1}]), "content"),
    ] {
        let (_, message) = app
            .post(&team.key, "/v1/agents", with(input))
            .await
            .error(400);
        assert!(message.contains(named), "{message}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_model_has_other_names_by_the_settings() {
    let options = TestOptions {
        file: Some("[models.aliases]\n\"d1-max\" = \"script/x\"\n".to_owned()),
        ..TestOptions::default()
    };
    let app = TestApp::start_with(options).await;
    let team = app.team("acme").await;
    let with = |model: &str| json!({"name": "a", "build": {"name": "b", "config": {"version": "v2", "data": {"models": {"agent": {"model": model}}}}}});
    for model in ["d1-max", "d1-max[1m]"] {
        let made = app
            .post(&team.key, "/v1/agents", with(model))
            .await
            .expect(201);
        // The value is returned as it was given.
        assert_eq!(
            made["build"]["config"]["data"]["models"]["agent"]["model"],
            model
        );
        let started = json!({"agent_id": made["agent"]["id"]});
        app.post(&team.key, "/v1/runs", started).await.expect(201);
    }
    for model in ["d2-max", "claude-sonnet-4-5[9m]", "anthropic/[1m]"] {
        let (_, message) = app
            .post(&team.key, "/v1/agents", with(model))
            .await
            .error(400);
        assert!(message.contains("models.aliases"), "{message}");
    }
    app.settle().await;
    app.finish().await;
}

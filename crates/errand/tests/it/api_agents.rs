//! Agents and builds in the API. Refused requests change nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use errand_testkit::{Team, TestApp};
use http::Method;
use serde_json::{Value, json};

fn says(text: &str) -> Value {
    json!({"version": "v2", "data": {"playbook": {"steps": [{"finish": text}]}}})
}

async fn total(app: &TestApp, team: &Team, path: &str) -> u64 {
    app.get(&team.key, path).await.expect(200)["total"]
        .as_u64()
        .unwrap()
}

async fn builds(app: &TestApp, team: &Team, agent: &str) -> Vec<Value> {
    let listed = app
        .get(
            &team.key,
            &format!("/v1/agents/{agent}/revisions?limit=100"),
        )
        .await
        .expect(200);
    listed["builds"].as_array().unwrap().clone()
}

/// A build as read, without the tools that its runs currently have.
fn alone(build: &Value) -> Value {
    let mut build = build.clone();
    let tools = build.as_object_mut().unwrap().remove("effective_tools");
    assert!(tools.is_some_and(|tools| tools.is_array()), "{build}");
    build
}

#[tokio::test]
async fn an_agent_is_made_with_or_without_a_build() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bare = app
        .post(&team.key, "/v1/agents", json!({"name": "Bare"}))
        .await
        .expect(201);
    assert!(bare.get("build").is_none(), "{bare}");
    let agent = &bare["agent"];
    assert_eq!(
        *agent,
        json!({
            "id": agent["id"], "name": "Bare", "created_at": app.now().to_string(), "updated_at": app.now().to_string(),
            "team_id": team.id.to_string(), "slack_enabled": false, "microsoft_teams_enabled": false,
            "agentic_memory_enabled": false, "thread_id": null
        })
    );
    let run = app
        .post(&team.key, "/v1/runs", json!({"agent_id": agent["id"]}))
        .await;
    assert_eq!(
        run.error(400).0,
        "bad_request",
        "an agent without a build cannot run"
    );

    let whole = app
        .post(
            &team.key,
            "/v1/agents",
            json!({"name": "Whole", "build": {"name": "first", "config": says("hello")}}),
        )
        .await
        .expect(201);
    let build = &whole["build"];
    let expected = json!({
        "id": build["id"], "agent_id": whole["agent"]["id"], "number": 1, "name": "first", "description": null,
        "config": says("hello"), "created_by": team.owner.to_string(), "created_at": app.now().to_string(),
        "copilot_id": whole["agent"]["id"], "revision_number": 1, "revision_name": "first", "revision_description": null,
        "parent_build_id": null, "status": "live", "updated_at": app.now().to_string(), "created_by_name": build["created_by_name"]
    });
    assert_eq!(*build, expected);
    let got = app
        .get(
            &team.key,
            &format!("/v1/agents/{}", whole["agent"]["id"].as_str().unwrap()),
        )
        .await
        .expect(200);
    assert_eq!(whole["warnings"], json!([]));
    assert_eq!(got["agent"], whole["agent"]);
    assert_eq!(alone(&got["build"]), whole["build"]);
    app.finish().await;
}

#[tokio::test]
async fn agents_are_listed_by_age_in_pages() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    for name in ["one", "two", "three"] {
        app.post(&team.key, "/v1/agents", json!({"name": name}))
            .await
            .expect(201);
        app.advance(Duration::from_secs(1)).await;
    }
    let names = |body: &Value| -> Vec<String> {
        body["agents"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| a["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = app.get(&team.key, "/v1/agents").await.expect(200);
    assert_eq!(names(&all), ["three", "two", "one"]);
    assert_eq!(
        (&all["total"], &all["limit"], &all["offset"]),
        (&json!(3), &json!(20), &json!(0))
    );
    let page = app
        .get(&team.key, "/v1/agents?limit=1&offset=1")
        .await
        .expect(200);
    assert_eq!(names(&page), ["two"]);
    assert_eq!(
        (&page["total"], &page["limit"], &page["offset"]),
        (&json!(3), &json!(1), &json!(1))
    );
    assert_eq!(
        names(&app.get(&team.key, "/v1/agents?offset=3").await.expect(200)),
        [""; 0]
    );
    for (query, named) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=a", "limit"),
        ("limit=", "limit"),
        ("offset=-1", "offset"),
        ("limit=1&limit=2", "limit"),
        ("limt=1", "limit"),
    ] {
        let (code, message) = app
            .get(&team.key, &format!("/v1/agents?{query}"))
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(named), "{query}: {message}");
    }
    let other = app.team("other").await;
    assert_eq!(total(&app, &other, "/v1/agents").await, 0);
    app.finish().await;
}

#[tokio::test]
async fn invalid_bodies_create_no_agent() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let long = "x".repeat(201);
    let cases = [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": long}), "name"),
        (json!({"name": 5}), "name"),
        (json!({"name": null}), "name"),
        (json!({"nmae": "x"}), "name"),
        (json!({"name": "x", "biuld": {}}), "build"),
        (json!({"name": "x", "build": {"name": "first"}}), "config"),
        (json!({"name": "x", "build": {"config": says("a")}}), "name"),
        (
            json!({"name": "x", "build": {"name": "first", "confg": says("a"), "config": says("a")}}),
            "config",
        ),
        (
            json!({"name": "x", "build": {"name": "", "config": says("a")}}),
            "name",
        ),
        (json!({"name": "x", "build": "first"}), "build"),
        (json!(["x"]), "object"),
    ];
    for (body, named) in cases {
        let (code, message) = app
            .post(&team.key, "/v1/agents", body.clone())
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains(named), "{body}: {message}");
    }
    assert_eq!(total(&app, &team, "/v1/agents").await, 0);
    app.finish().await;
}

#[tokio::test]
async fn unknown_fields_may_be_ignored_by_a_setting() {
    let app = TestApp::with_settings(&[("ERRAND_API__UNKNOWN_FIELDS", "ignore")]).await;
    let team = app.team("acme").await;
    let made = app.post(&team.key, "/v1/agents", json!({"name": "x", "colour": "red", "build": {"name": "b", "config": says("a"), "tag": 1}})).await;
    assert_eq!(made.expect(201)["build"]["number"], 1);
    assert_eq!(total(&app, &team, "/v1/agents?colour=red").await, 1);
    app.finish().await;
}

#[tokio::test]
async fn an_agent_is_renamed_and_nothing_else() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("hello")).await;
    let path = format!("/v1/agents/{agent}");
    let before = app.get(&team.key, &path).await.expect(200);
    for body in [
        json!({"name": ""}),
        json!({"name": 1}),
        json!({"name": "y", "build": {}}),
        json!({"id": agent}),
        json!({"name": "x".repeat(201)}),
    ] {
        assert_eq!(
            app.patch(&team.key, &path, body).await.error(400).0,
            "bad_request"
        );
    }
    assert_eq!(app.get(&team.key, &path).await.expect(200), before);
    app.advance(Duration::from_secs(1)).await;
    let renamed = app
        .patch(&team.key, &path, json!({"name": "New"}))
        .await
        .expect(200);
    assert_eq!(renamed["agent"]["name"], "New");
    assert_eq!(
        renamed["agent"]["created_at"],
        before["agent"]["created_at"]
    );
    assert_eq!(renamed["agent"]["updated_at"], app.now().to_string());
    assert_eq!(renamed["build"], alone(&before["build"]));
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(got["agent"], renamed["agent"]);
    assert_eq!(got["build"], before["build"]);
    app.finish().await;
}

#[tokio::test]
async fn builds_have_two_addresses_and_a_run_takes_the_latest() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("first")).await;
    let waits = json!({"version": "v2", "data": {"playbook": {"steps": [{"approve": {"title": "Go on?"}}, {"finish": "old"}]}}});
    let second = app
        .post(
            &team.key,
            &format!("/v1/agents/{agent}/revisions"),
            json!({"name": "second", "config": waits}),
        )
        .await
        .expect(201);
    assert_eq!(
        (&second["build"]["number"], &second["build"]["agent_id"]),
        (&json!(2), &json!(agent))
    );
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    app.advance(Duration::from_secs(1)).await;
    let third = app
        .post(
            &team.key,
            "/v1/builds",
            json!({"agent_id": agent, "name": "third", "config": says("new")}),
        )
        .await
        .expect(201);
    assert_eq!(third["build"]["number"], 3);
    let fourth = app
        .post(
            &team.key,
            &format!("/v1/agents/{agent}/builds"),
            json!({"name": "fourth", "config": says("newest")}),
        )
        .await
        .expect(201);
    assert_eq!(fourth["build"]["number"], 4);
    assert_eq!(
        alone(
            &app.get(&team.key, &format!("/v1/agents/{agent}"))
                .await
                .expect(200)["build"]
        ),
        fourth["build"]
    );

    let mut replaced = second["build"].clone();
    replaced["status"] = json!("historic");
    let numbers: Vec<_> = builds(&app, &team, &agent)
        .await
        .iter()
        .map(|b| b["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [4, 3, 2, 1]);
    for path in ["revisions", "builds"] {
        let page = app
            .get(
                &team.key,
                &format!("/v1/agents/{agent}/{path}?limit=2&offset=1"),
            )
            .await
            .expect(200);
        assert_eq!(
            (&page["total"], &page["limit"], &page["offset"]),
            (&json!(4), &json!(2), &json!(1))
        );
        assert_eq!(
            (&page["builds"][0]["number"], &page["builds"][1]),
            (&json!(3), &replaced)
        );
        app.get(&team.key, &format!("/v1/agents/{agent}/{path}?limit=101"))
            .await
            .error(400);
    }
    let id = second["build"]["id"].as_str().unwrap();
    for path in ["revisions", "builds"] {
        let got = app.get(&team.key, &format!("/v1/{path}/{id}")).await;
        assert_eq!(alone(&got.expect(200)["build"]), replaced);
    }
    // The waiting run keeps its build; a new run gets the newest.
    let waiting = app.get_run(&team, &run).await;
    assert_eq!(waiting["run"]["build_id"], second["build"]["id"]);
    let request = waiting["pending_human_request"]["id"].as_str().unwrap();
    app.post(
        &team.key,
        &format!("/v1/runs/{run}/human-requests/{request}/respond"),
        json!({"approved": true}),
    )
    .await
    .expect(200);
    let newest = app
        .post(&team.key, "/v1/runs", json!({"agent_id": agent}))
        .await
        .expect(201);
    assert_eq!(newest["run"]["build_id"], fourth["build"]["id"]);
    app.settle().await;
    assert_eq!(
        app.messages(&team, &run).await.last().unwrap()["text_content"],
        "old"
    );
    app.finish().await;
}

#[tokio::test]
async fn numbers_of_builds_are_given_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("first")).await;
    let path = format!("/v1/agents/{agent}/revisions");
    let posts = (0..20).map(|n| {
        app.post(
            &team.key,
            &path,
            json!({"name": format!("build {n}"), "config": says("x")}),
        )
    });
    let made = futures::future::join_all(posts).await;
    let numbers: BTreeSet<_> = made
        .iter()
        .map(|reply| reply.expect(201)["build"]["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (2..=21).collect());
    app.finish().await;
}

#[tokio::test]
async fn only_name_and_description_of_a_build_change() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("first")).await;
    let before = builds(&app, &team, &agent).await.remove(0);
    let path = format!("/v1/revisions/{}", before["id"].as_str().unwrap());
    for body in [
        json!({"config": {"version": "v1"}}),
        json!({"number": 7}),
        json!({"name": ""}),
        json!({"name": 5}),
        json!({"description": 5}),
        json!({"name": "ok", "config": 5}),
        json!({"name": "ok", "revision_name": "better"}),
        json!({"descripton": "x"}),
    ] {
        assert_eq!(
            app.patch(&team.key, &path, body.clone()).await.error(400).0,
            "bad_request",
            "{body}"
        );
    }
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(alone(&got["build"]), before);
    let described = app
        .patch(&team.key, &path, json!({"description": "For invoices."}))
        .await
        .expect(200);
    let mut expected = before.clone();
    expected["description"] = json!("For invoices.");
    expected["revision_description"] = json!("For invoices.");
    assert_eq!(described["build"], expected);
    let alias = path.replace("revisions", "builds");
    let renamed = app
        .patch(&team.key, &alias, json!({"name": "better"}))
        .await
        .expect(200);
    expected["name"] = json!("better");
    expected["revision_name"] = json!("better");
    assert_eq!(renamed["build"], expected, "what is absent stays");
    let cleared = app
        .patch(&team.key, &path, json!({"description": null}))
        .await
        .expect(200);
    expected["description"] = Value::Null;
    expected["revision_description"] = Value::Null;
    assert_eq!(cleared["build"], expected);
    let got = app.get(&team.key, &path).await.expect(200);
    assert_eq!(alone(&got["build"]), expected);
    app.finish().await;
}

#[tokio::test]
async fn keys_that_we_do_not_know_are_kept_and_given_back() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let config = json!({
        "version": "v2",
        "theme": {"colour": "red", "list": [1, 2.5, null, true, {"deep": "ü\u{1F980}"}]},
        "data": {
            "models": {"agent": {"model": "builtin/playbook", "temperature": 0.2}, "judge": {"model": "x"}},
            "limits": {"steps": 5, "turns": 7},
            "human_requests": {"expires_in": "1h", "remind": "10m"},
            "something_else": {"tools": {"no_such": "thing"}},
            "playbook": {"steps": [{"finish": "done"}]}
        }
    });
    let agent = app.agent(&team, config.clone()).await;
    assert_eq!(
        app.get(&team.key, &format!("/v1/agents/{agent}"))
            .await
            .expect(200)["build"]["config"],
        config
    );
    assert_eq!(builds(&app, &team, &agent).await[0]["config"], config);
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.finish().await;
}

/// Invalid `data` of a build, and a word that the message must contain.
fn wrong_data() -> Vec<(Value, &'static str)> {
    let steps = json!([{"finish": "x"}]);
    let with = |name: &str, value: Value| {
        let mut data = json!({"playbook": {"steps": steps}});
        data[name] = value;
        data
    };
    let step = |step: Value| json!({"playbook": {"steps": [{"say": "hi"}, step]}});
    vec![
        (json!({}), "config.data.models"),
        (
            json!({"models": "builtin/playbook"}),
            "config.data.playbook",
        ),
        (
            with("models", json!({"agent": {"model": 5}})),
            "config.data.models.agent.model",
        ),
        (
            with("tools", json!({"read_files": "allow"})),
            "config.data.tools.read_files",
        ),
        (
            with("tools", json!({"read_file": "maybe"})),
            "config.data.tools.read_file",
        ),
        (with("tools", json!(["read_file"])), "config.data.tools"),
        (
            with("limits", json!({"seconds": 0})),
            "config.data.limits.seconds",
        ),
        (
            with("limits", json!({"cost_usd": -1})),
            "config.data.limits.cost_usd",
        ),
        (
            with("input", json!([{"role": "robot", "content": ""}])),
            "config.data.input[0].role",
        ),
        (
            with("human_requests", json!({"expires_in": "soon"})),
            "config.data.human_requests.expires_in",
        ),
        (
            with("human_requests", json!({"on_expire": "approve"})),
            "config.data.human_requests.on_expire",
        ),
        (
            with("human_in_the_loop", json!("yes")),
            "config.data.human_in_the_loop",
        ),
        (json!({"playbook": []}), "playbook"),
        (json!({"playbook": {"steps": []}}), "playbook.steps"),
        (step(json!({})), "playbook.steps[1]"),
        (step(json!({"says": "a"})), "playbook.steps[1].says"),
        (step(json!({"say": "a", "wait": "1s"})), "playbook.steps[1]"),
        (step(json!({"tool": "read_fil"})), "playbook.steps[1].tool"),
        (
            step(json!({"tool": "read_file", "with": {"path": "{{ a b }}"}})),
            "playbook.steps[1].with.path",
        ),
        (step(json!({"wait": "soon"})), "playbook.steps[1].wait"),
        (
            step(json!({"for_each": "{{ [1] }}", "steps": [{"say": "a"}, {"sya": "b"}]})),
            "playbook.steps[1].steps[1].sya",
        ),
        (
            json!({"human_in_the_loop": false, "playbook": {"steps": [{"approve": {"title": "Go on?"}}]}}),
            "playbook.steps[0]",
        ),
        (
            json!({"tools": {"read_file": "allow"}, "playbook": {"steps": [{"tool": "write_file", "with": {"path": "a", "content": ""}}]}}),
            "playbook.steps[0].tool",
        ),
    ]
}

#[tokio::test]
async fn a_config_that_cannot_be_used_is_refused_by_its_path() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.agent(&team, says("first")).await;
    let mut cases: Vec<(Value, &str)> = wrong_data()
        .into_iter()
        .map(|(data, path)| (json!({"version": "v2", "data": data}), path))
        .collect();
    let data = says("x")["data"].clone();
    cases.extend([
        (json!({"version": "v1", "data": data}), "config.version"),
        (json!({"version": 2, "data": data}), "config.version"),
        (json!({"data": data}), "config.version"),
        (json!({"version": "v2", "data": []}), "config.data"),
        (json!("v2"), "config"),
        (json!(null), "config"),
    ]);
    for (config, path) in cases {
        let calls = [
            (
                "/v1/agents".to_owned(),
                json!({"name": "x", "build": {"name": "b", "config": config}}),
            ),
            (
                format!("/v1/agents/{agent}/revisions"),
                json!({"name": "b", "config": config}),
            ),
            (
                "/v1/builds".to_owned(),
                json!({"agent_id": agent, "name": "b", "config": config}),
            ),
        ];
        for (url, body) in calls {
            let (code, message) = app.post(&team.key, &url, body).await.error(400);
            assert_eq!(code, "bad_request");
            assert!(message.contains(path), "{url} {config}: {message}");
        }
    }
    assert_eq!(
        total(&app, &team, "/v1/agents").await,
        1,
        "an agent whose build is refused is not made"
    );
    assert_eq!(builds(&app, &team, &agent).await.len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_build_needs_its_agent() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let none = "0198f2a4-7c1e-7000-8000-000000000001";
    let body = json!({"name": "b", "config": says("x")});
    assert_eq!(
        app.post(
            &team.key,
            &format!("/v1/agents/{none}/revisions"),
            body.clone()
        )
        .await
        .error(404)
        .0,
        "not_found"
    );
    let of_none = json!({"agent_id": none, "name": "b", "config": says("x")});
    assert_eq!(
        app.post(&team.key, "/v1/builds", of_none)
            .await
            .error(404)
            .0,
        "not_found"
    );
    let (_, message) = app.post(&team.key, "/v1/builds", body).await.error(400);
    assert!(message.contains("agent_id"), "{message}");
    let (_, message) = app
        .post(
            &team.key,
            "/v1/builds",
            json!({"agent_id": "x", "name": "b", "config": says("x")}),
        )
        .await
        .error(400);
    assert!(message.contains("agent_id"), "{message}");
    app.finish().await;
}

#[tokio::test]
async fn after_an_agent_is_deleted_its_runs_stay_readable_and_go_on() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"approve": {"title": "Go on?"}}, {"wait": "1h"}, {"finish": "heard {{ message }}"}])).await;
    let build = builds(&app, &team, &agent).await.remove(0);
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "one"}))
        .await;
    let pending = app
        .run(&team, json!({"agent_id": agent, "message": "two"}))
        .await;
    app.settle().await;
    let path = format!("/v1/agents/{agent}");
    let deleted = app.delete(&team.key, &path).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));

    assert_eq!(app.get(&team.key, &path).await.error(404).0, "not_found");
    assert_eq!(app.delete(&team.key, &path).await.error(404).0, "not_found");
    assert_eq!(
        app.patch(&team.key, &path, json!({"name": "x"}))
            .await
            .error(404)
            .0,
        "not_found"
    );
    let body = json!({"name": "b", "config": says("x")});
    assert_eq!(
        app.post(&team.key, &format!("{path}/revisions"), body)
            .await
            .error(404)
            .0,
        "not_found"
    );
    assert_eq!(
        app.post(&team.key, "/v1/runs", json!({"agent_id": agent}))
            .await
            .error(404)
            .0,
        "not_found"
    );
    assert_eq!(total(&app, &team, "/v1/agents").await, 0);

    for run in [&run, &pending] {
        let got = app.get_run(&team, run).await;
        assert_eq!(got["run"]["status"], "waiting");
        assert_eq!(
            (&got["run"]["agent_id"], &got["run"]["build_id"]),
            (&json!(agent), &build["id"])
        );
        let request = got["pending_human_request"]["id"].as_str().unwrap();
        app.post(
            &team.key,
            &format!("/v1/runs/{run}/human-requests/{request}/respond"),
            json!({"approved": true}),
        )
        .await
        .expect(200);
    }
    app.settle().await;
    app.advance(Duration::from_secs(3600)).await;
    assert_eq!(app.status(&team, &run).await, "completed");
    app.message(&team, &run, "three").await;
    app.settle().await;
    assert_eq!(
        app.status(&team, &run).await,
        "waiting",
        "a message resumes it too"
    );
    assert_eq!(
        app.get(&team.key, &format!("/v1/runs?agent_id={agent}"))
            .await
            .expect(200)["total"],
        2
    );
    assert_eq!(
        app.messages(&team, &pending).await.last().unwrap()["text_content"],
        "heard two"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_repeat_with_its_key_makes_nothing_twice() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let body = json!({"name": "Once", "build": {"name": "first", "config": says("x")}});
    let headers = [("idempotency-key", "make-agent")];
    let first = app
        .json(
            Method::POST,
            &team.key,
            "/v1/agents",
            body.clone(),
            &headers,
        )
        .await;
    let again = app
        .json(Method::POST, &team.key, "/v1/agents", body, &headers)
        .await;
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(
        app.json(
            Method::POST,
            &team.key,
            "/v1/agents",
            json!({"name": "Other"}),
            &headers
        )
        .await
        .error(409)
        .0,
        "conflict"
    );
    assert_eq!(total(&app, &team, "/v1/agents").await, 1);
    let agent = first.json()["agent"]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/agents/{agent}");
    for replayed in [None, Some("true")] {
        let gone = app
            .json(
                Method::DELETE,
                &team.key,
                &path,
                json!({}),
                &[("idempotency-key", "delete-agent")],
            )
            .await;
        assert_eq!(
            (gone.status, gone.header("idempotency-replayed")),
            (204, replayed)
        );
    }
    app.finish().await;
}

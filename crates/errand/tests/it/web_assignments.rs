//! The editor, builds and API keys in the web interface.

use errand_testkit::{TestApp, TestOptions};
use serde_json::json;

use crate::web::{Browser, between};

const PLAYBOOK: &str = "steps:\n  - say: Hello\n  - finish: Done\n";

#[tokio::test]
async fn an_assignment_is_created_edited_compared_and_restored() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let sent = [
        ("name", "Say hello"),
        ("playbook", PLAYBOOK),
        ("tool.read_file", "allow"),
        ("tool.write_file", "ask"),
        ("people", "on"),
        ("limit_steps", "9"),
    ];
    let address = owner.post("/assignments/new", &sent).await.leads_to();
    let agent = address.trim_start_matches("/assignments/").to_owned();
    let made = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    let data = &made["build"]["config"]["data"];
    assert_eq!(
        data["tools"],
        json!({"read_file": "allow", "write_file": "ask"})
    );
    assert_eq!(data["limits"], json!({"steps": 9}));
    assert_eq!(data["models"]["agent"]["model"], "builtin/playbook");

    let page = owner.get(&format!("{address}/edit")).await.ok();
    assert!(
        page.contains("value=\"Say hello\"") && page.contains("finish: Done"),
        "{page}"
    );
    let sent = [
        ("name", "Say good-bye"),
        ("model", "builtin/playbook"),
        ("playbook", "steps:\n  - finish: Bye\n"),
        ("tool.read_file", "allow"),
        ("build_name", "shorter"),
    ];
    assert_eq!(
        owner
            .post(&format!("{address}/edit"), &sent)
            .await
            .leads_to(),
        address
    );
    let page = owner.get(&format!("{address}/builds")).await.ok();
    assert!(
        page.contains("Say good-bye") && page.contains("shorter"),
        "{page}"
    );
    let builds = app
        .get(&team.key, &format!("/v1/agents/{agent}/builds"))
        .await
        .expect(200);
    let id = |at: usize| builds["builds"][at]["id"].as_str().unwrap().to_owned();
    let (new, old) = (id(0), id(1));
    let page = owner
        .get(&format!("{address}/builds/compare?from={old}&to={new}"))
        .await
        .ok();
    assert!(
        page.contains("- ")
            && page.contains("finish: Done")
            && page.contains("+ ")
            && page.contains("finish: Bye"),
        "{page}"
    );
    owner
        .post(&format!("{address}/builds/{old}/restore"), &[])
        .await
        .leads_to();
    let now = app
        .get(&team.key, &format!("/v1/agents/{agent}"))
        .await
        .expect(200);
    assert_eq!(now["build"]["number"], 3);
    assert_eq!(now["build"]["config"], made["build"]["config"]);
    owner
        .get(&format!("{address}/builds/compare?from=x&to={new}"))
        .await
        .refused(400);
    owner
        .post(&format!("{address}/delete"), &[])
        .await
        .leads_to();
    owner.get(&address).await.refused(404);
}

#[tokio::test]
async fn errors_appear_at_their_field_and_line_and_input_is_kept() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let bad = "steps:\n  - say: Hello\n  - tool: write_file\n    with: {path: /workspace/x, content: y}\n  - finnish: Done\n";
    let sent = [
        ("name", "A"),
        ("instructions", "Be <brief>"),
        ("playbook", bad),
        ("people", "on"),
    ];
    let page = owner.post("/assignments/new", &sent).await.refused(400);
    assert!(
        page.contains("Line 3:") && page.contains("write_file"),
        "{page}"
    );
    assert!(
        page.contains("Be &lt;brief&gt;") && page.contains("finnish: Done"),
        "{page}"
    );
    let sent = [
        ("name", "A"),
        ("playbook", bad),
        ("tool.write_file", "allow"),
        ("people", "on"),
    ];
    let page = owner.post("/assignments/new", &sent).await.refused(400);
    assert!(
        page.contains("Line 5:") && page.contains("finnish"),
        "{page}"
    );
    for (fields, says) in [
        (vec![("name", " "), ("playbook", PLAYBOOK)], "name-wrong"),
        (
            vec![
                ("name", "A"),
                ("playbook", PLAYBOOK),
                ("limit_steps", "many"),
            ],
            "limit_steps-wrong",
        ),
        (vec![("name", "A"), ("model", "nothing")], "model-wrong"),
        (
            vec![
                ("name", "A"),
                ("playbook", PLAYBOOK),
                ("expires_in", "soon"),
                ("people", "on"),
            ],
            "expires_in-wrong",
        ),
        (
            vec![("name", "A"), ("playbook", "steps: [")],
            "playbook-wrong",
        ),
    ] {
        let page = owner.post("/assignments/new", &fields).await.refused(400);
        assert!(page.contains(&format!("id=\"{says}\"")), "{says}: {page}");
    }
    let agents = app.get(&team.key, "/v1/agents").await.expect(200);
    assert_eq!(agents["total"], 0);
}

#[tokio::test]
async fn a_key_is_shown_once_works_and_is_deleted() {
    let app = TestApp::start().await;
    let (owner, _) = Browser::owner(&app, "acme").await;
    let made = owner
        .post("/settings/api-keys", &[("name", "billing"), ("days", "30")])
        .await
        .leads_to();
    let page = owner.get(&made).await.ok();
    let key = between(&page, "id=\"new-key\">", "<").unwrap().to_owned();
    assert!(!made.contains(&key), "{made}");
    app.get(&key, "/v1/runs").await.expect(200);
    // Reloading the page creates nothing and no longer shows the key.
    let page = owner.get(&made).await.ok();
    assert!(
        !page.contains(&key) && page.contains("cannot be shown again"),
        "{page}"
    );
    let keys = app.get(&key, "/v1/api-keys").await.expect(200);
    assert_eq!(keys["total"], 2, "the test's own and this one");
    let page = owner.get("/settings/api-keys").await.ok();
    assert!(
        !page.contains(&key) && page.contains("billing") && page.contains("in 30 days"),
        "{page}"
    );
    let path = page
        .split("action=\"")
        .filter_map(|rest| rest.split_once('"').map(|(path, _)| path))
        .find(|path| path.ends_with("/delete"))
        .unwrap()
        .to_owned();
    owner.post(&path, &[]).await.leads_to();
    assert_eq!(app.get(&key, "/v1/runs").await.status, 401);
    let page = owner
        .post("/settings/api-keys", &[("name", "")])
        .await
        .refused(400);
    assert!(page.contains("1 to 200 visible characters"), "{page}");
}

#[tokio::test]
async fn runs_are_filtered_by_their_properties() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let good = app.playbook(&team, json!([{"finish": "ok"}])).await;
    let bad = app.playbook(&team, json!([{"fail": "broken pipe"}])).await;
    app.run(&team, json!({"agent_id": good})).await;
    app.run(&team, json!({"agent_id": bad})).await;
    app.settle().await;
    let page = owner.get("/runs").await.ok();
    assert!(
        page.contains("2 runs") && page.contains("broken pipe"),
        "{page}"
    );
    assert!(
        owner
            .get("/runs?status=failed")
            .await
            .ok()
            .contains("1 run")
    );
    assert!(
        owner
            .get("/runs?status=completed&since=1h")
            .await
            .ok()
            .contains("1 run")
    );
    assert!(
        owner
            .get(&format!("/runs?assignment={bad}"))
            .await
            .ok()
            .contains("1 run")
    );
    assert!(
        owner
            .get("/runs?source=web")
            .await
            .ok()
            .contains("No runs match these filters")
    );
    let home = owner.get("/").await.ok();
    assert!(
        home.contains("broken pipe") && home.contains("Runs by day"),
        "{home}"
    );
    let list = owner.get("/assignments").await.ok();
    assert!(list.contains("100%") && list.contains("0%"), "{list}");
}

#[tokio::test]
async fn the_editor_says_why_a_tool_is_not_available() {
    let app = TestApp::start_with(TestOptions {
        helper: Some("/nonexistent/errand".into()),
        ..TestOptions::default()
    })
    .await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let tools = app.get(&team.key, "/v1/tools").await.expect(200);
    let tools = tools["tools"].as_array().unwrap();
    let command = tools.iter().find(|tool| tool["name"] == "run_command");
    let why = command.unwrap()["unavailable_reason"].as_str().unwrap();
    let editor = owner.get("/assignments/new").await.ok();
    let row = between(&editor, "<span class=\"mono\">run_command</span>", "</tr>").unwrap();
    assert!(
        row.contains("not available here") && row.contains(&html_escape(why)),
        "{row}"
    );
    let row = between(&editor, "<span class=\"mono\">read_file</span>", "</tr>").unwrap();
    assert!(!row.contains("not available"), "{row}");
}

fn html_escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

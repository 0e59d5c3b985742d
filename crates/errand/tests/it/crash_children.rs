//! Crashes before and after each commit, and a full disk at each commit, of a plan in which a run starts another.
//! Exactly one child is started, and its caller receives the result, or an error that says that it had started.

use errand_testkit::{Plan, World, fail_everywhere};
use serde_json::{Value, json};

/// An assignment that asks, and one that starts it and reports the result.
async fn pair(w: &mut World) -> (String, String) {
    let below = w
        .playbook(json!([
            {"tool": "write_file", "with": {"path": "out.txt", "content": "{{ message }}"}},
            {"approve": {"title": "Go on?"}, "as": "ok"},
            {"finish": "{{ message }} is {{ ok.approved }}"}
        ]))
        .await;
    let starts = json!({"tools": {"run_assignment": "allow"}, "assignments": [below], "playbook": {"steps": [
        {"tool": "run_assignment", "with": {"assignment": below, "message": "this"}, "as": "got"},
        {"finish": "{{ got.text }}"}]}});
    let above = w.agent(json!({"version": "v2", "data": starts})).await;
    (above, below)
}

/// The one run that was started, found among all runs.
async fn started_below(w: &mut World, below: &str) -> Value {
    let path = format!("/v1/runs?agent_id={below}");
    let listed = w.app.get(&w.team.key, &path).await.expect(200);
    let runs = listed["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 1, "{listed}");
    w.started(&json!({"run": runs[0]}));
    runs[0].clone()
}

#[tokio::test]
async fn a_run_that_starts_another_uses_its_result() {
    let plan = Plan::new("a run that starts another", 9);
    let act = async |w: &mut World| {
        let (above, below) = pair(w).await;
        w.begin();
        let run = w.start(json!({"agent_id": above})).await;
        w.assert_status(&run, "running").await;
        w.respond(&run, json!({"approved": true})).await;
        w.assert_status(&run, "completed").await;
        assert_eq!(
            w.texts(&run).await.last().unwrap(),
            "assistant: this is true"
        );
        assert_eq!(started_below(w, &below).await["status"], "completed");
        let got = w.app.get_run(&w.team, &run).await;
        assert_eq!(got["run"]["usage"]["tool_calls"], 1, "{got}");
    };
    fail_everywhere(&plan, act).await;
}

#[tokio::test]
async fn a_stop_of_a_run_that_waits_for_another() {
    let plan = Plan::new("a stop of a run that waits for another", 6);
    let act = async |w: &mut World| {
        let (above, below) = pair(w).await;
        w.begin();
        let run = w.start(json!({"agent_id": above})).await;
        w.assert_status(&run, "running").await;
        w.stop(&run).await;
        w.assert_status(&run, "interrupted").await;
        let child = started_below(w, &below).await;
        assert_eq!(child["status"], "interrupted");
        let messages = w.messages(&run).await;
        let results = messages.iter().filter_map(|m| m.get("tool_result"));
        let told: Vec<String> = results.map(Value::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        let id = child["id"].as_str().unwrap();
        assert!(
            told[0].contains("outcome_unknown") && told[0].contains(id),
            "{told:?}"
        );
    };
    fail_everywhere(&plan, act).await;
}

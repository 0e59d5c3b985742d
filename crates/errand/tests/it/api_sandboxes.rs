//! Sandboxes in the API: listings, downloads, deletion, expiry. Refused requests change nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp};
use http::Method;
use serde_json::{Value, json};

const DAY: Duration = Duration::from_secs(86_400);

pub(crate) async fn list(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> Reply {
    app.get(
        &team.key,
        &format!("/v1/sandboxes/{sandbox}/files?path={path}"),
    )
    .await
}

pub(crate) async fn names(app: &TestApp, team: &Team, sandbox: &str) -> Vec<String> {
    let listed = list(app, team, sandbox, "/workspace").await.expect(200);
    listed["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f["name"].as_str().unwrap().to_owned())
        .collect()
}

pub(crate) async fn content(
    app: &TestApp,
    team: &Team,
    sandbox: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let mut all = vec![("authorization", bearer.as_str())];
    all.extend_from_slice(headers);
    app.send(
        Method::GET,
        &format!("/v1/sandboxes/{sandbox}/files/content?path={path}"),
        &all,
        Body::empty(),
    )
    .await
}

pub(crate) async fn text(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> String {
    let reply = content(app, team, sandbox, path, &[]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

/// Path and query of an upload URL.
pub(crate) async fn upload_url(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> String {
    let made = app
        .post(
            &team.key,
            &format!("/v1/sandboxes/{sandbox}/upload-urls"),
            json!({"path": path}),
        )
        .await
        .expect(200);
    assert_eq!(made["expires_in_seconds"], 3600);
    let url = made["upload_url"].as_str().unwrap();
    url.strip_prefix(app.url())
        .unwrap_or_else(|| panic!("{url} is not of this server"))
        .to_owned()
}

pub(crate) async fn put(app: &TestApp, url: &str, body: impl Into<Body>) -> Reply {
    app.send(Method::PUT, url, &[], body.into()).await
}

/// All names below a directory, including hidden ones, to check that a refused upload left nothing.
pub(crate) fn on_disk(dir: &Path) -> BTreeSet<String> {
    let (mut found, mut left) = (BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(at) = left.pop() {
        let Ok(entries) = fs::read_dir(&at) else {
            continue;
        };
        for entry in entries {
            let entry = entry.unwrap();
            found.insert(
                entry
                    .path()
                    .strip_prefix(dir)
                    .unwrap()
                    .display()
                    .to_string(),
            );
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_new_sandbox_is_empty_and_says_when_it_goes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = app
        .post(&team.key, "/v1/sandboxes", json!({}))
        .await
        .expect(201);
    assert_eq!(
        made["expires_at"],
        app.now().plus_ms(30 * 86_400_000).to_string()
    );
    let sandbox = made["sandbox_id"].as_str().unwrap();
    assert_eq!(
        list(&app, &team, sandbox, "/workspace").await.expect(200),
        json!({"files": []})
    );
    // A call that reads no body accepts any.
    let bearer = format!("Bearer {}", team.key);
    for (kind, body) in [
        ("text/plain", "anything"),
        ("application/json", "{not json"),
        ("", ""),
    ] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let headers = if kind.is_empty() {
            &headers[..1]
        } else {
            &headers[..]
        };
        let reply = app
            .send(Method::POST, "/v1/sandboxes", headers, Body::from(body))
            .await;
        assert_ne!(reply.expect(201)["sandbox_id"], sandbox);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_listing_is_sorted_and_leaves_out_links_and_pipes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    for path in ["/workspace/b.txt", "/workspace/c/inner.txt", "a.txt"] {
        app.upload(&team.key, &sandbox, path, "12345")
            .await
            .expect(201);
    }
    let dir = app.sandbox_dir(&sandbox);
    symlink("/etc/passwd", dir.join("aa-link")).unwrap();
    symlink("/", dir.join("ab-link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("ac-socket")).unwrap();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(dir.join("ad-pipe"))
            .status()
            .unwrap()
            .success()
    );

    // A pipe blocks no request.
    for path in ["ac-socket", "ad-pipe"] {
        let read = content(&app, &team, &sandbox, path, &[]).await;
        assert_eq!(read.error(400).0, "bad_request", "{path}");
        let below = format!("{path}/below");
        app.upload(&team.key, &sandbox, &below, "bad")
            .await
            .error(400);
    }

    let whole = app
        .get(&team.key, &format!("/v1/sandboxes/{sandbox}/files"))
        .await
        .expect(200);
    let file = |name: &str| json!({"name": name, "path": format!("/workspace/{name}"), "type": "file", "size_bytes": 5});
    let files = whole["files"].as_array().unwrap();
    assert_eq!(files.len(), 3, "{whole:#}");
    assert_eq!((&files[0], &files[1]), (&file("a.txt"), &file("b.txt")));
    assert_eq!(
        (&files[2]["name"], &files[2]["path"], &files[2]["type"]),
        (&json!("c"), &json!("/workspace/c"), &json!("dir"))
    );
    let inner = json!({"files": [{"name": "inner.txt", "path": "/workspace/c/inner.txt", "type": "file", "size_bytes": 5}]});
    for path in [
        "/workspace/c",
        "/workspace/c/",
        "c",
        "./c/../c",
        "/workspace//c",
    ] {
        assert_eq!(
            list(&app, &team, &sandbox, path).await.expect(200),
            inner,
            "{path}"
        );
    }
    assert_eq!(
        list(&app, &team, &sandbox, "/workspace/none")
            .await
            .error(404)
            .0,
        "not_found"
    );
    let (code, message) = app
        .get(
            &team.key,
            &format!("/v1/sandboxes/{sandbox}/files?pth=/workspace"),
        )
        .await
        .error(400);
    assert_eq!(code, "bad_request");
    assert!(
        message.contains("pth") && message.contains("path"),
        "{message}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_file_is_given_whole_or_in_ranges_and_cannot_act() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "page.html", "0123456789")
        .await
        .expect(201);
    let whole = content(&app, &team, &sandbox, "page.html", &[]).await;
    assert_eq!((whole.status, &whole.bytes[..]), (200, &b"0123456789"[..]));
    assert_eq!(whole.header("content-length"), Some("10"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert!(
        whole
            .header("content-disposition")
            .unwrap()
            .starts_with("attachment")
    );
    assert!(
        whole
            .header("content-security-policy")
            .unwrap()
            .contains("sandbox"),
        "{whole:?}"
    );

    let cases = [
        ("bytes=0-3", "bytes 0-3/10", "0123"),
        ("bytes=4-", "bytes 4-9/10", "456789"),
        ("bytes=-3", "bytes 7-9/10", "789"),
        ("bytes=8-100", "bytes 8-9/10", "89"),
        ("bytes=9-9", "bytes 9-9/10", "9"),
        ("bytes=-100", "bytes 0-9/10", "0123456789"),
    ];
    for (range, given, expected) in cases {
        let part = content(&app, &team, &sandbox, "page.html", &[("range", range)]).await;
        assert_eq!(
            (part.status, &part.bytes[..]),
            (206, expected.as_bytes()),
            "{range}"
        );
        assert_eq!(part.header("content-range"), Some(given), "{range}");
        assert_eq!(
            part.header("content-length"),
            Some(expected.len().to_string().as_str()),
            "{range}"
        );
        assert_eq!(part.header("x-content-type-options"), Some("nosniff"));
    }
    for range in [
        "bytes=10-",
        "bytes=10-20",
        "bytes=-0",
        "bytes=99999999999999999999-",
    ] {
        let refused = content(&app, &team, &sandbox, "page.html", &[("range", range)]).await;
        assert_eq!(refused.error(416).0, "range_not_satisfiable", "{range}");
        assert_eq!(
            refused.header("content-range"),
            Some("bytes */10"),
            "{range}"
        );
    }
    app.upload(&team.key, &sandbox, "empty", "")
        .await
        .expect(201);
    assert_eq!(
        content(&app, &team, &sandbox, "empty", &[])
            .await
            .bytes
            .len(),
        0
    );
    content(&app, &team, &sandbox, "empty", &[("range", "bytes=0-")])
        .await
        .error(416);
    // An unknown range unit is ignored.
    let other = content(
        &app,
        &team,
        &sandbox,
        "page.html",
        &[("range", "lines=0-3")],
    )
    .await;
    assert_eq!((other.status, other.bytes.len()), (200, 10));
    app.get(&team.key, &format!("/v1/sandboxes/{sandbox}/files/content"))
        .await
        .error(400);
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_is_not_deleted_under_a_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine")
        .await
        .expect(201);
    let agent = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}}]))
        .await;
    let run = app
        .run(&team, json!({"agent_id": agent, "sandbox_id": sandbox}))
        .await;
    app.settle().await;
    let path = format!("/v1/sandboxes/{sandbox}");
    assert_eq!(app.delete(&team.key, &path).await.error(409).0, "conflict");
    assert_eq!(text(&app, &team, &sandbox, "a").await, "mine");
    let second = app
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "sandbox_id": sandbox}),
        )
        .await;
    assert_eq!(second.error(409).0, "conflict");
    assert_eq!(app.get(&team.key, "/v1/runs").await.expect(200)["total"], 1);
    app.stop_run(&team, &run).await;
    app.settle().await;
    let deleted = app.delete(&team.key, &path).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));
    assert_eq!(app.delete(&team.key, &path).await.error(404).0, "not_found");
    assert_eq!(gone_everywhere(&app, &team, &sandbox).await, [404; 4]);
    let started = app
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "sandbox_id": sandbox}),
        )
        .await;
    assert_eq!(started.error(400).0, "bad_request");
    app.finish().await;
}

async fn gone_everywhere(app: &TestApp, team: &Team, sandbox: &str) -> [u16; 4] {
    [
        list(app, team, sandbox, "/workspace").await.status,
        content(app, team, sandbox, "a", &[]).await.status,
        app.upload(&team.key, sandbox, "a", "late").await.status,
        app.post(
            &team.key,
            &format!("/v1/sandboxes/{sandbox}/upload-urls"),
            json!({"path": "a"}),
        )
        .await
        .status,
    ]
}

#[tokio::test]
async fn a_message_to_a_run_whose_sandbox_is_taken_waits_for_it() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let asks = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}}]))
        .await;
    let says = app
        .playbook(&team, json!([{"finish": "heard {{ message }}"}]))
        .await;
    let first = app
        .run(
            &team,
            json!({"agent_id": says, "sandbox_id": sandbox, "message": "one"}),
        )
        .await;
    app.settle().await;
    let second = app
        .run(&team, json!({"agent_id": asks, "sandbox_id": sandbox}))
        .await;
    app.settle().await;
    app.message(&team, &first, "two").await;
    app.settle().await;
    let waits = app.get_run(&team, &first).await;
    assert_eq!(
        (&waits["run"]["status"], &waits["run"]["waiting_on"]["kind"]),
        (&json!("pending"), &json!("sandbox"))
    );
    app.upload(&team.key, &sandbox, "a", "uploads are always allowed")
        .await
        .expect(201);
    app.stop_run(&team, &second).await;
    app.settle().await;
    assert_eq!(app.status(&team, &first).await, "completed");
    assert_eq!(
        app.messages(&team, &first).await.last().unwrap()["text_content"],
        "heard two"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_expires_after_its_last_use() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let (unused, uploaded, run_on) = (
        app.sandbox(&team).await,
        app.sandbox(&team).await,
        app.sandbox(&team).await,
    );
    let by_url = app.sandbox(&team).await;
    app.advance(29 * DAY).await;
    app.upload(&team.key, &uploaded, "a", "mine")
        .await
        .expect(201);
    let url = upload_url(&app, &team, &by_url, "a").await;
    put(&app, &url, "mine").await.expect(200);
    app.run(&team, json!({"agent_id": agent, "sandbox_id": run_on}))
        .await;
    app.settle().await;
    // Listing does not count as use.
    list(&app, &team, &unused, "/workspace").await.expect(200);
    app.advance(DAY + Duration::from_secs(1)).await;
    assert_eq!(gone_everywhere(&app, &team, &unused).await, [404; 4]);
    let started = app
        .post(
            &team.key,
            "/v1/runs",
            json!({"agent_id": agent, "sandbox_id": unused}),
        )
        .await;
    assert_eq!(started.error(400).0, "bad_request");
    for used in [&uploaded, &run_on, &by_url] {
        assert_eq!(list(&app, &team, used, "/workspace").await.status, 200);
    }
    app.advance(29 * DAY).await;
    for used in [&uploaded, &run_on, &by_url] {
        assert_eq!(list(&app, &team, used, "/workspace").await.status, 404);
        assert_eq!(
            app.delete(&team.key, &format!("/v1/sandboxes/{used}"))
                .await
                .status,
            404
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_expires_only_without_an_active_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine")
        .await
        .expect(201);
    let agent = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}, "if": "{{ message == 'one' }}"}, {"tool": "read_file", "with": {"path": "a"}, "as": "a"}, {"finish": "{{ a }}"}]))
        .await;
    let run = app
        .run(
            &team,
            json!({"agent_id": agent, "sandbox_id": sandbox, "message": "one"}),
        )
        .await;
    app.settle().await;
    app.advance(60 * DAY).await;
    assert_eq!(
        text(&app, &team, &sandbox, "a").await,
        "mine",
        "a run that waits keeps its sandbox"
    );
    app.answer(&team, &run, json!({"approved": true})).await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "completed", "{got:#}");

    app.advance(31 * DAY).await;
    app.message(&team, &run, "two").await;
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(
        (&got["run"]["status"], &got["run"]["error"]["code"]),
        (&json!("failed"), &json!("sandbox_expired")),
        "{got:#}"
    );
    let messages: Vec<Value> = app.messages(&team, &run).await;
    assert_eq!(
        messages
            .iter()
            .filter(|m| m["text_content"] == "two")
            .count(),
        1,
        "the message is kept"
    );
    app.finish().await;
}

#[tokio::test]
async fn lost_files_are_an_error_and_not_an_empty_sandbox() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let (sandbox, never_used) = (app.sandbox(&team).await, app.sandbox(&team).await);
    app.upload(&team.key, &sandbox, "%2Fworkspace%2Fa", "mine")
        .await
        .expect(201);
    let steps =
        json!([{"tool": "list_files", "with": {"path": "/workspace"}}, {"finish": "Done."}]);
    let agent = app.playbook(&team, steps).await;
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let first = app.run(&team, body.clone()).await;
    app.settle().await;
    // As after a restore without them, or a volume that is not mounted.
    app.die().await;
    let (dir, aside) = (app.sandbox_dir(&sandbox), app.dir().join("aside"));
    fs::rename(&dir, &aside).unwrap();
    app.come_back().await.unwrap();
    let fork_path = format!("/v1/runs/{first}/fork");
    // Also after the janitor has measured the sandboxes.
    for _ in 0..2 {
        let (code, message) = list(&app, &team, &sandbox, "/workspace").await.error(503);
        assert_eq!(code, "unavailable");
        assert!(message.contains("missing"), "{message}");
        let upload = app.upload(&team.key, &sandbox, "%2Fworkspace%2Fb", "more");
        upload.await.error(503);
        let fork = app.post(&team.key, &fork_path, json!({}));
        fork.await.error(503);
        assert!(!dir.exists(), "nothing takes its place");
        assert!(names(&app, &team, &never_used).await.is_empty());
        app.advance(Duration::from_secs(120)).await;
    }
    let run = app.run(&team, body).await;
    app.settle().await;
    let told = json!(app.messages(&team, &run).await).to_string();
    assert!(told.contains("sandbox_lost"), "{told}");
    fs::rename(&aside, &dir).unwrap();
    assert_eq!(names(&app, &team, &sandbox).await, ["a"]);
    app.finish().await;
}

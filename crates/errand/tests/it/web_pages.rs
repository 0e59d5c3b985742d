//! All pages: for each role, with their headers, and with foreign text in every field.

use errand::web::{Access, PAGES};
use errand_core::role::Role;
use errand_testkit::{Team, TestApp};
use http::Method;
use serde_json::json;

use crate::web::{Browser, ask};

/// What an attacker would like to run.
const EVIL: &str = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b>x</b>";

/// Characters that a reader cannot see, or that turn around what comes after them, between letters.
const HIDDEN: &str = "pay\u{202e}gpj\u{200b}.\u{2066}\u{3164}\u{e0041}\u{ad}x";

/// A path of the table, filled with IDs that do not exist.
fn filled(path: &str) -> String {
    let id = "0198f2a4-7c1e-7000-8000-000000000001";
    path.split('/')
        .map(|part| match part {
            "{position}" => "1",
            part if part.starts_with('{') => id,
            part => part,
        })
        .collect::<Vec<_>>()
        .join("/")
}

#[tokio::test]
async fn each_page_is_for_the_roles_that_the_table_names() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "admin@acme.example", Role::Admin).await;
    app.person(&team, "member@acme.example", Role::Member).await;
    let admin = Browser::of(&app, "admin@acme.example").await;
    let member = Browser::of(&app, "member@acme.example").await;
    for page in PAGES.iter().filter(|page| page.access != Access::Open) {
        let path = filled(page.path);
        let nobody = ask(&app, page.method.clone(), &path, "", Some(""), &[]).await;
        assert_eq!(nobody.status, 303, "{} {path}", page.method);
        assert!(nobody.location.unwrap().starts_with("/log-in"));
        let Access::Needs(permission) = page.access else {
            continue;
        };
        for (browser, role) in [
            (&owner, Role::Owner),
            (&admin, Role::Admin),
            (&member, Role::Member),
        ] {
            // Without a token: a form that the role is not permitted to send is refused before anything is read.
            let body = (page.method == Method::POST).then_some("");
            let seen = ask(&app, page.method.clone(), &path, &browser.cookie, body, &[]).await;
            let refused = seen.status == 403 && seen.html.contains("Your role in this team");
            assert_eq!(
                refused,
                !role.may(permission),
                "{} {path} as {role:?}: {}",
                page.method,
                seen.html
            );
            assert_ne!(seen.status, 500, "{path}");
        }
        if page.method == Method::GET {
            let (most, least) = (u64::MAX, i64::MIN);
            let path = format!("{path}?offset={most}&seen={least}&at={most}&around={most}");
            assert_ne!(owner.get(&path).await.status, 500, "{path}");
        }
    }
    // An action that a role does not permit is not offered.
    assert!(owner.get("/").await.ok().contains("/settings/api-keys"));
    assert!(!member.get("/").await.ok().contains("/settings/api-keys"));
}

#[tokio::test]
async fn each_page_has_the_headers_that_keep_it_ours() {
    let app = TestApp::start().await;
    let (owner, _) = Browser::owner(&app, "acme").await;
    for path in [
        "/",
        "/runs",
        "/inbox",
        "/assignments",
        "/assignments/new",
        "/settings/api-keys",
        "/settings/team",
        "/settings/secrets",
        "/connections",
        "/webhooks",
        "/usage",
        "/settings/models",
        "/account",
        "/log-in",
        "/runs/x",
        "/nowhere",
    ] {
        let seen = owner.get(path).await;
        let policy = seen
            .reply
            .header("content-security-policy")
            .unwrap_or_default();
        assert!(policy.contains("default-src 'none'"), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(
            seen.reply.header("x-content-type-options"),
            Some("nosniff"),
            "{path}"
        );
        assert!(
            !seen.html.contains(" style="),
            "{path} has a style of its own"
        );
        assert!(
            !seen.html.contains(" onclick="),
            "{path} has a script of its own"
        );
    }
}

/// A team in which every field that people, models and files can fill contains [`EVIL`]. Returns a run with an open
/// request, and the pages that show some of these fields.
async fn filled_by_strangers(
    app: &TestApp,
    owner: &Browser<'_>,
    team: &Team,
    evil: &str,
) -> (String, Vec<String>) {
    let config = json!({ "version": "v2", "data": {
        "input": evil,
        "tools": {"write_file": "ask", "read_file": "allow", "ask_human": "allow"},
        "playbook": {"steps": [
            {"say": evil},
            {"tool": "read_file", "with": {"path": "/workspace/<img src=x onerror=alert(2)>.csv"}},
            {"ask": {"title": evil, "description": evil, "questions": [
                {"question": evil, "header": evil, "options": [{"label": evil, "description": evil}]}]}, "as": "x"},
            {"finish": evil},
        ]},
    }});
    let body =
        json!({"name": evil, "build": {"name": evil, "description": evil, "config": config}});
    let agent = app.post(&team.key, "/v1/agents", body).await.expect(201);
    let agent = agent["agent"]["id"].as_str().unwrap().to_owned();
    let sandbox = app.sandbox(team).await;
    let name = "%2Fworkspace%2F%3Cimg%20src=x%20onerror=alert(2)%3E.csv";
    app.upload(&team.key, &sandbox, name, format!("{evil},b\n{evil},d\n"))
        .await
        .expect(201);
    let page = format!("<html>{evil}</html>");
    app.upload(
        &team.key,
        &sandbox,
        "%2Fworkspace%2Fpage.html",
        page.clone(),
    )
    .await
    .expect(201);
    app.upload(&team.key, &sandbox, "%2Fworkspace%2Fread.md", page)
        .await
        .expect(201);
    let body = json!({"agent_id": agent, "message": evil, "sandbox_id": sandbox, "webhook_url": "http://127.0.0.1:1/%3Cscript%3E"});
    let run = app.post(&team.key, "/v1/runs", body).await.expect(201);
    let run = run["run"]["id"].as_str().unwrap().to_owned();
    app.settle().await;
    owner
        .post_and_follow("/settings/api-keys", &[("name", evil)])
        .await;
    let hook = [
        ("url", "http://127.0.0.1:1/%3Cscript%3E"),
        ("event", "run_failed"),
        ("description", evil),
        ("enabled", "on"),
    ];
    let hook = owner.post("/webhooks", &hook).await.leads_to();
    let invited = [("role", "member"), ("email", "<b>x</b>@acme.example")];
    owner.post("/settings/team/invitations", &invited).await;
    let messages = app.messages(team, &run).await;
    let first = messages[0]["id"].as_str().unwrap();
    let paths = vec![
        "/usage".to_owned(),
        format!("/usage?days={evil}").replace([' ', '<', '>', '"'], "%22%3E"),
        "/usage/csv?by=agent".to_owned(),
        "/webhooks".to_owned(),
        hook,
        "/settings/team".to_owned(),
        "/settings/models".to_owned(),
        format!("/runs/{run}/fork?after_message={first}&at=1"),
        "/".to_owned(),
        "/runs".to_owned(),
        "/inbox".to_owned(),
        "/assignments".to_owned(),
        "/settings/api-keys".to_owned(),
        format!("/runs/{run}"),
        format!("/runs/{run}/older?before=3"),
        format!("/runs/{run}/files"),
        format!("/runs/{run}/files/view?path={name}"),
        format!("/runs/{run}/files/view?path=/workspace/page.html"),
        format!("/runs/{run}/files/view?path=/workspace/read.md"),
        format!("/runs/{run}/files/view?path=/workspace/%3Cscript%3Ealert(1)%3C/script%3E"),
        format!("/assignments/{agent}"),
        format!("/assignments/{agent}/edit"),
        format!("/assignments/{agent}/builds"),
        "/log-in?next=%22%3E%3Cscript%3Ealert(1)%3C/script%3E".to_owned(),
        "/runs?status=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&source=%3Cscript%3E".to_owned(),
    ];
    (run, paths)
}

#[tokio::test]
async fn foreign_text_stays_text_on_every_page() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let (run, paths) = filled_by_strangers(&app, &owner, &team, EVIL).await;
    for path in paths {
        let seen = owner.get(&path).await;
        assert!(
            seen.status == 200 || seen.status == 404,
            "{path}: {}",
            seen.html
        );
        // A CSV file is not a page but a download.
        if seen.reply.header("content-type") == Some("text/csv; charset=utf-8") {
            let disposition = seen.reply.header("content-disposition").unwrap();
            assert!(disposition.starts_with("attachment"), "{disposition}");
            continue;
        }
        for part in ["<script>alert", "<img src=x", "<b>x</b>"] {
            assert!(
                !seen.html.contains(part),
                "{path} holds {part}: {}",
                seen.html
            );
        }
    }
    // Answered with that text, and read again.
    let page = owner.get(&format!("/runs/{run}")).await.ok();
    let request = crate::web::between(&page, "data-request=\"", "\"")
        .unwrap()
        .to_owned();
    let answer = [
        ("decision", "answer"),
        ("q0", EVIL),
        ("back", "https://evil.example/"),
    ];
    let to = owner
        .post(&format!("/runs/{run}/answers/{request}"), &answer)
        .await
        .leads_to();
    assert_eq!(to, format!("/runs/{run}?answered={request}#r-{request}"));
    app.settle().await;
    for path in [format!("/runs/{run}"), "/inbox".to_owned()] {
        assert!(
            !owner.get(&path).await.ok().contains("<script>alert"),
            "{path}"
        );
    }
}

/// The parts of a page that people see: without the values that forms send back, and without addresses.
fn seen_by_people(html: &str) -> String {
    let mut seen = html.to_owned();
    for (from, to) in [
        (" value=\"", "\""),
        (" href=\"", "\""),
        (" action=\"", "\""),
        (" src=\"", "\""),
        (" data-copy=\"", "\""),
        ("<textarea", "</textarea>"),
    ] {
        while let Some(begin) = seen.find(from) {
            let after = begin + from.len();
            let end = seen[after..].find(to).unwrap() + after + to.len();
            // What a field says about itself is seen.
            let label = (from == "<textarea")
                .then(|| {
                    seen[after..end]
                        .find('>')
                        .map(|at| seen[after..after + at].to_owned())
                })
                .flatten();
            seen.replace_range(begin..end, &label.unwrap_or_default());
        }
    }
    seen
}

#[tokio::test]
async fn no_page_hides_a_character_of_a_strangers_text() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let (_, paths) = filled_by_strangers(&app, &owner, &team, HIDDEN).await;
    let mut with_it = 0;
    let more = [
        format!("/runs?q={}", "%E2%80%AE"),
        "/assignments/new".to_owned(),
        "/connections".to_owned(),
        "/account".to_owned(),
        "/settings/secrets".to_owned(),
    ];
    for path in paths.into_iter().filter(|path| path.is_ascii()).chain(more) {
        let seen = owner.get(&path).await;
        assert!(seen.status == 200 || seen.status == 404, "{path}");
        if seen.reply.header("content-type") == Some("text/csv; charset=utf-8") {
            continue;
        }
        let text = seen_by_people(&seen.html);
        let hidden = text
            .char_indices()
            .find(|(_, c)| !matches!(c, '\n' | '\t' | '\r') && errand_core::display::is_hidden(*c));
        if let Some((at, c)) = hidden {
            let around: String = text[..at].chars().rev().take(200).collect();
            let around: String = around.chars().rev().collect();
            panic!("{path} holds {c:?} after {around}");
        }
        with_it += usize::from(text.contains("\\u{202e}"));
    }
    assert!(with_it > 12, "{with_it} pages show it");
}

#[tokio::test]
async fn files_are_served_so_that_they_cannot_act() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    let sandbox = app.sandbox(&team).await;
    for name in [
        "page.html",
        "picture.svg",
        "picture.png",
        "paper.pdf",
        "script.js",
    ] {
        let path = format!("%2Fworkspace%2F{name}");
        app.upload(&team.key, &sandbox, &path, "<script>alert(1)</script>")
            .await
            .expect(201);
    }
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let run = app.post(&team.key, "/v1/runs", body).await.expect(201);
    let run = run["run"]["id"].as_str().unwrap();
    for (name, shown) in [
        ("page.html", false),
        ("picture.svg", false),
        ("script.js", false),
        ("picture.png", true),
        ("paper.pdf", true),
    ] {
        for inline in ["", "&inline=1"] {
            let seen = owner
                .get(&format!(
                    "/runs/{run}/files/raw?path=/workspace/{name}{inline}"
                ))
                .await;
            assert_eq!(seen.status, 200, "{name}");
            let header = |name: &str| seen.reply.header(name).unwrap_or_default().to_owned();
            assert_eq!(header("x-content-type-options"), "nosniff", "{name}");
            let is_shown = header("content-disposition") == "inline";
            assert_eq!(is_shown, shown && !inline.is_empty(), "{name}{inline}");
            let policy = header("content-security-policy");
            let is_pdf_reader = name == "paper.pdf" && is_shown;
            assert!(
                policy.starts_with("sandbox")
                    || is_pdf_reader && policy.contains("default-src 'none'"),
                "{name}: {policy}"
            );
        }
    }
    // No path leads out of the sandbox.
    for path in ["../../errand.db", "/etc/passwd", "%00"] {
        let status = owner
            .get(&format!("/runs/{run}/files/view?path={path}"))
            .await
            .status;
        assert!(status == 400 || status == 404, "{path}: {status}");
    }
}

/// Requests in the test below, each of which takes about half a MiB of HTML.
const LARGE: usize = 10;
/// The page's bound of 2 MiB, its last card and its frame.
const INBOX_BYTES_MAX: usize = 3 << 20;

#[tokio::test]
async fn an_inbox_of_large_requests_is_bounded_and_lists_each() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    // Each of these characters is a mark of its own, since no two in a row are equal.
    let hidden = "\u{200b}\u{200c}".repeat(990);
    let questions: Vec<_> = (0..30)
        .map(|n| json!({"question": format!("{n}: {hidden}")}))
        .collect();
    let steps = json!([{"ask": {"title": "Which?", "questions": questions}, "as": "x"}, {"finish": "Done."}]);
    let agent = app.playbook(&team, steps).await;
    let mut runs = Vec::new();
    for _ in 0..LARGE {
        runs.push(app.run(&team, json!({"agent_id": agent})).await);
    }
    app.settle().await;
    let one = owner.get(&format!("/runs/{}", runs[0])).await.ok();
    assert!(
        LARGE * one.len() > INBOX_BYTES_MAX + (1 << 20),
        "{}",
        one.len()
    );
    for path in ["/inbox", "/inbox/open?cards=on&seen=0"] {
        let page = owner.get(path).await.ok();
        assert!(page.len() < INBOX_BYTES_MAX, "{path}: {}", page.len());
        assert!(page.contains("This page is too long to show the whole request"));
        assert_eq!(page.matches("data-request=\"").count(), LARGE, "{path}");
        for run in &runs {
            assert!(page.contains(&format!("href=\"/runs/{run}\"")), "{path}");
        }
    }
    // The page of its run shows the request whole, and takes the answer.
    let last = owner.get(&format!("/runs/{}", runs[LARGE - 1])).await.ok();
    assert!(last.contains("name=\"q29_text\""));
}

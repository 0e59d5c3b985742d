//! The pages in a real browser: a complete story, lost connections, two tabs, foreign content, accessibility.

use std::net::SocketAddr;
use std::path::Path;

use errand::admin::{Admin, AdminAnswer, AdminRequest};
use errand_core::role::Role;
use errand_engine::clock::Clock;
use errand_testkit::providers::{Answer, Fault, ProviderServer};
use errand_testkit::{Gate, Team, TestApp, TestOptions};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::browser::Chromium;
use crate::web::{Browser, PASSWORD, between};

/// axe-core, in the place where `scripts/axe` puts it.
const AXE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/axe-4.14.1.min.js");

async fn app() -> TestApp {
    TestApp::start_with(TestOptions {
        system_clock: true,
        ..TestOptions::default()
    })
    .await
}

const PLAYBOOK: &str = "steps:\n- tool: read_file\n  with: {path: /workspace/order.csv}\n  as: csv\n- wait: 1s\n- approve: {title: Send the order?}\n  as: ok\n- tool: write_file\n  with: {path: /workspace/sent.txt, content: \"sent: {{ ok.approved }}\"}\n- finish: All is sent.\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_the_first_start_to_the_downloaded_result() {
    let app = app().await;
    let admin = Admin::new(
        app.store().clone(),
        [3; 32],
        Clock::System,
        app.url().to_owned(),
    );
    let link = admin.claim_link().await.unwrap().unwrap();
    let browser = Chromium::start().await;

    // The first start.
    browser.go(&link).await;
    browser.fill("#email", "ann@example.com").await;
    browser.fill("#password", PASSWORD).await;
    browser.fill("#again", PASSWORD).await;
    browser.press("button.main").await;
    browser.until("Needs your attention").await;
    assert!(
        admin.claim_link().await.unwrap().is_none(),
        "there is an owner now"
    );

    // An assignment in the editor, first with an invalid playbook.
    browser.go(&format!("{}/assignments/new", app.url())).await;
    browser.fill("#name", "Send orders").await;
    browser.fill("#playbook", "steps:\n- finnish: x\n").await;
    browser.press("form.form button.main").await;
    browser.until("Line 2:").await;
    browser.fill("#playbook", PLAYBOOK).await;
    browser.press("form.form button.main").await;
    browser.until("Run now").await;
    let address = browser.url().await;
    let agent = address.rsplit('/').next().unwrap().to_owned();
    assert!(
        browser.text().await.contains(&agent),
        "the API trigger has its id"
    );

    // An API key, and a run by a program that uses it.
    browser
        .go(&format!("{}/settings/api-keys", app.url()))
        .await;
    browser.fill("#name", "shop").await;
    browser.press("form.row button.main").await;
    let key = browser
        .script("return document.getElementById('new-key').textContent")
        .await;
    let key = key.as_str().unwrap();
    let sandbox = app.post(key, "/v1/sandboxes", json!({})).await.expect(201);
    let sandbox = sandbox["sandbox_id"].as_str().unwrap();
    app.upload(key, sandbox, "/workspace/order.csv", "item,n\nnail,3\n")
        .await
        .expect(201);
    let body = json!({"agent_id": agent, "message": "Order 7", "sandbox_id": sandbox});
    let run = app.post(key, "/v1/runs", body).await.expect(201);
    let run = run["run"]["id"].as_str().unwrap().to_owned();

    // Later entries appear without a reload.
    browser.go(&format!("{}/runs/{run}", app.url())).await;
    browser.script("window.stays = true").await;
    browser.until("Send the order?").await;
    browser.until("Waiting for an answer").await;

    // Approved in the inbox, in another tab.
    let watching = browser.here().await;
    browser.tab().await;
    browser.go(&format!("{}/inbox", app.url())).await;
    assert_eq!(browser.title().await, "(1) Inbox · errand");
    browser.fill("textarea[name=reason]", "checked").await;
    browser.decide("button[value=approve]").await;
    browser.until("by ann@example.com").await;
    browser.switch(&watching).await;
    browser.until("All is sent.").await;
    browser
        .until_script("return document.querySelector('#state').innerText.includes('completed')")
        .await;
    browser
        .until_script("return document.getElementById('news').hidden && !document.querySelector('#request [data-request]:not([data-closed])')")
        .await;
    assert_eq!(browser.script("return window.stays").await, json!(true));

    // The result.
    browser
        .until_script("return document.querySelector('#side').innerText.includes('sent.txt')")
        .await;
    let download = "const done = arguments[arguments.length - 1]; \
        fetch(document.querySelector('a[aria-label=\"Download sent.txt\"]').href).then(r => r.text()).then(done)";
    assert_eq!(browser.script_until(download).await, json!("sent: true"));
}

/// An assignment that waits for an approval, and a run of it.
async fn waiting(app: &TestApp, team: &Team) -> String {
    let steps = json!([{"approve": {"title": "Go on?"}, "as": "a"}, {"say": "One."}, {"wait": "300ms"}, {"say": "Two."}, {"finish": "Three."}]);
    let agent = app.playbook(team, steps).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    run
}

/// A proxy between browser and server, which can be cut.
struct Line {
    address: SocketAddr,
    is_up: watch::Sender<bool>,
}

impl Line {
    async fn to(url: &str) -> Self {
        let server = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_up, up) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let Ok((mut near, _)) = listener.accept().await else {
                    return;
                };
                let (server, mut up) = (server.clone(), up.clone());
                tokio::spawn(async move {
                    if !*up.borrow_and_update() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(server).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = up.wait_for(|up| !*up) => {}
                    }
                });
            }
        });
        Self { address, is_up }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_reconnects_after_a_lost_connection() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let run = waiting(&app, &team).await;
    let line = Line::to(app.url()).await;
    let url = format!("http://{}", line.address);
    let browser = Chromium::start().await;
    browser.log_in(&url, &owner.cookie).await;
    browser.go(&format!("{url}/runs/{run}")).await;
    browser.until("Live").await;
    browser.script("window.stays = true").await;

    line.is_up.send(false).unwrap();
    browser.until("Connection lost, trying again").await;
    let pending = app.get_run(&team, &run).await;
    let request = pending["pending_human_request"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let respond = format!("/v1/runs/{run}/human-requests/{request}/respond");
    app.post(&team.key, &respond, json!({"approved": true}))
        .await
        .expect(200);
    line.is_up.send(true).unwrap();

    browser.until("Three.").await;
    browser
        .until_script("return document.querySelector('#state').innerText.includes('completed')")
        .await;
    assert_eq!(browser.script("return window.stays").await, json!(true));
    // Each entry once, in order.
    let shown = browser.script("return [...document.querySelectorAll('#transcript > li[data-at]')].map(e => Number(e.dataset.at))").await;
    let shown: Vec<u64> = serde_json::from_value(shown).unwrap();
    assert!(
        shown.len() > 3 && shown.is_sorted_by(|a, b| a < b),
        "{shown:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_of_two_answering_tabs_sees_who_was_first() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let run = waiting(&app, &team).await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    let page = format!("{}/runs/{run}", app.url());
    browser.go(&page).await;
    // Without live updates, so that the second tab still shows the earlier state.
    browser.script("htmx.createEventSource = () => new EventTarget(); document.querySelectorAll('[sse-connect]').forEach(e => e.outerHTML = e.outerHTML.replace('sse-connect', 'x'))").await;
    browser.fill("textarea[name=reason]", "I say yes").await;
    let second = browser.here().await;
    browser.tab().await;
    browser.go(&page).await;
    browser.decide("button[value=deny]").await;
    browser.until("denied").await;
    browser.switch(&second).await;
    browser.decide("button[value=approve]").await;
    browser
        .until("already denied by owner@acme.example at")
        .await;
    // The typed text is still readable.
    let typed = "return document.querySelector('textarea[name=reason]').value";
    assert_eq!(browser.script(typed).await, json!("I say yes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_sent_with_the_run_that_needs_them() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let agent = app.playbook(&team, json!([{"tool": "read_file", "with": {"path": "/workspace/a.txt"}, "as": "a"}, {"finish": "{{ a }}"}])).await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    browser
        .go(&format!("{}/assignments/{agent}", app.url()))
        .await;
    // One file is dropped, one is chosen; a bar shows the progress while they are sent.
    browser.script("const all = new DataTransfer(); all.items.add(new File(['dropped'], 'b.txt')); \
        document.querySelector('.drop').dispatchEvent(new DragEvent('drop', {dataTransfer: all, bubbles: true, cancelable: true}))").await;
    browser.until("b.txt (7 B)").await;
    browser.script("const bar = document.querySelector('form[data-upload] progress'); \
        new MutationObserver(() => { if (!bar.hidden) sessionStorage.setItem('bar', 'seen') }).observe(bar, {attributes: true})").await;
    let file = app.dir().join("a.txt");
    std::fs::write(&file, "from the file").unwrap();
    browser.choose("#start-files", &file).await;
    browser.until("a.txt (13 B)").await;
    browser.press("form[data-upload] button.main").await;
    browser.until("from the file").await;
    assert_eq!(
        browser.script("return sessionStorage.getItem('bar')").await,
        json!("seen")
    );
    // The side column is updated after the transcript.
    browser
        .until_script("return document.querySelector('#side').innerText.includes('b.txt')")
        .await;
}

/// The addresses of all pages, with data of each kind.
async fn pages(app: &TestApp, owner: &Browser<'_>, team: &Team) -> Vec<String> {
    let run = waiting(app, team).await;
    let question = json!([{"say": "**Hello**\n\n- a\n- b"}, {"tool": "write_file", "with": {"path": "/workspace/t.csv", "content": "a,b\n1,2\n"}}, {"tool": "read_file", "with": {"path": "/workspace/t.csv"}},
        {"ask": {"title": "Which?", "description": "More", "questions": [{"question": "One?", "header": "H", "options": [{"label": "A", "description": "d"}, {"label": "B"}]}, {"question": "Many?", "options": [{"label": "C"}], "multi_select": true}, {"question": "Free?"}]}, "as": "x"}]);
    let agent = app.playbook(team, question).await;
    let asked = app
        .run(
            team,
            json!({"agent_id": agent, "message": "Hello", "webhook_url": "http://127.0.0.1:1/x"}),
        )
        .await;
    let failing = app.playbook(team, json!([{"fail": "broken"}])).await;
    let failed = app.run(team, json!({"agent_id": failing})).await;
    app.settle().await;
    owner
        .post(
            &format!("/assignments/{agent}/edit"),
            &[
                ("name", "Changed"),
                ("model", "builtin/playbook"),
                ("playbook", "steps:\n- finish: x\n"),
                ("people", "on"),
            ],
        )
        .await
        .leads_to();
    let builds = app
        .get(&team.key, &format!("/v1/agents/{agent}/builds"))
        .await
        .expect(200);
    let id = |at: usize| builds["builds"][at]["id"].as_str().unwrap().to_owned();
    let hook = [
        ("url", "http://127.0.0.1:1/hook"),
        ("event", "run_failed"),
        ("enabled", "on"),
    ];
    let hook = owner.post("/webhooks", &hook).await.leads_to();
    owner.post(&format!("{hook}/test"), &[]).await.leads_to();
    let compared = format!(
        "/assignments/{agent}/builds/compare?from={}&to={}",
        id(1),
        id(0)
    );
    let mut pages: Vec<String> = [
        "/",
        "/inbox",
        "/runs",
        "/runs?status=waiting",
        "/assignments",
        "/assignments/new",
        "/settings/api-keys",
        "/settings/team",
        "/settings/secrets",
        "/connections",
        "/webhooks",
        "/usage",
        "/usage?days=365",
        "/settings/models",
        "/account",
        "/runs/none",
        "/nowhere",
    ]
    .map(str::to_owned)
    .to_vec();
    let entries = app.messages(team, &asked).await;
    let first = entries[0]["id"].as_str().unwrap();
    pages.extend([
        format!("/runs/{asked}/fork?after_message={first}&at=1"),
        format!("/runs/{run}"),
        format!("/runs/{asked}"),
        format!("/runs/{failed}"),
        format!("/runs/{asked}/files"),
        format!("/runs/{asked}/files/view?path=/workspace/t.csv"),
        format!("/assignments/{agent}"),
        format!("/assignments/{agent}/edit"),
        format!("/assignments/{agent}/builds"),
        compared,
        hook,
        format!("/settings/team/{}/remove", team.owner),
    ]);
    pages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_accessible_in_all_themes_and_widths() {
    let axe =
        std::fs::read_to_string(Path::new(AXE)).expect("axe-core is here: scripts/axe fetches it");
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "member@acme.example", Role::Member).await;
    let member = Browser::of(&app, "member@acme.example").await;
    let all = pages(&app, &owner, &team).await;
    let mut open = vec!["/log-in".to_owned()];
    open.extend(links(&app, &owner).await);
    let browser = Chromium::start().await;
    let mut broken = Vec::new();
    browser.log_in(app.url(), &member.cookie).await;
    // The pages of a member are a subset of those of an owner.
    look_at(&browser, (&app, &axe), &all, &LOOKS[..2], &mut broken).await;
    browser.log_in(app.url(), &owner.cookie).await;
    look_at(&browser, (&app, &axe), &all, &LOOKS, &mut broken).await;
    browser.log_out().await;
    look_at(&browser, (&app, &axe), &open, &LOOKS, &mut broken).await;
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Links that work without logging in, and one that is no longer valid.
async fn links(app: &TestApp, owner: &Browser<'_>) -> Vec<String> {
    let admin = Admin::new(
        app.store().clone(),
        [5; 32],
        Clock::System,
        app.url().to_owned(),
    );
    let request = AdminRequest::LinkUser {
        email: "new@acme.example".to_owned(),
        role: None,
        team: None,
    };
    let AdminAnswer::Link { url: link, .. } = admin.execute(request).await.unwrap() else {
        panic!("no link");
    };
    let invited = owner
        .post_and_follow("/settings/team/invitations", &[("role", "member")])
        .await;
    let joined = between(&invited, "id=\"new-link\">", "<").unwrap();
    [link.as_str(), joined, "/join/none", "/set-up/none"]
        .map(|link| link.trim_start_matches(app.url()).to_owned())
        .to_vec()
}

/// Window widths and themes.
const LOOKS: [(u32, &str); 4] = [
    (1280, "light"),
    (390, "dark"),
    (1280, "dark"),
    (390, "light"),
];

/// Checks pages with axe-core.
async fn look_at(
    browser: &Chromium,
    (app, axe): (&TestApp, &str),
    all: &[String],
    looks: &[(u32, &str)],
    broken: &mut Vec<String>,
) {
    for (width, theme) in looks {
        browser.look(*width, theme).await;
        for page in all {
            browser.go(&format!("{}{page}", app.url())).await;
            browser.script("document.querySelectorAll('details').forEach(d => { if (!d.closest('.top')) d.open = true })").await;
            browser.script(axe).await;
            let found = browser
                .script_until("const done = arguments[arguments.length - 1]; axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations.map(v => [v.id, v.help, v.nodes.map(n => n.html + ' ' + n.failureSummary).slice(0, 2)])), e => done(String(e)))")
                .await;
            if found != json!([]) {
                broken.push(format!("{page} {width} {theme}: {found:#}"));
            }
            let wider = browser
                .script("return document.documentElement.scrollWidth - window.innerWidth")
                .await;
            if wider.as_i64() > Some(0) {
                broken.push(format!(
                    "{page} {width} {theme}: {wider} px wider than the window"
                ));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_scripts_run_nowhere() {
    let evil = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'><svg onload='window.ran = 3'>";
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let steps = json!([{"say": evil}, {"tool": "write_file", "with": {"path": "/workspace/page.html", "content": evil}}, {"approve": {"title": evil, "description": evil}, "as": "a"}]);
    let body = json!({"name": evil, "build": {"name": evil, "config": {"version": "v2", "data": {"input": evil, "playbook": {"steps": steps}}}}});
    let agent = app.post(&team.key, "/v1/agents", body).await.expect(201);
    let agent = agent["agent"]["id"].as_str().unwrap().to_owned();
    let run = app
        .run(&team, json!({"agent_id": agent, "message": evil}))
        .await;
    app.settle().await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    for page in [
        "/".to_owned(),
        "/inbox".to_owned(),
        "/runs".to_owned(),
        "/assignments".to_owned(),
        format!("/runs/{run}"),
        format!("/assignments/{agent}"),
        format!("/assignments/{agent}/edit"),
        format!("/runs/{run}/files/view?path=/workspace/page.html"),
    ] {
        browser.go(&format!("{}{page}", app.url())).await;
        assert_eq!(
            browser.script("return window.ran || null").await,
            Value::Null,
            "{page}"
        );
        // Scripts that get into the page in another way do not run either: the content security policy forbids them.
        browser.script("const s = document.createElement('script'); s.textContent = 'window.ran = 4'; document.body.append(s); document.body.setAttribute('onclick', 'window.ran = 5'); document.body.click()").await;
        assert_eq!(
            browser.script("return window.ran || null").await,
            Value::Null,
            "{page}"
        );
    }
}

/// An HTML file, a picture that is a program and a PDF that is a page, opened directly and embedded in one of our
/// pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_files_cannot_act_in_our_origin() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let agent = app.playbook(&team, json!([{"finish": "x"}])).await;
    let sandbox = app.sandbox(&team).await;
    let act = "try { window.ran = 1; (window.top || window).ran = 2; document.cookie = 'ran=1' } catch (e) {}";
    let page = format!("<html><script>{act}</script><body onload=\"{act}\">x</html>");
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"{act}\"><script>{act}</script></svg>"
    );
    let pdf = "%PDF-1.1\n1 0 obj<</Type/Catalog/Pages 2 0 R/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj\ntrailer<</Root 1 0 R>>\n";
    let files = [
        ("page.html", page.as_str()),
        ("page.pdf", page.as_str()),
        ("picture.svg", svg.as_str()),
        ("picture.png", svg.as_str()),
        ("paper.pdf", pdf),
    ];
    for (name, text) in files {
        let path = format!("%2Fworkspace%2F{name}");
        app.upload(&team.key, &sandbox, &path, text.to_owned())
            .await
            .expect(201);
    }
    let body = json!({"agent_id": agent, "sandbox_id": sandbox});
    let run = app.post(&team.key, "/v1/runs", body).await.expect(201);
    let run = run["run"]["id"].as_str().unwrap().to_owned();
    app.settle().await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    // A sandboxed document cannot even read its cookies.
    let clean = "let cookies = ''; try { cookies = document.cookie } catch (e) {} return (window.ran || null) === null && !cookies.includes('ran=')";
    for (name, _) in files {
        let raw = format!(
            "{}/runs/{run}/files/raw?path=/workspace/{name}&inline=1",
            app.url()
        );
        // Opened directly: displayed if they cannot act, otherwise downloaded.
        browser.go_or_download(&raw).await;
        assert_eq!(browser.script(clean).await, json!(true), "{name}");
        // Embedded in one of our pages.
        browser
            .go(&format!(
                "{}/runs/{run}/files/view?path=/workspace/{name}",
                app.url()
            ))
            .await;
        let put = format!(
            "for (const [tag, at] of [['object', 'data'], ['embed', 'src'], ['iframe', 'src'], ['script', 'src'], ['img', 'src']]) {{ \
             const e = document.createElement(tag); e[at] = {}; document.body.append(e) }}",
            json!(raw)
        );
        browser.script(&put).await;
        // Waits until the last of them has loaded or was refused.
        let done = "const done = arguments[arguments.length - 1]; const e = document.createElement('img'); e.onload = e.onerror = () => done(true); e.src = '/nowhere.png'; document.body.append(e)";
        browser.script_until(done).await;
        assert_eq!(browser.script(clean).await, json!(true), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_models_text_is_shown_while_it_is_generated() {
    let server = ProviderServer::start().await;
    let app = TestApp::start_with(TestOptions {
        system_clock: true,
        settings: server.settings(),
        ..TestOptions::default()
    })
    .await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let (all, trickle) = (Gate::default(), Gate::default());
    server.script(
        "gpt-test",
        vec![Answer::text("First <b>half</b> and the second")],
    );
    server.fail_with([Fault::Trickle(trickle.clone())]);
    server.hold_at(&all);
    let config =
        json!({"version": "v2", "data": {"models": {"agent": {"model": "openai/gpt-test"}}}});
    let agent = app.agent(&team, config).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "Speak"}))
        .await;
    server.until(1).await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    browser.go(&format!("{}/runs/{run}", app.url())).await;
    browser.until("Live").await;
    all.open_for_good();
    // The first events of the answer contain some of its text, but not all.
    for _ in 0..3 {
        trickle.open();
    }
    browser
        .until_script("return document.querySelector('#draft').innerText.includes('First')")
        .await;
    let draft = browser
        .script("return document.querySelector('#draft').innerText")
        .await;
    let draft = draft.as_str().unwrap();
    assert!(
        draft.contains("is writing") && !draft.contains("the second"),
        "{draft}"
    );
    trickle.open_for_good();
    browser
        .until_script(
            "return document.querySelector('#transcript').innerText.includes('and the second')",
        )
        .await;
    browser
        .until_script("return document.querySelector('#draft').innerText.trim() === ''")
        .await;
    assert_eq!(
        browser
            .script("return document.querySelectorAll('#transcript .assistant').length")
            .await,
        json!(1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_requests_cause_notifications_if_permitted() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    waiting(&app, &team).await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    browser.go(&format!("{}/inbox", app.url())).await;
    assert_eq!(browser.title().await, "(1) Inbox · errand");
    // A browser without a window cannot ask or notify anyone, so the calls are recorded instead.
    browser.script("window.told = []; window.Notification = function (title, more) { window.told.push(title, more.body) }; \
        window.Notification.permission = 'default'; \
        window.Notification.requestPermission = () => { window.Notification.permission = 'granted'; return Promise.resolve('granted') }; \
        document.querySelector('[data-notify]').hidden = false").await;
    browser.press("[data-notify]").await;
    browser
        .until_script("return document.querySelector('[data-notify]').hidden")
        .await;
    assert_eq!(browser.script("return window.told").await, json!([]));
    waiting(&app, &team).await;
    browser
        .until_script("return document.title.startsWith('(2) ')")
        .await;
    assert_eq!(
        browser.script("return window.told").await,
        json!([
            "errand: a request waits for you",
            "The playbook asks: “Go on?”"
        ])
    );
}

/// Pairs of controls of one table cell that touch, or of which one is below the other.
const CROWDED: &str = "
    const crowded = [];
    for (const cell of document.querySelectorAll('td')) {
        const shown = [...cell.querySelectorAll('select, button, a.button')].map(e => [e, e.getBoundingClientRect()])
            .filter(([, at]) => at.width > 0);
        for (let i = 1; i < shown.length; i++) {
            const [[a, left], [b, right]] = [shown[i - 1], shown[i]];
            const isBeside = right.top < left.bottom && left.top < right.bottom;
            if (!isBeside || right.left - left.right < 4) crowded.push(a.outerHTML + ' / ' + b.outerHTML);
        }
    }
    return crowded;";
/// The parts of the chart that are outside of the window, or cannot be seen.
const CUT: &str = "
    const shown = [...document.querySelectorAll('.chart > svg')].filter(svg => svg.getBoundingClientRect().width > 0);
    if (shown.length !== 1) return [shown.length + ' charts'];
    const inside = shown[0].getBoundingClientRect();
    return [...shown[0].querySelectorAll('rect, text')].map(part => [part, part.getBoundingClientRect()])
        .filter(([, at]) => at.right > Math.min(inside.right, window.innerWidth) + 1 || at.left < inside.left - 1)
        .map(([part]) => part.outerHTML);";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controls_of_a_team_and_the_chart_have_room() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "member@acme.example", Role::Member).await;
    let agent = app.playbook(&team, json!([{"finish": "Done."}])).await;
    app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    for (width, theme) in LOOKS {
        browser.look(width, theme).await;
        for (page, script) in [("/settings/team", CROWDED), ("/", CUT)] {
            browser.go(&format!("{}{page}", app.url())).await;
            assert_eq!(browser.script(script).await, json!([]), "{page} {width}");
            let wider = "return document.documentElement.scrollWidth - window.innerWidth";
            assert!(
                browser.script(wider).await.as_i64() <= Some(0),
                "{page} {width}"
            );
        }
    }
}

//! Answering requests in a real browser: no key in a field decides, nothing moves that a person is using, two tabs.

use errand_testkit::{Team, TestApp, TestOptions};
use serde_json::{Value, json};

use crate::browser::Chromium;
use crate::web::Browser;

const ENTER: &str = "\u{e007}";
const CONTROL_ENTER: &str = "\u{e009}\u{e007}";
const SHIFT_ENTER: &str = "\u{e008}\u{e007}";

async fn app() -> TestApp {
    TestApp::start_with(TestOptions {
        system_clock: true,
        ..TestOptions::default()
    })
    .await
}

/// A run whose tool call waits for an approval; the path distinguishes it from others.
async fn paying(app: &TestApp, team: &Team, path: &str) -> String {
    let steps = json!([{"tool": "write_file", "with": {"path": path, "content": "x"}}, {"finish": "Done."}]);
    let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}, "tools": {"write_file": "ask"}}});
    let agent = app.agent(team, config).await;
    let run = app
        .run(
            team,
            json!({"agent_id": agent, "message": "Pay what is due"}),
        )
        .await;
    app.settle().await;
    run
}

/// A run with a question of each kind.
async fn asking(app: &TestApp, team: &Team) -> String {
    let steps = json!([{"ask": {"title": "Which?", "questions": [
        {"question": "One?", "options": [{"label": "A"}, {"label": "B"}]},
        {"question": "Many?", "options": [{"label": "C"}], "multi_select": true},
        {"question": "Free?"}]}, "as": "x"}, {"finish": "Done."}]);
    let agent = app.playbook(team, steps).await;
    let run = app.run(team, json!({"agent_id": agent})).await;
    app.settle().await;
    run
}

/// The ID of the run's open request.
async fn pending(app: &TestApp, team: &Team, run: &str) -> String {
    let run = app.get_run(team, run).await;
    let id = run["pending_human_request"]["id"].as_str();
    id.expect("the run still waits").to_owned()
}

/// Approves through the API, as another person.
async fn approve(app: &TestApp, team: &Team, run: &str, request: &str) {
    let path = format!("/v1/runs/{run}/human-requests/{request}/respond");
    app.post(&team.key, &path, json!({"approved": true}))
        .await
        .expect(200);
    app.settle().await;
}

async fn logged_in(app: &TestApp, owner: &Browser<'_>, page: &str) -> Chromium {
    let browser = Chromium::start().await;
    browser.log_in(app.url(), &owner.cookie).await;
    browser.go(&format!("{}{page}", app.url())).await;
    browser
}

/// The fields of a page that accept key presses.
const FIELDS: &str = "[...document.querySelectorAll('input:not([type=hidden]), textarea, select')].filter(f => f.offsetParent !== null)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_key_pressed_in_a_field_of_any_page_decides_anything() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let calls = paying(&app, &team, "/workspace/pay.csv").await;
    let asks = asking(&app, &team).await;
    let steps = json!([{"approve": {"title": "Go on?"}, "as": "a"}, {"finish": "Done."}]);
    let child = app.playbook(&team, steps).await;
    let steps = json!([{"tool": "run_assignment", "with": {"assignment": child, "message": "Child"}}, {"finish": "Done."}]);
    let config = json!({"version": "v2", "data": {"playbook": {"steps": steps}, "tools": {"run_assignment": "allow"}, "assignments": [child]}});
    let parent = app.agent(&team, config).await;
    app.run(&team, json!({"agent_id": parent})).await;
    app.settle().await;
    let found = app
        .get(&team.key, &format!("/v1/runs?agent_id={child}"))
        .await
        .expect(200);
    let child = found["runs"][0]["id"].as_str().unwrap().to_owned();
    let runs = [&calls, &asks, &child];
    let mut before = Vec::new();
    for run in runs {
        before.push(pending(&app, &team, run).await);
    }
    let browser = logged_in(&app, &owner, "/inbox").await;
    let pages = [
        "/inbox".to_owned(),
        format!("/runs/{calls}"),
        format!("/runs/{asks}"),
        format!("/runs/{child}"),
        "/runs".to_owned(),
        "/".to_owned(),
    ];
    let mut pressed = 0;
    for page in &pages {
        browser.go(&format!("{}{page}", app.url())).await;
        let fields = browser.script(&format!("return {FIELDS}.length")).await;
        for index in 0..fields.as_u64().unwrap() {
            for keys in [ENTER, CONTROL_ENTER, SHIFT_ENTER] {
                browser.go(&format!("{}{page}", app.url())).await;
                browser.script(&format!("{FIELDS}[{index}].focus()")).await;
                browser.keys(&format!("no{keys}")).await;
                pressed += 1;
            }
        }
    }
    assert!(pressed > 30, "{pressed}");
    app.settle().await;
    for (run, request) in runs.into_iter().zip(&before) {
        assert_eq!(&pending(&app, &team, run).await, request, "{run}");
    }
    // Also without the script that guards them.
    let inbox = owner.get("/inbox").await.ok();
    for form in inbox.split("data-answer").skip(1) {
        let button = form.find("<button").unwrap();
        let first = form[button..].split('>').next().unwrap();
        assert!(first.contains("disabled"), "{first}");
    }
}

/// The center of an element in window coordinates.
async fn middle(browser: &Chromium, css: &str) -> (i64, i64) {
    let at = browser
        .script(&format!(
            "const r = document.querySelector({}).getBoundingClientRect(); return [Math.round(r.x + r.width / 2), Math.round(r.y + r.height / 2)]",
            json!(css)
        ))
        .await;
    (at[0].as_i64().unwrap(), at[1].as_i64().unwrap())
}

fn card(request: &str) -> String {
    format!("[data-request=\"{request}\"]")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_card_answered_elsewhere_stays_in_place() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let mut all = Vec::new();
    for path in ["/workspace/a", "/workspace/b", "/workspace/c"] {
        let run = paying(&app, &team, path).await;
        let request = pending(&app, &team, &run).await;
        all.push((run, request));
    }
    let browser = logged_in(&app, &owner, "/inbox").await;
    // The mouse is on the button of the second card, the keyboard focus in the reason of the third.
    let button = format!("{} button[value=approve]", card(&all[1].1));
    let reason = format!("{} textarea[name=reason]", card(&all[2].1));
    // The typing comes first, because the browser scrolls to it.
    browser
        .script(&format!(
            "document.querySelector({}).focus({{preventScroll: true}})",
            json!(reason)
        ))
        .await;
    browser.keys("No, the IBAN").await;
    browser
        .script(&format!(
            "document.querySelector({}).scrollIntoView({{block: 'center'}})",
            json!(button)
        ))
        .await;
    let (x, y) = middle(&browser, &button).await;
    browser.mouse(x, y, false).await;
    let seen = format!(
        "return [document.elementFromPoint({x}, {y}) === document.querySelector({}), document.elementFromPoint({x}, {y}).closest('[data-request]').dataset.request, \
         document.activeElement === document.querySelector({reason}), document.querySelector({reason}).value, \
         Math.round(document.querySelector({reason}).getBoundingClientRect().y), window.scrollY]",
        json!(button),
        reason = json!(reason)
    );
    let before = browser.script(&seen).await;
    assert_eq!(before[0], json!(true), "{before}");
    let closed = |request: &str| {
        format!(
            "return document.querySelector({}).hasAttribute('data-closed')",
            json!(card(request))
        )
    };

    // Another person answers the first request.
    approve(&app, &team, &all[0].0, &all[0].1).await;
    browser.until_script(&closed(&all[0].1)).await;
    assert_eq!(browser.script(&seen).await, before);
    let first = browser
        .script(&format!(
            "return document.querySelector({}).innerText",
            json!(card(&all[0].1))
        ))
        .await;
    let first = first.as_str().unwrap();
    assert!(
        first.contains("approved") && first.contains("API key test"),
        "{first}"
    );

    // Also the one under the pointer: a press there decides nothing on any card.
    approve(&app, &team, &all[1].0, &all[1].1).await;
    browser.until_script(&closed(&all[1].1)).await;
    let after = browser.script(&seen).await;
    for same in 1..6 {
        assert_eq!(after[same], before[same], "{same}: {after}");
    }
    browser.mouse(x, y, true).await;
    assert_eq!(pending(&app, &team, &all[2].0).await, all[2].1);

    // The sentence is completed, and the answer is sent on the same page.
    browser
        .script(&format!(
            "document.querySelector({}).focus({{preventScroll: true}})",
            json!(reason)
        ))
        .await;
    browser.keys(" is wrong").await;
    let deny = format!("{} button[value=deny]", card(&all[2].1));
    browser.decide(&deny).await;
    browser.until_script(&closed(&all[2].1)).await;
    app.settle().await;
    let denied = owner.get(&format!("/runs/{}", all[2].0)).await.ok();
    assert!(denied.contains("No, the IBAN is wrong"), "{denied}");
    let scrolled = browser.script("return window.scrollY").await;
    assert!(browser.url().await.ends_with("/inbox"));
    assert!(scrolled.as_f64().unwrap() > 0.0, "{scrolled}");
    let link = format!(
        "return document.querySelector({}).querySelector('.outcome a').getAttribute('href')",
        json!(card(&all[2].1))
    );
    assert_eq!(
        browser.script(&link).await,
        json!(format!("/runs/{}", all[2].0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bar_announces_new_requests_and_shows_them_on_demand() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let first = paying(&app, &team, "/workspace/a").await;
    let request = pending(&app, &team, &first).await;
    let browser = logged_in(&app, &owner, "/inbox").await;
    let reason = format!("{} textarea[name=reason]", card(&request));
    browser.fill(&reason, "half a sen").await;
    let place = format!(
        "const f = document.querySelector({}); return [f.value, Math.round(f.getBoundingClientRect().y), document.activeElement === f]",
        json!(reason)
    );
    let before = browser.script(&place).await;
    let second = paying(&app, &team, "/workspace/b").await;
    let new = pending(&app, &team, &second).await;
    browser.until("1 new request").await;
    assert_eq!(browser.script(&place).await, before);
    let shows = format!(
        "return document.querySelector({}) !== null",
        json!(card(&new))
    );
    assert_eq!(browser.script(&shows).await, json!(false));
    browser.decide("[data-news]").await;
    browser.until_script(&shows).await;
    assert_eq!(browser.script(&place).await[0], before[0]);
    browser
        .until_script("return document.getElementById('news').hidden")
        .await;
    browser
        .until_script("return document.title.startsWith('(2) ')")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_cards_never_move_a_field_that_a_person_types_in() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let steps = json!([{"approve": {"title": "First?"}, "as": "a"}, {"say": "A long text.\n\nWith lines.\n\nAnd more."}, {"approve": {"title": "Second?"}, "as": "b"}, {"finish": "Done."}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    app.settle().await;
    let request = pending(&app, &team, &run).await;
    let browser = logged_in(&app, &owner, &format!("/runs/{run}")).await;
    browser.until("Live").await;
    browser.fill("#message", "I was going to say").await;
    let place = "const f = document.querySelector('#message'); return [f.value, Math.round(f.getBoundingClientRect().y), document.activeElement === f]";
    let before = browser.script(place).await;
    // The first request is answered in another tab; the following entries and the next request arrive.
    approve(&app, &team, &run, &request).await;
    browser.until("New request:").await;
    browser.until("With lines.").await;
    let closed = format!(
        "return document.querySelector({}).hasAttribute('data-closed')",
        json!(card(&request))
    );
    browser.until_script(&closed).await;
    assert_eq!(browser.script(place).await, before);
    let cards = "return document.querySelectorAll('#request [data-request]').length";
    assert_eq!(browser.script(cards).await, json!(1));
    browser.decide("[data-news]").await;
    browser
        .until_script("return document.querySelectorAll('#request [data-request]').length === 2")
        .await;
    let value = browser
        .script("return document.querySelector('#message').value")
        .await;
    assert_eq!(value, json!("I was going to say"));
    let open = pending(&app, &team, &run).await;
    browser
        .decide(&format!("{} button[value=approve]", card(&open)))
        .await;
    browser
        .until_script("return document.querySelector('#state').innerText.includes('completed')")
        .await;
    browser.until("Done.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_button_that_has_just_moved_does_not_act() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let run = paying(&app, &team, "/workspace/a").await;
    let request = pending(&app, &team, &run).await;
    let browser = logged_in(&app, &owner, "/inbox").await;
    let button = format!("{} button[value=approve]", card(&request));
    let settled = format!(
        "return document.querySelector({}).hasAttribute('data-settled')",
        json!(button)
    );
    browser.until_script(&settled).await;
    // Moved and pressed in one step.
    let told = browser
        .script(&format!(
            "window.scrollTo(0, 0); document.documentElement.style.overflowAnchor = 'none'; \
             const b = document.querySelector({}); b.getBoundingClientRect(); const d = document.createElement('div'); d.textContent = 'x'; \
             document.querySelector('#open-requests').before(d); \
             const e = new MouseEvent('click', {{bubbles: true, cancelable: true}}); const went = b.dispatchEvent(e); \
             return [went, document.getElementById('says').textContent]",
            json!(button)
        ))
        .await;
    assert_eq!(told[0], json!(false), "{told}");
    assert!(
        told[1].as_str().unwrap().contains("just appeared or moved"),
        "{told}"
    );
    assert_eq!(pending(&app, &team, &run).await, request);
    browser.decide(&button).await;
    browser.until("approved").await;
    app.settle().await;
    let run = app.get_run(&team, &run).await;
    assert_eq!(run["pending_human_request"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_inbox_tab_says_who_answered_in_the_first() {
    let app = app().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let run = asking(&app, &team).await;
    let request = pending(&app, &team, &run).await;
    let browser = logged_in(&app, &owner, "/inbox").await;
    // An answer that leaves out questions stays on the page, with the choices.
    browser.press("input[value=B]").await;
    browser
        .decide(&format!("{} button[value=answer]", card(&request)))
        .await;
    browser.until("Answer all questions.").await;
    let chosen = "return [...document.querySelectorAll('input:checked')].map(i => i.value)";
    assert_eq!(browser.script(chosen).await, json!(["B"]));
    let second = browser.here().await;
    browser.tab().await;
    browser.go(&format!("{}/inbox", app.url())).await;
    browser.press("input[value=A]").await;
    browser.press("input[value=C]").await;
    browser.fill("textarea[name=q2_text]", "Free").await;
    browser
        .decide(&format!("{} button[value=answer]", card(&request)))
        .await;
    browser.until("answered").await;
    browser.switch(&second).await;
    let closed = format!(
        "return document.querySelector({}).hasAttribute('data-closed')",
        json!(card(&request))
    );
    browser.until_script(&closed).await;
    let text = browser.text().await;
    assert!(
        text.contains("One? A") && text.contains("owner@acme.example"),
        "{text}"
    );
    assert_eq!(browser.script(chosen).await, json!(["B"]));
    app.settle().await;
}

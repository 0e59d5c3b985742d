//! Logging in, and the end of sessions.

use std::time::Duration;

use errand::secret_key::SetUpToken;
use errand_core::id::IdGen;
use errand_core::role::Role;
use errand_store::NewUser;
use errand_testkit::{TestApp, TestOptions};
use http::Method;

use crate::web::{Browser, PASSWORD, ask, form, log_in};

#[tokio::test]
async fn a_visitor_is_sent_to_the_log_in_page_and_back() {
    let app = TestApp::start().await;
    let seen = ask(&app, Method::GET, "/runs?status=failed", "", None, &[]).await;
    assert_eq!(seen.leads_to(), "/log-in?next=%2Fruns%3Fstatus%3Dfailed");
    let (_, _) = Browser::owner(&app, "acme").await;
    let body = form(&[
        ("email", " OWNER@acme.example "),
        ("password", PASSWORD),
        ("next", "/runs?status=failed"),
    ]);
    let seen = ask(&app, Method::POST, "/log-in", "", Some(&body), &[]).await;
    let cookie = seen.reply.header("set-cookie").unwrap().to_owned();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"),
        "{cookie}"
    );
    assert!(!cookie.contains("Secure"), "{cookie}");
    assert_eq!(seen.leads_to(), "/runs?status=failed");
}

#[tokio::test]
async fn behind_tls_the_cookie_is_secure_and_bound_to_the_host() {
    let app = TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_SERVER__PUBLIC_URL",
            "https://errand.example".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await;
    let (browser, _) = Browser::owner(&app, "acme").await;
    assert!(
        browser.cookie.starts_with("__Host-errand="),
        "{}",
        browser.cookie
    );
    let seen = log_in(&app, "owner@acme.example", PASSWORD).await;
    assert!(
        seen.reply
            .header("set-cookie")
            .unwrap()
            .contains("; Secure")
    );
    browser.get("/").await.ok();
}

#[tokio::test]
async fn wrong_passwords_and_unknown_addresses_look_alike() {
    let app = TestApp::start().await;
    let (_, _) = Browser::owner(&app, "acme").await;
    let wrong = log_in(&app, "owner@acme.example", "wrong")
        .await
        .refused(401);
    let unknown = log_in(&app, "nobody@acme.example", "wrong")
        .await
        .refused(401);
    let says = "Incorrect email or password.";
    assert!(wrong.contains(says) && unknown.contains(says));
    // The correct password does not count.
    for _ in 0..12 {
        let right = log_in(&app, "owner@acme.example", PASSWORD).await;
        assert_eq!(right.status, 303);
    }
}

#[tokio::test]
async fn failed_attempts_of_an_address_slow_all_its_accounts() {
    let app = TestApp::start().await;
    for n in 0..20 {
        let wrong = log_in(&app, &format!("{n}@x.example"), "wrong").await;
        assert_eq!(wrong.status, 401);
    }
    // From now on they are slow: a few wait at the same time, and the others are refused before a password check.
    let attempts = (0..12).map(|n| {
        let app = &app;
        async move {
            log_in(app, &format!("late{n}@x.example"), "wrong")
                .await
                .status
        }
    });
    let statuses = futures::future::join_all(attempts).await;
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 4);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 8);
}

#[tokio::test]
async fn a_form_of_another_site_does_nothing() {
    let app = TestApp::start().await;
    let (browser, _) = Browser::owner(&app, "acme").await;
    let right = form(&[("form_token", &browser.token)]);
    let post = async |headers: &[(&str, &str)], body: &str| {
        ask(
            &app,
            Method::POST,
            "/log-out",
            &browser.cookie,
            Some(body),
            headers,
        )
        .await
        .status
    };
    assert_eq!(post(&[("sec-fetch-site", "cross-site")], &right).await, 403);
    assert_eq!(post(&[("sec-fetch-site", "same-site")], &right).await, 403);
    let foreign = [("origin", "https://evil.example"), ("host", "127.0.0.1")];
    assert_eq!(post(&foreign, &right).await, 403);
    assert_eq!(post(&[("origin", "null")], &right).await, 403);
    // Without the token, or with another person's.
    assert_eq!(post(&[("sec-fetch-site", "same-origin")], "").await, 403);
    let other = form(&[("form_token", &"0".repeat(64))]);
    assert_eq!(
        post(&[("sec-fetch-site", "same-origin")], &other).await,
        403
    );
    browser.get("/").await.ok();
    let own = [("origin", "http://127.0.0.1"), ("host", "127.0.0.1")];
    assert_eq!(post(&own, &right).await, 303);
    assert_eq!(browser.get("/").await.leads_to(), "/log-in");
}

#[tokio::test]
async fn a_set_up_link_works_once_and_logs_in() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let ids = IdGen::new([5; 32]);
    let ann = ids.user(app.now());
    let new = NewUser {
        id: ann,
        email: "ann@example.com".to_owned(),
        now: app.now(),
    };
    app.store().create_user(new).await.unwrap();
    app.store()
        .add_member(team.id, ann, Role::Member, Role::Owner, app.now())
        .await
        .unwrap();
    let token = SetUpToken::generate().unwrap();
    let end = app.now().plus_ms(3_600_000);
    app.store()
        .create_set_up_link(ann, token.hash(), end, app.now())
        .await
        .unwrap();
    let path = format!("/set-up/{}", token.expose());
    let page = ask(&app, Method::GET, &path, "", None, &[]).await;
    assert_eq!(page.reply.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.reply.header("cache-control"), Some("no-store"));
    assert!(page.ok().contains("value=\"ann@example.com\""));
    let post = async |password: &str, again: &str| {
        let body = form(&[("email", ""), ("password", password), ("again", again)]);
        ask(&app, Method::POST, &path, "", Some(&body), &[]).await
    };
    assert!(
        post(PASSWORD, "another one")
            .await
            .refused(400)
            .contains("do not match")
    );
    assert!(
        post("short", "short")
            .await
            .refused(400)
            .contains("at least 12")
    );
    let seen = post(PASSWORD, PASSWORD).await;
    let cookie = seen.reply.header("set-cookie").unwrap().to_owned();
    assert_eq!(seen.leads_to(), "/");
    ask(
        &app,
        Method::GET,
        "/",
        cookie.split(';').next().unwrap(),
        None,
        &[],
    )
    .await
    .ok();
    post(PASSWORD, PASSWORD).await.refused(404);
    for dead in ["x", &"a".repeat(32)] {
        let path = format!("/set-up/{dead}");
        let seen = ask(&app, Method::GET, &path, "", None, &[]).await;
        assert!(seen.refused(404).contains("errand users link"));
    }
}

#[tokio::test]
async fn a_new_password_logs_out_all_other_sessions() {
    let app = TestApp::start().await;
    let (here, _) = Browser::owner(&app, "acme").await;
    let seen = log_in(&app, "owner@acme.example", PASSWORD).await;
    let there = seen
        .reply
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let change = async |present: &str, new: &str| {
        here.post(
            "/account/password",
            &[("present", present), ("password", new), ("again", new)],
        )
        .await
    };
    assert!(
        change("wrong", "another password")
            .await
            .refused(400)
            .contains("current password")
    );
    assert!(
        change(PASSWORD, "short")
            .await
            .refused(400)
            .contains("at least 12")
    );
    change(PASSWORD, "another password").await.leads_to();
    here.get("/").await.ok();
    assert_eq!(
        ask(&app, Method::GET, "/", &there, None, &[]).await.status,
        303
    );
    assert_eq!(
        log_in(&app, "owner@acme.example", PASSWORD).await.status,
        401
    );
    assert_eq!(
        log_in(&app, "owner@acme.example", "another password")
            .await
            .status,
        303
    );
}

#[tokio::test]
async fn sessions_expire_and_end_with_the_membership() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (ann, _) = app.person(&team, "ann@example.com", Role::Member).await;
    let browser = Browser::of(&app, "ann@example.com").await;
    browser.get("/").await.ok();
    app.store()
        .remove_member(team.id, ann, Role::Owner)
        .await
        .unwrap();
    assert!(
        browser
            .get("/")
            .await
            .refused(403)
            .contains("You're not on a team yet")
    );
    app.advance(Duration::from_secs(31 * 24 * 3600)).await;
    assert_eq!(browser.get("/account").await.status, 303);
}

#[tokio::test]
async fn a_user_of_several_teams_switches_between_them() {
    let app = TestApp::start().await;
    let (browser, _) = Browser::owner(&app, "acme").await;
    let other = app.team("other").await;
    let id = other.id.to_string();
    browser
        .post("/account/team", &[("team", &id)])
        .await
        .refused(404);
    let user = app
        .store()
        .user_by_email("owner@acme.example")
        .await
        .unwrap()
        .unwrap()
        .id;
    app.store()
        .add_member(other.id, user, Role::Member, Role::Owner, app.now())
        .await
        .unwrap();
    browser
        .post("/account/team", &[("team", &id)])
        .await
        .leads_to();
    let page = browser.get("/").await.ok();
    assert!(
        page.contains(&format!("<option value=\"{id}\" selected>other</option>")),
        "{page}"
    );
    // The role is that of the selected team.
    browser.get("/settings/api-keys").await.refused(403);
}

#[tokio::test]
async fn failed_attempts_lock_no_one_out() {
    let app = TestApp::with_settings(&[("ERRAND_SERVER__TRUSTED_PROXIES", "127.0.0.1")]).await;
    let (_, _) = Browser::owner(&app, "acme").await;
    let from = async |address: &str, email: &str, password: &str| {
        let body = form(&[("email", email), ("password", password), ("next", "/")]);
        let more = [("x-forwarded-for", address)];
        let sent = ask(&app, Method::POST, "/log-in", "", Some(&body), &more);
        sent.await.status
    };
    for _ in 0..10 {
        from("203.0.113.1", "owner@acme.example", "wrong").await;
    }
    let right = async |address: &str| from(address, "owner@acme.example", PASSWORD).await;
    // Too many attempts from here have failed. The correct password still works, one attempt at a time.
    let (first, second) = tokio::join!(right("203.0.113.1"), right("203.0.113.1"));
    assert_eq!((first.min(second), first.max(second)), (303, 429));
    assert_eq!(right("203.0.113.2").await, 303);
    // The same applies to an address that has failed too often with different accounts.
    for n in 0..20 {
        let email = format!("{n}@x.example");
        from("203.0.113.3", &email, "wrong").await;
    }
    assert_eq!(right("203.0.113.3").await, 303);
}

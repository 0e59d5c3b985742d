//! Members of a team, webhooks, forks and search in the web interface.

use errand_core::role::Role;
use errand_testkit::TestApp;
use http::Method;
use serde_json::json;

use crate::web::{Browser, PASSWORD, ask, between, form};

/// The link that a page shows once.
async fn invited(owner: &Browser<'_>, fields: &[(&str, &str)]) -> String {
    let page = owner
        .post_and_follow("/settings/team/invitations", fields)
        .await;
    let link = between(&page, "id=\"new-link\">", "<").unwrap();
    let (_, path) = link.split_once("/join/").unwrap();
    format!("/join/{path}")
}

#[tokio::test]
async fn a_new_user_joins_by_a_link_that_works_once() {
    let app = TestApp::start().await;
    let (owner, _) = Browser::owner(&app, "acme").await;
    let path = invited(
        &owner,
        &[
            ("role", "member"),
            ("email", "Ben@acme.example"),
            ("days", "7"),
        ],
    )
    .await;
    let page = owner.get("/settings/team").await.ok();
    assert!(
        page.contains("ben@acme.example") && !page.contains(&path),
        "{page}"
    );
    let page = ask(&app, Method::GET, &path, "", None, &[]).await;
    assert_eq!(page.reply.header("referrer-policy"), Some("no-referrer"));
    assert!(page.ok().contains("Join <bdi dir=\"auto\">acme</bdi>"));
    let post = async |password: &str, again: &str| {
        let body = form(&[("email", ""), ("password", password), ("again", again)]);
        ask(&app, Method::POST, &path, "", Some(&body), &[]).await
    };
    assert!(
        post(PASSWORD, "another")
            .await
            .refused(400)
            .contains("do not match")
    );
    let seen = post(PASSWORD, PASSWORD).await;
    let cookie = seen
        .reply
        .header("set-cookie")
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(seen.leads_to(), "/");
    let page = ask(&app, Method::GET, "/account", &cookie, None, &[])
        .await
        .ok();
    assert!(
        page.contains("ben@acme.example") && page.contains("acme</bdi>, as member"),
        "{page}"
    );
    post(PASSWORD, PASSWORD).await.refused(404);
}

#[tokio::test]
async fn an_existing_user_joins_another_team() {
    let app = TestApp::start().await;
    let (owner, _) = Browser::owner(&app, "acme").await;
    let (other, _) = Browser::owner(&app, "other").await;
    let path = invited(&owner, &[("role", "admin")]).await;
    let page = other.get(&path).await.ok();
    assert!(
        page.contains("You are logged in as") && page.contains("owner@other.example"),
        "{page}"
    );
    // Refused without the form's own token.
    let own = [("sec-fetch-site", "same-origin")];
    let seen = ask(&app, Method::POST, &path, &other.cookie, Some(""), &own).await;
    assert_eq!(seen.status, 403);
    assert_eq!(other.post(&path, &[]).await.leads_to(), "/");
    let page = other.get("/account").await.ok();
    assert!(
        page.contains("acme</bdi>, as admin") && page.contains("other</bdi>, as owner"),
        "{page}"
    );
    let taken_back = invited(&owner, &[("role", "member")]).await;
    let page = owner.get("/settings/team").await.ok();
    let delete = page
        .split("action=\"")
        .filter_map(|rest| rest.split_once('"').map(|(path, _)| path))
        .find(|path| path.contains("/invitations/"))
        .unwrap()
        .to_owned();
    owner.post(&delete, &[]).await.leads_to();
    ask(&app, Method::GET, &taken_back, "", None, &[])
        .await
        .refused(404);
}

#[tokio::test]
async fn only_permitted_roles_change_roles_and_remove_members() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let (ann, key) = app.person(&team, "ann@acme.example", Role::Admin).await;
    let (ben, _) = app.person(&team, "ben@acme.example", Role::Member).await;
    let admin = Browser::of(&app, "ann@acme.example").await;
    let member = Browser::of(&app, "ben@acme.example").await;
    // A member sees the team but cannot change it.
    let page = member.get("/settings/team").await.ok();
    assert!(
        page.contains("ann@acme.example") && !page.contains("Invite someone"),
        "{page}"
    );
    member
        .post(&format!("/settings/team/{ann}/remove"), &[])
        .await
        .refused(400);
    member
        .post(&format!("/settings/team/{ann}/role"), &[("role", "member")])
        .await
        .refused(403);
    // An admin cannot create owners.
    admin
        .post(
            &format!("/settings/team/{ben}/role"),
            &[("role", "owner"), ("from", "member")],
        )
        .await
        .refused(400);
    // A selection alone changes nothing; it leads to a confirmation page.
    let role = format!("/settings/team/{ben}/role");
    let to = admin.post(&role, &[("role", "admin")]).await.leads_to();
    assert_eq!(to, format!("{role}?to=admin"));
    let page = admin.get(&to).await.ok();
    assert!(page.contains("Change the role of"), "{page}");
    let stale = [("role", "admin"), ("from", "owner")];
    assert_eq!(admin.post(&role, &stale).await.leads_to(), to);
    let (still, _) = app.store().member(team.id, ben).await.unwrap();
    assert_eq!(still.role, Role::Member);
    let confirmed = [("role", "admin"), ("from", "member")];
    let done = admin.post(&role, &confirmed).await.leads_to();
    assert_eq!(done, "/settings/team");
    let (changed, _) = app.store().member(team.id, ben).await.unwrap();
    assert_eq!(changed.role, Role::Admin);
    // The last owner keeps their role.
    let page = owner
        .post(
            &format!("/settings/team/{}/role", team.owner),
            &[("role", "member"), ("from", "owner")],
        )
        .await
        .refused(400);
    assert!(page.contains("last owner"), "{page}");
    // The confirmation page of a removal lists the member's keys.
    let page = owner
        .get(&format!("/settings/team/{ann}/remove"))
        .await
        .ok();
    assert!(
        page.contains("Keys that will stop working") && page.contains("test"),
        "{page}"
    );
    owner
        .post(&format!("/settings/team/{ann}/remove"), &[])
        .await
        .leads_to();
    assert_eq!(app.get(&key, "/v1/runs").await.status, 401);
    admin.get("/").await.refused(403);
}

#[tokio::test]
async fn a_webhook_is_created_tested_edited_and_deleted() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    let page = owner
        .post("/webhooks", &[("url", "ftp://x"), ("event", "run_failed")])
        .await
        .refused(400);
    assert!(page.contains("value=\"ftp://x\""), "{page}");
    let page = owner
        .post("/webhooks", &[("url", "http://127.0.0.1:1/x")])
        .await
        .refused(400);
    assert!(page.contains("Choose at least one event"), "{page}");
    let sent = [
        ("url", "http://127.0.0.1:1/hook?token=secret"),
        ("event", "run_failed"),
        ("event", "human_request"),
        ("enabled", "on"),
        ("description", "For the shop"),
    ];
    let address = owner.post("/webhooks", &sent).await.leads_to();
    let page = owner.get("/webhooks").await.ok();
    assert!(
        page.contains("For the shop") && page.contains("token=secret") && page.contains("whsec_"),
        "{page}"
    );
    let page = member.get("/webhooks").await.ok();
    assert!(
        !page.contains("token=secret") && !page.contains("whsec_"),
        "{page}"
    );
    assert!(!member.get(&address).await.ok().contains("token=secret"));
    member.post(&address, &sent).await.refused(403);
    owner.post(&format!("{address}/test"), &[]).await.leads_to();
    let page = owner.get(&address).await.ok();
    assert!(page.contains("webhook_test"), "{page}");
    let resend = page
        .split("action=\"")
        .filter_map(|rest| rest.split_once('"').map(|(path, _)| path))
        .find(|path| path.ends_with("/resend"))
        .unwrap()
        .to_owned();
    assert_eq!(owner.post(&resend, &[]).await.leads_to(), address);
    let sent = [("url", "http://127.0.0.1:1/hook"), ("event", "run_failed")];
    owner.post(&address, &sent).await.leads_to();
    assert!(owner.get(&address).await.ok().contains("disabled"));
    assert_eq!(
        owner.post("/webhooks/secret", &[]).await.leads_to(),
        "/webhooks?rolled=1"
    );
    assert!(
        owner
            .get("/webhooks?rolled=1")
            .await
            .ok()
            .contains("stays valid")
    );
    owner
        .post(&format!("{address}/delete"), &[])
        .await
        .leads_to();
    owner.get(&address).await.refused(404);
}

#[tokio::test]
async fn a_run_is_forked_from_a_message_and_found_by_title() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let agent = app
        .playbook(
            &team,
            json!([{"say": "Hello"}, {"approve": {"title": "Go on?"}, "as": "a"}, {"finish": "x"}]),
        )
        .await;
    let run = app
        .run(
            &team,
            json!({"agent_id": agent, "message": "The order of Friday"}),
        )
        .await;
    app.settle().await;
    let page = owner.get(&format!("/runs/{run}")).await.ok();
    let to_fork = between(&page, "href=\"/runs/", "/fork?").map(|_| ());
    assert!(to_fork.is_some(), "{page}");
    let message = between(&page, "after_message=", "&amp;").unwrap();
    let at = between(&page, &format!("after_message={message}&amp;at="), "\"").unwrap();
    let to_fork = format!("/runs/{run}/fork");
    let asked = owner
        .get(&format!("{to_fork}?after_message={message}&at={at}"))
        .await
        .ok();
    assert!(
        asked.contains("The order of Friday") && asked.contains("Build 1: first (this run's)"),
        "{asked}"
    );
    let fork = owner
        .post(&to_fork, &[("after_message", message)])
        .await
        .leads_to();
    assert_ne!(fork, format!("/runs/{run}"));
    app.settle().await;
    assert!(owner.get(&fork).await.ok().contains("Go on?"));
    // With another build of the assignment, and with a message.
    let build = json!({"name": "second", "config": {"version": "v2", "data": {"playbook": {"steps": [{"finish": "Heard: {{ message }}"}]}}}});
    let build = app
        .post(&team.key, &format!("/v1/agents/{agent}/builds"), build)
        .await
        .expect(201);
    let build = build["build"]["id"].as_str().unwrap();
    let sent = [
        ("after_message", message),
        ("build", build),
        ("message", "Once more"),
        ("no_files", "on"),
    ];
    let fork = owner.post(&to_fork, &sent).await.leads_to();
    app.settle().await;
    let page = owner.get(&fork).await.ok();
    assert!(
        page.contains("Heard: Once more") && page.contains("build 2"),
        "{page}"
    );
    // The page reports invalid input, and keeps what was sent.
    let wrong = [("after_message", "x"), ("message", "kept")];
    let page = owner.post(&to_fork, &wrong).await.refused(400);
    assert!(page.contains(">kept</textarea>"), "{page}");
    assert!(
        owner
            .get("/runs?q=order+of")
            .await
            .ok()
            .contains("The order of Friday")
    );
    assert!(
        owner
            .get("/runs?q=nothing")
            .await
            .ok()
            .contains("No runs match these filters")
    );
}

//! Connections and secrets in the web interface.

use errand_core::role::Role;
use errand_testkit::{TestApp, TestOptions};
use serde_json::json;

use crate::connections::options;
use crate::connections_sign_in::Protected;
use crate::web::{Browser, between};

#[tokio::test]
async fn a_secret_is_set_replaced_and_never_shown() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    let value = "a value that nobody sees";
    let page = owner
        .post("/settings/secrets", &[("name", "1x"), ("value", value)])
        .await
        .refused(400);
    assert!(
        page.contains("must not begin with a digit") && !page.contains(value),
        "{page}"
    );
    let page = owner
        .post(
            "/settings/secrets",
            &[("name", "TOKEN"), ("value", "short")],
        )
        .await
        .refused(400);
    assert!(
        page.contains("at least 12 characters") && !page.contains("short\""),
        "{page}"
    );
    owner
        .post("/settings/secrets", &[("name", "TOKEN"), ("value", value)])
        .await
        .leads_to();
    let page = owner.get("/settings/secrets").await.ok();
    assert!(page.contains("TOKEN") && !page.contains(value), "{page}");
    member.get("/settings/secrets").await.refused(403);
    owner
        .post("/settings/secrets/delete", &[("name", "TOKEN")])
        .await
        .leads_to();
    assert!(
        owner
            .get("/settings/secrets")
            .await
            .ok()
            .contains("No secrets yet")
    );
}

#[tokio::test]
async fn a_connection_is_added_probed_used_edited_and_removed() {
    let app = TestApp::start_with(TestOptions {
        settings: vec![(
            "ERRAND_CONNECTIONS__ALLOW_PRIVATE_NETWORKS",
            "true".to_owned(),
        )],
        ..TestOptions::default()
    })
    .await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    let url = ("url", "http://127.0.0.1:1/mcp");
    let page = owner
        .post("/connections", &[("name", "Mail!"), ("kind", "http"), url])
        .await
        .refused(400);
    assert!(
        page.contains("lowercase letters") && page.contains("value=\"Mail!\""),
        "{page}"
    );
    let page = owner
        .post(
            "/connections",
            &[
                ("name", "mail"),
                ("kind", "http"),
                url,
                ("values", "Authorization: {{ secret.NONE }}"),
            ],
        )
        .await
        .refused(400);
    assert!(page.contains("the secret NONE does not exist"), "{page}");
    let address = owner
        .post(
            "/connections",
            &[
                ("name", "mail"),
                ("kind", "http"),
                url,
                ("values", "X-Who: errand"),
                ("floor", "ask"),
            ],
        )
        .await
        .leads_to();
    let id = address.trim_start_matches("/connections/").to_owned();
    let made = app
        .get(&team.key, &format!("/v1/connections/{id}"))
        .await
        .expect(200);
    assert_eq!(made["connection"]["floors"], json!({"*": "ask"}));
    assert_eq!(
        made["connection"]["transport"]["headers"],
        json!({"X-Who": "errand"})
    );
    // Nothing listens there, and the page says so.
    let page = owner.post(&format!("{address}/probe"), &[]).await.ok();
    assert!(page.contains("Could not reach the server:"), "{page}");
    // An assignment with the connection.
    let sent = [
        ("name", "Mails"),
        ("playbook", "steps:\n- finish: x\n"),
        ("connection", id.as_str()),
        ("people", "on"),
    ];
    let agent = owner.post("/assignments/new", &sent).await.leads_to();
    assert!(owner.get(&address).await.ok().contains("Mails"));
    assert!(
        owner
            .get(&format!("{agent}/edit"))
            .await
            .ok()
            .contains(&format!("value=\"{id}\" checked"))
    );
    // A member can look but cannot change anything.
    assert!(!member.get(&address).await.ok().contains("<h2>Edit</h2>"));
    member
        .post(&format!("{address}/delete"), &[])
        .await
        .refused(403);
    owner
        .post(&address, &[("kind", "http"), url, ("trusted", "on")])
        .await
        .leads_to();
    let made = app
        .get(&team.key, &format!("/v1/connections/{id}"))
        .await
        .expect(200);
    assert_eq!(
        (
            &made["connection"]["floors"],
            &made["connection"]["trusted"]
        ),
        (&json!({}), &json!(true))
    );
    owner
        .post(&format!("{address}/delete"), &[])
        .await
        .leads_to();
    owner.get(&address).await.refused(404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_in_connection_offers_its_tools_in_the_editor() {
    let protected = Protected::start(true).await;
    let server = &protected.server;
    let app = TestApp::start_with(options(None)).await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    app.person(&team, "ben@acme.example", Role::Member).await;
    let member = Browser::of(&app, "ben@acme.example").await;
    let url = format!("{}/mcp", server.uri());
    let sent = [
        ("name", "kept"),
        ("kind", "http"),
        ("url", url.as_str()),
        ("floor", "ask"),
    ];
    let address = owner.post("/connections", &sent).await.leads_to();
    let sign_in = format!("{address}/sign-in");
    assert!(!member.get(&address).await.ok().contains("/sign-in"));
    member.post(&sign_in, &[]).await.refused(403);
    let page = owner.post(&sign_in, &[]).await.ok();
    let link = between(&page, "id=\"sign-in\" href=\"", "\"").unwrap();
    let link = link.replace("&amp;", "&");
    assert!(
        link.starts_with(&format!("{}/authorize?", server.uri())),
        "{link}"
    );
    let link = url::Url::parse(&link).unwrap();
    let of = |name: &str| {
        let mut pairs = link.query_pairs();
        pairs.find(|(known, _)| known == name).unwrap().1
    };
    let back = url::Url::parse(&of("redirect_uri")).unwrap();
    // A person who declines gets a page that says so.
    let refused = owner
        .get(&format!("{}?error=access_denied", back.path()))
        .await
        .refused(400);
    assert!(refused.contains("Access was not granted"), "{refused}");
    let done = format!("{}?code=c&state={}", back.path(), of("state"));
    let done = owner.get(&done).await.ok();
    assert!(
        done.contains("Signed in") && done.contains("href=\"/connections\""),
        "{done}"
    );
    owner
        .post(&format!("{address}/probe"), &[])
        .await
        .leads_to();
    let page = owner.get(&address).await.ok();
    assert!(
        page.contains("kept__look") && page.contains("Sign in again"),
        "{page}"
    );
    owner
        .post(&format!("{address}/sign-out"), &[])
        .await
        .leads_to();
    let page = owner.get(&address).await.ok();
    assert!(
        !page.contains("Sign in again") && !page.contains("Sign out"),
        "{page}"
    );
    let editor = owner.get("/assignments/new").await.ok();
    let row = between(&editor, "<span class=\"mono\">kept__look</span>", "</tr>").unwrap();
    assert!(
        row.contains("default") && row.contains("state ask") && row.contains("tool.kept__look"),
        "{row}"
    );
    // The server has no sign-in, and the page says so.
    let sent = [
        ("name", "none"),
        ("kind", "http"),
        ("url", "http://127.0.0.1:1/mcp"),
    ];
    let other = owner.post("/connections", &sent).await.leads_to();
    let page = owner.post(&format!("{other}/sign-in"), &[]).await.ok();
    assert!(page.contains("cannot be started"), "{page}");
}

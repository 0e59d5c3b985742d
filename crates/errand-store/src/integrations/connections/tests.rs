use serde_json::json;

use super::*;
use crate::accounts::fixture::Fixture;

fn http(url: &str) -> Setup {
    Setup::Http {
        url: url.to_owned(),
        headers: BTreeMap::from([("authorization".to_owned(), "{{ secret.T }}".to_owned())]),
        client: None,
    }
}

async fn made(f: &Fixture, name: &str) -> Result<Connection> {
    let new = NewConnection {
        id: f.ids.connection(f.now),
        team: f.team,
        name: name.to_owned(),
        setup: http("https://a.test/mcp"),
        floors: Floors::from([
            ("*".to_owned(), Policy::Guard),
            ("mail__x".to_owned(), Policy::Deny),
        ]),
        trusted: false,
        settings: ToolSettingsByName::new(),
        by: f.owner,
        now: f.now,
    };
    f.store
        .create_connection(new, Idempotent::not_recorded())
        .await?
        .executed()
}

fn tool() -> ProbedTool {
    serde_json::from_value(json!({
        "name": "mail__x", "server_name": "x", "input_schema": {"type": "object"}, "hints": {"read_only": true}
    }))
    .unwrap()
}

#[tokio::test]
async fn a_connection_is_its_teams_and_its_name_is_taken_once() {
    let f = Fixture::new().await;
    let mail = made(&f, "mail").await.unwrap();
    assert!(matches!(
        made(&f, "mail").await,
        Err(StoreError::Conflict(_))
    ));
    assert_eq!(f.store.connection(f.team, mail.id).await.unwrap(), mail);
    assert!(matches!(
        f.store.connection(f.other_team, mail.id).await,
        Err(StoreError::NotFound)
    ));
    assert_eq!(mail.floor("mail__x"), Policy::Deny);
    assert_eq!(mail.floor("mail__y"), Policy::Guard);
    let once = Idempotent::not_recorded();
    f.store
        .delete_connection(f.team, mail.id, f.now, once)
        .await
        .unwrap();
    let gone = vec![mail.id];
    assert!(
        f.store
            .connections_of(f.team, gone)
            .await
            .unwrap()
            .is_empty()
    );
    made(&f, "mail").await.unwrap();
}

#[tokio::test]
async fn what_leads_elsewhere_forgets_tools_and_sign_in() {
    let f = Fixture::new().await;
    let mail = made(&f, "mail").await.unwrap();
    let set = |seen| {
        f.store
            .set_tools(f.team, mail.id, vec![tool()], seen, f.now)
    };
    assert!(set(mail.updated_at).await.unwrap());
    let keep = |url: &str, renews: bool| {
        let made_for = MadeFor {
            url: url.to_owned(),
            renews,
        };
        let (token, issuer) = (b"token".to_vec(), "https://i.test".to_owned());
        f.store
            .set_sign_in(f.team, mail.id, made_for, Some(token), Some(issuer))
    };
    let Setup::Http { url, .. } = mail.setup.clone() else {
        panic!("a server at an address");
    };
    let nothing_to_renew = keep(&url, true).await;
    assert!(matches!(nothing_to_renew, Err(StoreError::NotFound)));
    keep(&url, false).await.unwrap();
    keep(&url, true).await.unwrap();
    let change = |change: ConnectionChange| {
        f.store
            .change_connection(f.team, mail.id, change, f.now, Idempotent::not_recorded())
    };
    // Another floor does not change the settings.
    let said = ToolSettings {
        trusted: Some(true),
        open_world: None,
    };
    let floors = ConnectionChange {
        floors: Some(Floors::new()),
        trusted: Some(true),
        settings: Some(ToolSettingsByName::from([("mail__x".to_owned(), said)])),
        ..ConnectionChange::default()
    };
    let changed = change(floors).await.unwrap().executed().unwrap();
    assert_eq!(changed.tools.as_deref(), Some(&[tool()][..]));
    assert!(changed.updated_at > mail.updated_at);
    assert_eq!(changed.settings_of("mail__x"), said);
    let sign_in = f.store.sign_in(f.team, mail.id).await.unwrap();
    assert_eq!(sign_in.as_deref(), Some(&b"token"[..]));
    let moved = ConnectionChange {
        setup: Some(http("https://b.test/mcp")),
        ..ConnectionChange::default()
    };
    let moved = change(moved).await.unwrap().executed().unwrap();
    assert_eq!((moved.tools, moved.signed_in_at), (None, None));
    // Settings for the tools of one server do not apply to another server.
    assert_eq!((moved.settings.len(), moved.trusted), (0, false));
    assert_eq!(f.store.sign_in(f.team, mail.id).await.unwrap(), None);
    // Tokens of the previous server are never stored for the new one.
    for renews in [false, true] {
        let late = keep(&url, renews).await;
        assert!(matches!(late, Err(StoreError::NotFound)));
    }
    assert_eq!(f.store.sign_in(f.team, mail.id).await.unwrap(), None);
    // A probe of the old setup is too late.
    assert!(!set(mail.updated_at).await.unwrap());
}

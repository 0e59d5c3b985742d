//! Teams and users, managed by operators (with the admin requests of the command line) and by owners (on pages).

use errand::admin::{Admin, AdminAnswer, AdminError, AdminRequest, TeamLine, UserLine};
use errand_core::role::Role;
use errand_testkit::TestApp;
use futures::StreamExt as _;
use http::Method;
use serde_json::json;

use crate::api_events::open;
use crate::api_runs::waiting;
use crate::web::{Browser, PASSWORD, ask, log_in};

fn admin(app: &TestApp) -> Admin {
    let store = app.store().clone();
    Admin::new(store, [9; 32], app.clock().clone(), app.url().to_owned())
}

fn refused(result: Result<AdminAnswer, AdminError>) -> String {
    match result {
        Ok(_) => panic!("refused"),
        Err(error) => error.to_string(),
    }
}

async fn teams(admin: &Admin) -> Vec<TeamLine> {
    let Ok(AdminAnswer::Teams { teams }) = admin.execute(AdminRequest::ListTeams).await else {
        panic!("teams")
    };
    teams
}

async fn users(admin: &Admin, team: Option<&str>) -> Vec<UserLine> {
    let team = team.map(str::to_owned);
    let request = AdminRequest::ListUsers { team, offset: 0 };
    let Ok(AdminAnswer::Users { users, more: false }) = admin.execute(request).await else {
        panic!("users")
    };
    users
}

fn disable(user: &str) -> AdminRequest {
    AdminRequest::DisableUser {
        user: user.to_owned(),
    }
}

#[tokio::test]
async fn a_second_team_has_its_own_owner_and_keys() {
    let app = TestApp::start().await;
    let first = app.team("acme").await;
    let admin = admin(&app);
    let create = |name: &str| AdminRequest::CreateTeam {
        name: name.to_owned(),
        owner: Some("cleo@beta.example".to_owned()),
    };
    let Ok(AdminAnswer::TeamMade { team, link }) = admin.execute(create("beta")).await else {
        panic!("a team")
    };
    assert_eq!(team.owners, [Some("cleo@beta.example".to_owned())]);
    let path = link.unwrap().url.replace(app.url(), "");
    let page = ask(&app, Method::GET, &path, "", None, &[]).await.ok();
    assert!(page.contains("cleo@beta.example"), "{page}");
    assert!(
        refused(admin.execute(create("beta")).await).contains("the name \"beta\" already exists")
    );
    assert!(refused(admin.execute(create(" \n")).await).contains("1 to 200 characters"));
    assert_eq!(users(&admin, None).await.len(), 2, "a refusal makes nobody");

    // By name and by ID.
    for named in ["beta", team.id.as_str()] {
        let request = AdminRequest::CreateKey {
            name: "ci".to_owned(),
            expires_in_ms: None,
            team: Some(named.to_owned()),
        };
        let Ok(AdminAnswer::Key { secret, .. }) = admin.execute(request).await else {
            panic!("a key")
        };
        let seen = app.get(&secret, "/v1/team").await.expect(200);
        assert_eq!(seen["team"]["id"], team.id);
        assert_eq!(seen["member"]["email"], "cleo@beta.example");
    }
    let unknown = AdminRequest::ListKeys {
        team: Some("gamma".to_owned()),
    };
    assert!(refused(admin.execute(unknown).await).contains("errand teams list"));

    // A user of another team joins, and switches teams on the pages.
    let link = AdminRequest::LinkUser {
        email: "owner@acme.example".to_owned(),
        role: Some(Role::Admin),
        team: Some("beta".to_owned()),
    };
    admin.execute(link.clone()).await.unwrap();
    let again = refused(admin.execute(link).await);
    assert!(again.contains("errand users role"), "{again}");
    let owner = Browser::of(&app, "owner@acme.example").await;
    owner
        .post("/account/team", &[("team", &team.id)])
        .await
        .leads_to();
    let page = owner.get("/settings/team").await.ok();
    assert!(page.contains("cleo@beta.example") && !page.contains("action=\"/settings/team/name\""));

    let rename = |team: &str, name: &str| AdminRequest::RenameTeam {
        team: team.to_owned(),
        name: name.to_owned(),
    };
    assert!(refused(admin.execute(rename("beta", "acme")).await).contains("already"));
    admin.execute(rename("beta", "Beta GmbH")).await.unwrap();
    let names: Vec<String> = teams(&admin).await.into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["acme", "Beta GmbH"]);
    let seen = app.get(&first.key, "/v1/team").await.expect(200);
    assert_eq!(seen["team"]["name"], "acme");
    app.finish().await;
}

#[tokio::test]
async fn disabling_a_user_ends_their_sessions_keys_and_streams() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (_, key) = app.person(&team, "ann@acme.example", Role::Admin).await;
    let (run, _) = waiting(&app, &team).await;
    let admin = admin(&app);
    let ann = Browser::of(&app, "ann@acme.example").await;
    app.post(&key, "/v1/invitations", json!({}))
        .await
        .expect(201);
    let stream = open(&app, &key, &run, None).await;
    let request = http::Request::builder()
        .uri(format!("/runs/{run}/live?after=0&request="))
        .header("cookie", &ann.cookie)
        .body(axum::body::Body::empty())
        .unwrap();
    let live = tower::ServiceExt::oneshot(app.app().router(), request)
        .await
        .unwrap();
    assert_eq!(live.status(), 200);
    let mut live = live.into_body().into_data_stream();

    let Ok(AdminAnswer::UserDisabled {
        user,
        sessions,
        api_keys,
    }) = admin.execute(disable("Ann@acme.example")).await
    else {
        panic!("disabled")
    };
    assert_eq!((user.disabled, sessions, api_keys), (true, 1, 1));
    // Each of these ends by itself; if one does not, the test hangs.
    stream.rest().await;
    while let Some(part) = live.next().await {
        part.unwrap();
    }
    app.get(&key, "/v1/runs").await.error(401);
    assert!(ann.get("/").await.leads_to().starts_with("/log-in"));
    assert_ne!(log_in(&app, "ann@acme.example", PASSWORD).await.status, 303);
    let invitations = app.get(&team.key, "/v1/invitations").await.expect(200);
    assert_eq!(invitations["total"], 0);

    let enable = AdminRequest::EnableUser {
        user: user.id.clone(),
    };
    let Ok(AdminAnswer::UserEnabled {
        was_disabled: true, ..
    }) = admin.execute(enable).await
    else {
        panic!("enabled")
    };
    // The keys work again, as the command says; the earlier session does not.
    app.get(&key, "/v1/runs").await.expect(200);
    assert!(ann.get("/").await.leads_to().starts_with("/log-in"));
    assert_eq!(log_in(&app, "ann@acme.example", PASSWORD).await.status, 303);
    app.finish().await;
}

#[tokio::test]
async fn the_last_owner_can_neither_be_disabled_nor_removed() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let admin = admin(&app);
    let owner = "owner@acme.example".to_owned();
    let requests = [
        disable(&owner),
        AdminRequest::RemoveUser {
            user: owner.clone(),
            team: None,
        },
        AdminRequest::SetUserRole {
            user: owner.clone(),
            role: Role::Member,
            team: None,
        },
    ];
    for request in requests.clone() {
        let why = refused(admin.execute(request).await);
        assert!(
            why.contains("last owner") && why.contains("\"acme\""),
            "{why}"
        );
    }
    app.person(&team, "ann@acme.example", Role::Admin).await;
    let promote = AdminRequest::SetUserRole {
        user: "ann@acme.example".to_owned(),
        role: Role::Owner,
        team: Some("acme".to_owned()),
    };
    admin.execute(promote).await.unwrap();
    admin.execute(requests[1].clone()).await.unwrap();
    app.get(&team.key, "/v1/runs").await.error(401);
    let listed = users(&admin, Some("acme")).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].teams[0].role, Role::Owner);
    let nobody = refused(admin.execute(requests[1].clone()).await);
    assert!(nobody.contains("not a member of any team"), "{nobody}");
    assert!(refused(admin.execute(disable("eve@x.example")).await).contains("errand users list"));
    app.finish().await;
}

#[tokio::test]
async fn an_owner_disables_only_users_whose_teams_they_all_own() {
    let app = TestApp::start().await;
    let (owner, team) = Browser::owner(&app, "acme").await;
    let other = app.team("beta").await;
    let (ben, ben_key) = app.person(&team, "ben@acme.example", Role::Member).await;
    let (ann, _) = app.person(&team, "ann@acme.example", Role::Admin).await;
    let a = Browser::of(&app, "ann@acme.example").await;
    let rename = [("name", "Acme Ltd")];
    a.post("/settings/team/name", &rename).await.refused(403);
    assert!(!a.get("/settings/team").await.ok().contains("/access"));
    a.get(&format!("/settings/team/{ben}/access"))
        .await
        .refused(403);
    a.post(
        &format!("/settings/team/{ben}/access"),
        &[("disabled", "yes")],
    )
    .await
    .refused(403);

    owner.post("/settings/team/name", &rename).await.leads_to();
    assert!(
        owner
            .get("/settings/team")
            .await
            .ok()
            .contains("value=\"Acme Ltd\"")
    );
    let taken = owner.post("/settings/team/name", &[("name", "beta")]).await;
    assert!(taken.refused(409).contains("already"));

    let page = owner
        .get(&format!("/settings/team/{ben}/access"))
        .await
        .ok();
    assert!(
        page.contains("1 API key") && page.contains("Disable"),
        "{page}"
    );
    let path = format!("/settings/team/{ben}/access");
    owner.post(&path, &[("disabled", "yes")]).await.leads_to();
    app.get(&ben_key, "/v1/runs").await.error(401);
    assert!(owner.get(&path).await.ok().contains("Enable"));
    owner.post(&path, &[("disabled", "no")]).await.leads_to();
    app.get(&ben_key, "/v1/runs").await.expect(200);

    // An owner can disable neither a user who is also in another team, nor themselves.
    app.store()
        .add_member(other.id, ann, Role::Member, Role::Owner, app.now())
        .await
        .unwrap();
    for user in [ann, team.owner] {
        owner
            .post(
                &format!("/settings/team/{user}/access"),
                &[("disabled", "yes")],
            )
            .await
            .refused(403);
    }
    // Nor a user who is only in another team.
    owner
        .post(
            &format!("/settings/team/{}/access", other.owner),
            &[("disabled", "yes")],
        )
        .await
        .refused(404);
    let listed = users(&admin(&app), None).await;
    assert!(
        listed.iter().all(|user| !user.disabled),
        "{}",
        json!(listed)
    );
    app.finish().await;
}

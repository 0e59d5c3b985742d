//! The set-up page, on a real store.

use axum::body::Body;
use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use errand_store::seal::MasterKey;
use errand_store::{Bootstrap, OpenOptions};
use http::{Request, header};
use http_body_util::BodyExt as _;
use tempfile::TempDir;
use tower::ServiceExt as _;

use super::*;

struct Fixture {
    store: Store,
    clock: Clock,
    router: Router,
    token: SetUpToken,
    _dir: TempDir,
}

/// A store whose first owner has a set-up link for an hour.
async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let (ids, now) = (
        IdGen::new([1; 32]),
        Timestamp::from_millis(1_800_000_000_000),
    );
    let options = OpenOptions {
        dir: dir.path().to_owned(),
        boot: ids.boot(now),
        respond_base: String::new(),
        master_key: MasterKey::from_bytes([7; 32]),
        readers: 1,
        cache_kib: 2048,
    };
    let store = Store::open(options).unwrap();
    let (team, owner) = (ids.team(now), ids.user(now));
    store
        .bootstrap(Bootstrap {
            team,
            owner,
            secret: "whsec_".to_owned(),
            now,
        })
        .await
        .unwrap();
    let token = SetUpToken::generate().unwrap();
    store
        .create_set_up_link(owner, token.hash(), now.plus_ms(3_600_000), now)
        .await
        .unwrap();
    let clock = Clock::manual(now);
    let router = pages(store.clone(), clock.clone());
    Fixture {
        store,
        clock,
        router,
        token,
        _dir: dir,
    }
}

impl Fixture {
    async fn send(&self, token: &str, form: Option<&str>) -> (StatusCode, http::HeaderMap, String) {
        let request = Request::builder().uri(format!("/set-up/{token}"));
        let request = match form {
            None => request.body(Body::empty()),
            Some(form) => request
                .method("POST")
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Body::from(form.to_owned())),
        };
        let (parts, body) = self
            .router
            .clone()
            .oneshot(request.unwrap())
            .await
            .unwrap()
            .into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            parts.status,
            parts.headers,
            String::from_utf8(bytes.to_vec()).unwrap(),
        )
    }
}

#[tokio::test]
async fn a_link_is_claimed_once() {
    let at = fixture().await;
    let (status, _, page) = at.send(at.token.expose(), None).await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        page.contains("name=\"email\"") && page.contains("name=\"again\""),
        "{page}"
    );

    let form = "email=Ann%40Example.com&password=correct+horse+battery&again=correct+horse+battery";
    let (status, _, page) = at.send(at.token.expose(), Some(form)).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    let ann = at
        .store
        .user_by_email("ann@example.com")
        .await
        .unwrap()
        .unwrap();
    assert!(
        at.store
            .password_hash(ann.id)
            .await
            .unwrap()
            .unwrap()
            .starts_with("$argon2id$")
    );

    assert_eq!(
        at.send(at.token.expose(), None).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        at.send(at.token.expose(), Some(form)).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_link_goes_on_working() {
    let at = fixture().await;
    for (form, wrong) in [
        (
            "email=a%40b.c&password=correct+horse+battery&again=other+horse+battery",
            "The two passwords differ.",
        ),
        (
            "email=a%40b.c&password=short&again=short",
            "The password has 5 characters; it takes at least 12.",
        ),
        (
            "password=correct+horse+battery&again=correct+horse+battery",
            "give one.",
        ),
        (
            "email=%3Cb%3E&password=correct+horse+battery&again=correct+horse+battery",
            "It takes an e-mail address",
        ),
        ("email=a", "did not arrive whole"),
    ] {
        let (status, _, page) = at.send(at.token.expose(), Some(form)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{form}");
        assert!(page.contains(wrong), "{wrong}: {page}");
        assert!(!page.contains("<b>"), "what was typed is text: {page}");
    }
    assert_eq!(at.send(at.token.expose(), None).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_link_that_does_not_work_tells_nothing() {
    let at = fixture().await;
    let unknown = SetUpToken::generate().unwrap();
    let (status, _, page) = at.send(unknown.expose(), None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(at.send("x", None).await.2, page);
    at.clock.advance(std::time::Duration::from_secs(3_600));
    assert_eq!(at.send(at.token.expose(), None).await.2, page, "expired");
}

#[tokio::test]
async fn a_page_is_neither_stored_nor_framed_nor_scripted() {
    let at = fixture().await;
    let (_, headers, page) = at.send(at.token.expose(), None).await;
    let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
    assert!(
        policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    let style = page
        .split_once("<style>")
        .unwrap()
        .1
        .split_once("</style>")
        .unwrap()
        .0;
    let digest = STANDARD.encode(Sha256::digest(style.as_bytes()));
    assert!(
        policy.contains(&format!("'sha256-{digest}'")),
        "the style is the one that the policy allows"
    );
    assert_eq!(headers[header::REFERRER_POLICY], "no-referrer");
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    assert!(!page.contains("<script"), "{page}");
}

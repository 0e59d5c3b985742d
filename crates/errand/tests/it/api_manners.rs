//! HTTP details: CORS, compression, validators, the host, malformed IDs, compressed bodies.

use std::io::Read as _;

use axum::body::Body;
use errand::api::{Access, ROUTES};
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::json;

const ORIGIN: &str = "https://app.example.com";

fn with(settings: Vec<(&'static str, &str)>) -> TestOptions {
    TestOptions {
        settings: settings
            .into_iter()
            .map(|(name, value)| (name, value.to_owned()))
            .collect(),
        ..TestOptions::default()
    }
}

async fn preflight(app: &TestApp, path: &str, origin: &str) -> Reply {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    app.send(Method::OPTIONS, path, &headers, Body::empty())
        .await
}

/// The lines of `vary`.
fn varies(reply: &Reply) -> Vec<&str> {
    let lines = reply.headers.get_all("vary").iter();
    lines.map(|line| line.to_str().unwrap()).collect()
}

#[tokio::test]
async fn a_response_says_in_one_line_what_it_depends_on() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let bearer = format!("Bearer {}", team.key);
    let headers = [("authorization", bearer.as_str())];
    for (path, expected) in [
        ("/v1/agents", None),
        ("/v1/documentation/json", Some("accept-encoding")),
        // CSV for who accepts nothing else.
        ("/v1/usage", Some("accept")),
        ("/v1/usage?format=csv", None),
        // An error as a page, or as JSON.
        ("/nowhere", Some("accept")),
        ("/v1/nowhere", None),
    ] {
        let reply = app.send(Method::GET, path, &headers, Body::empty()).await;
        assert_eq!(varies(&reply), Vec::from_iter(expected), "{path}");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_allowed_origin_may_call_and_upload_and_others_may_not() {
    let app = TestApp::start_with(with(vec![
        (
            "ERRAND_API__ALLOWED_ORIGINS",
            "https://app.example.com, http://localhost:5173",
        ),
        ("ERRAND_RATE_LIMIT__FAILED_AUTHENTICATIONS_PER_MINUTE", "3"),
        ("ERRAND_RATE_LIMIT__REQUESTS_PER_MINUTE", "3"),
    ]))
    .await;
    let team = app.team("acme").await;
    // More than any limit permits.
    for path in ["/v1/runs", "/v1/uploads/token", "/v1/no-such-thing"] {
        for _ in 0..5 {
            let reply = preflight(&app, path, ORIGIN).await;
            assert_eq!(reply.status, 204, "{path}");
            assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN));
            assert!(
                reply
                    .header("access-control-allow-methods")
                    .unwrap()
                    .contains("PUT")
            );
            assert!(
                reply
                    .header("access-control-allow-headers")
                    .unwrap()
                    .contains("idempotency-key")
            );
            assert!(reply.header("x-ratelimit-limit").is_none());
        }
    }
    for _ in 0..5 {
        let reply = preflight(&app, "/v1/runs", "https://evil.example").await;
        assert_eq!(reply.error(403).0, "forbidden");
        assert!(reply.header("access-control-allow-origin").is_none());
    }
    let bearer = format!("Bearer {}", team.key);
    for (origin, allowed) in [(ORIGIN, Some(ORIGIN)), ("https://evil.example", None)] {
        let headers = [("authorization", bearer.as_str()), ("origin", origin)];
        let reply = app
            .send(Method::GET, "/v1/runs", &headers, Body::empty())
            .await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("access-control-allow-origin"), allowed);
        assert_eq!(varies(&reply), ["origin"]);
        let path = "/v1/documentation/json";
        let reply = app.send(Method::GET, path, &headers, Body::empty()).await;
        assert_eq!(varies(&reply), ["origin, accept-encoding"]);
        assert!(reply.header("access-control-allow-credentials").is_none());
    }
    // Browsers can read errors, too.
    let headers = [("origin", ORIGIN)];
    let reply = app
        .send(Method::GET, "/v1/runs", &headers, Body::empty())
        .await;
    reply.error(401);
    assert_eq!(reply.header("access-control-allow-origin"), Some(ORIGIN));
    assert!(
        reply
            .header("access-control-expose-headers")
            .unwrap()
            .contains("retry-after")
    );
    app.finish().await;
}

#[tokio::test]
async fn without_the_setting_no_origin_is_allowed() {
    let limit = ("ERRAND_RATE_LIMIT__FAILED_AUTHENTICATIONS_PER_MINUTE", "3");
    let app = TestApp::start_with(with(vec![limit])).await;
    for _ in 0..5 {
        let reply = preflight(&app, "/v1/runs", ORIGIN).await;
        reply.error(401);
        assert!(reply.header("access-control-allow-origin").is_none());
    }
    // A wrong key counts with any method.
    let headers = [("authorization", "Bearer dv_wrong")];
    let mut last = 0;
    for _ in 0..5 {
        last = app
            .send(Method::OPTIONS, "/v1/runs", &headers, Body::empty())
            .await
            .status;
    }
    assert_eq!(last, 429);
    app.finish().await;
}

fn plain(reply: &Reply) -> Vec<u8> {
    let mut bytes = Vec::new();
    match reply.header("content-encoding") {
        Some("gzip") => {
            flate2::read::GzDecoder::new(&reply.bytes[..])
                .read_to_end(&mut bytes)
                .unwrap();
        }
        None => bytes.extend_from_slice(&reply.bytes),
        Some(other) => panic!("{other} is not asked for"),
    }
    bytes
}

async fn fetched(app: &TestApp, team: &Team, path: &str, more: &[(&str, &str)]) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend_from_slice(more);
    app.send(Method::GET, path, &headers, Body::empty()).await
}

#[tokio::test]
async fn large_responses_are_compressed_if_accepted() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let gzip = [("accept-encoding", "gzip")];
    let path = "/v1/documentation/json";
    let (small, whole) = (
        fetched(&app, &team, path, &gzip).await,
        fetched(&app, &team, path, &[]).await,
    );
    assert_eq!(small.header("content-encoding"), Some("gzip"));
    assert!(small.header("vary").unwrap().contains("accept-encoding"));
    assert!(
        small
            .header("content-length")
            .is_none_or(|length| length == small.bytes.len().to_string())
    );
    assert!(small.bytes.len() * 4 < whole.bytes.len());
    assert_eq!(plain(&small), whole.bytes);
    let brotli = fetched(&app, &team, path, &[("accept-encoding", "br, gzip;q=0.5")]).await;
    assert_eq!(brotli.header("content-encoding"), Some("br"));
    // An `accept-encoding` that refuses everything else must not turn a completed request into an error.
    let strict = [("accept-encoding", "zstd, identity;q=0, *;q=0")];
    assert_eq!(fetched(&app, &team, path, &strict).await.status, 200);

    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a.json", b"[1]".repeat(4000))
        .await
        .expect(201);
    let content = format!("/v1/sandboxes/{sandbox}/files/content?path=a.json");
    for path in ["/v1/team", content.as_str(), "/healthz"] {
        let reply = fetched(&app, &team, path, &gzip).await;
        assert_eq!(
            (reply.status, reply.header("content-encoding")),
            (200, None),
            "{path}"
        );
    }
    app.finish().await;
}

#[tokio::test]
async fn a_file_and_the_documentation_have_validators() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a.txt", "0123456789")
        .await
        .expect(201);
    let path = format!("/v1/sandboxes/{sandbox}/files/content?path=a.txt");
    let whole = fetched(&app, &team, &path, &[]).await;
    let etag = whole.header("etag").unwrap().to_owned();
    assert!(etag.starts_with('"'), "{etag}");
    let part = [("range", "bytes=4-"), ("if-range", etag.as_str())];
    let reply = fetched(&app, &team, &path, &part).await;
    assert_eq!((reply.status, &reply.bytes[..]), (206, &b"456789"[..]));
    let known = fetched(&app, &team, &path, &[("if-none-match", &etag)]).await;
    assert_eq!((known.status, known.bytes.len()), (304, 0));
    assert_eq!(known.header("etag"), Some(etag.as_str()));
    // The file was replaced, so a resumed download gets all of it.
    app.upload(&team.key, &sandbox, "a.txt", "abcdefghij")
        .await
        .expect(201);
    let reply = fetched(&app, &team, &path, &part).await;
    assert_eq!((reply.status, &reply.bytes[..]), (200, &b"abcdefghij"[..]));
    assert_ne!(reply.header("etag"), Some(etag.as_str()));
    let reply = fetched(&app, &team, &path, &[("if-none-match", &etag)]).await;
    assert_eq!(reply.status, 200);

    for path in ["/v1/documentation", "/v1/documentation/json"] {
        let etag = fetched(&app, &team, path, &[])
            .await
            .header("etag")
            .unwrap()
            .to_owned();
        for given in [
            etag.as_str(),
            "*",
            &format!("\"x\", {etag}"),
            etag.trim_start_matches("W/"),
        ] {
            let reply = fetched(&app, &team, path, &[("if-none-match", given)]).await;
            assert_eq!(
                (reply.status, reply.bytes.len()),
                (304, 0),
                "{path} {given}"
            );
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn addresses_in_answers_follow_the_callers_host() {
    let url = async |app: &TestApp, team: &Team, host: &str| -> String {
        let sandbox = app.sandbox(team).await;
        let bearer = format!("Bearer {}", team.key);
        let headers = [("authorization", bearer.as_str()), ("host", host)];
        let path = format!("/v1/sandboxes/{sandbox}/upload-urls");
        let body = Body::from(json!({"path": "a"}).to_string());
        let reply = app
            .send(Method::POST, &path, &headers, body)
            .await
            .expect(200);
        reply["upload_url"].as_str().unwrap().to_owned()
    };
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let of_host = url(&app, &team, "errand.lan:8080").await;
    assert!(
        of_host.starts_with("http://errand.lan:8080/v1/uploads/"),
        "{of_host}"
    );
    let strange = url(&app, &team, "user@evil.example/x").await;
    assert!(strange.starts_with(app.url()), "{strange}");
    app.finish().await;

    let public = ("ERRAND_SERVER__PUBLIC_URL", "https://errand.example.com");
    let app = TestApp::start_with(with(vec![public])).await;
    let team = app.team("acme").await;
    let set = url(&app, &team, "errand.lan:8080").await;
    assert!(
        set.starts_with("https://errand.example.com/v1/uploads/"),
        "{set}"
    );
    app.finish().await;
}

/// Names in paths that are opaque: a malformed one is treated like one that does not exist.
const OPAQUE: [&str; 3] = ["sandbox_id", "provider", "secret_name"];

#[tokio::test]
async fn a_malformed_id_is_400_and_an_unknown_one_404() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let id = "0198f2a4-7c1e-7000-8000-000000000001";
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
    ];
    let mut tried = 0;
    for route in ROUTES.iter().filter(|route| route.access != Access::Public) {
        let names: Vec<&str> = route
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .filter(|name| !OPAQUE.contains(name))
            .collect();
        for bad in &names {
            for text in ["1", "not-a-uuid", "0198f2a4-7c1e-7000-8000-00000000000"] {
                let path = names.iter().fold(route.path.to_owned(), |path, name| {
                    let value = if name == bad { text } else { id };
                    path.replace(&format!("{{{name}}}"), value)
                });
                let reply = app
                    .send(route.method.clone(), &path, &headers, Body::from("{}"))
                    .await;
                let (_, message) = reply.error(400);
                assert!(
                    message.starts_with(bad),
                    "{} {path}: {message}",
                    route.method
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 90, "{tried}");
    for path in [
        "/v1/sandboxes/x/files",
        "/v1/sandboxes/sb_1/files",
        "/v1/agents/0198f2a4-7c1e-7000-8000-000000000001",
    ] {
        app.get(&team.key, path).await.error(404);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_compressed_body_is_415_and_names_the_header() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let bearer = format!("Bearer {}", team.key);
    for path in [
        "/v1/agents".to_owned(),
        format!("/v1/sandboxes/{sandbox}/files?path=a"),
    ] {
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
        ];
        let reply = app
            .send(Method::POST, &path, &headers, Body::from("{}"))
            .await;
        let (code, message) = reply.error(415);
        assert_eq!(code, "unsupported_media_type");
        assert!(message.contains("content-encoding"), "{message}");
    }
    app.finish().await;
}

#[tokio::test]
async fn two_files_in_a_form_are_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let part = |name: &str, file: &str| {
        format!(
            "--b\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\n\r\nx\r\n"
        )
    };
    let form = format!(
        "{}{}--b--\r\n",
        part("file", "a.txt"),
        part("file", "b.txt")
    );
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "multipart/form-data; boundary=b"),
    ];
    let path = format!("/v1/sandboxes/{sandbox}/files");
    let (_, message) = app
        .send(Method::POST, &path, &headers, Body::from(form))
        .await
        .error(400);
    assert!(message.contains("two parts"), "{message}");
    let listed = app.get(&team.key, &path).await.expect(200);
    assert_eq!(listed["files"], json!([]));
    app.finish().await;
}

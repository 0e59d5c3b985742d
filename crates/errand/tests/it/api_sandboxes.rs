//! Sandboxes over the API: directories, uploads, downloads, upload URLs, expiry. What is refused changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp, TestOptions};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const DAY: Duration = Duration::from_secs(86_400);
const DIRECT_MAX: usize = 10 * 1024 * 1024;
const BOUNDARY: &str = "a-boundary-of-the-test";

/// One part of a form: name, filename, bytes.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, bytes) in parts {
        let filename = filename.map_or_else(String::new, |f| format!("; filename=\"{f}\""));
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

async fn send_form(app: &TestApp, team: &Team, sandbox: &str, body: Vec<u8>) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let headers = [("authorization", bearer.as_str()), ("content-type", kind.as_str())];
    app.send(Method::POST, &format!("/v1/sandboxes/{sandbox}/files"), &headers, Body::from(body)).await
}

async fn list(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> Reply {
    app.get(&team.key, &format!("/v1/sandboxes/{sandbox}/files?path={path}")).await
}

async fn names(app: &TestApp, team: &Team, sandbox: &str) -> Vec<String> {
    let listed = list(app, team, sandbox, "/workspace").await.expect(200);
    listed["files"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
}

async fn content(app: &TestApp, team: &Team, sandbox: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let bearer = format!("Bearer {}", team.key);
    let mut all = vec![("authorization", bearer.as_str())];
    all.extend_from_slice(headers);
    app.send(Method::GET, &format!("/v1/sandboxes/{sandbox}/files/content?path={path}"), &all, Body::empty()).await
}

async fn text(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> String {
    let reply = content(app, team, sandbox, path, &[]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

/// The path and query of an upload URL.
async fn upload_url(app: &TestApp, team: &Team, sandbox: &str, path: &str) -> String {
    let made = app.post(&team.key, &format!("/v1/sandboxes/{sandbox}/upload-urls"), json!({"path": path})).await.expect(200);
    assert_eq!(made["expires_in_seconds"], 3600);
    let url = made["upload_url"].as_str().unwrap();
    url.strip_prefix(app.url()).unwrap_or_else(|| panic!("{url} is not of this server")).to_owned()
}

async fn put(app: &TestApp, url: &str, body: impl Into<Body>) -> Reply {
    app.send(Method::PUT, url, &[], body.into()).await
}

/// Every name below a directory, hidden ones too: what an upload that was refused must not have left.
fn on_disk(dir: &Path) -> BTreeSet<String> {
    let (mut found, mut left) = (BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(at) = left.pop() {
        let Ok(entries) = fs::read_dir(&at) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            found.insert(entry.path().strip_prefix(dir).unwrap().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    found
}

#[tokio::test]
async fn a_new_sandbox_is_empty_and_says_when_it_goes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let made = app.post(&team.key, "/v1/sandboxes", json!({})).await.expect(201);
    assert_eq!(made["expires_at"], app.now().plus_ms(30 * 86_400_000).to_string());
    let sandbox = made["sandbox_id"].as_str().unwrap();
    assert_eq!(list(&app, &team, sandbox, "/workspace").await.expect(200), json!({"files": []}));
    // A call that takes no body takes any.
    let bearer = format!("Bearer {}", team.key);
    for (kind, body) in [("text/plain", "anything"), ("application/json", "{not json"), ("", "")] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let headers = if kind.is_empty() { &headers[..1] } else { &headers[..] };
        let reply = app.send(Method::POST, "/v1/sandboxes", headers, Body::from(body)).await;
        assert_ne!(reply.expect(201)["sandbox_id"], sandbox);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_listing_is_sorted_and_leaves_out_links_and_pipes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    for path in ["/workspace/b.txt", "/workspace/c/inner.txt", "a.txt"] {
        app.upload(&team.key, &sandbox, path, "12345").await.expect(201);
    }
    let dir = app.sandbox_dir(&sandbox);
    symlink("/etc/passwd", dir.join("aa-link")).unwrap();
    symlink("/", dir.join("ab-link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("ac-socket")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(dir.join("ad-pipe")).status().unwrap().success());

    let whole = app.get(&team.key, &format!("/v1/sandboxes/{sandbox}/files")).await.expect(200);
    let file = |name: &str| json!({"name": name, "path": format!("/workspace/{name}"), "type": "file", "size_bytes": 5});
    let files = whole["files"].as_array().unwrap();
    assert_eq!(files.len(), 3, "{whole:#}");
    assert_eq!((&files[0], &files[1]), (&file("a.txt"), &file("b.txt")));
    assert_eq!((&files[2]["name"], &files[2]["path"], &files[2]["type"]), (&json!("c"), &json!("/workspace/c"), &json!("dir")));
    let inner = json!({"files": [{"name": "inner.txt", "path": "/workspace/c/inner.txt", "type": "file", "size_bytes": 5}]});
    for path in ["/workspace/c", "/workspace/c/", "c", "./c/../c", "/workspace//c"] {
        assert_eq!(list(&app, &team, &sandbox, path).await.expect(200), inner, "{path}");
    }
    assert_eq!(list(&app, &team, &sandbox, "/workspace/none").await.error(404).0, "not_found");
    let (code, message) = app.get(&team.key, &format!("/v1/sandboxes/{sandbox}/files?pth=/workspace")).await.error(400);
    assert_eq!(code, "bad_request");
    assert!(message.contains("pth") && message.contains("path"), "{message}");
    app.finish().await;
}

#[tokio::test]
async fn a_form_names_the_file_in_many_ways() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let cases: [(&[Part<'_>], &str); 9] = [
        (&[("file", Some("x.csv"), b"1234"), ("path", None, b"/workspace/in/y.csv")], "/workspace/in/y.csv"),
        (&[("path", None, b"/workspace/in/y.csv"), ("file", Some("x.csv"), b"1234")], "/workspace/in/y.csv"),
        (&[("file", Some("x.csv"), b"1234"), ("path", None, b"/workspace/in/")], "/workspace/in/x.csv"),
        (&[("path", None, b"in/"), ("file", Some("x.csv"), b"1234")], "/workspace/in/x.csv"),
        (&[("file", Some("x.csv"), b"1234")], "/workspace/x.csv"),
        (&[("file", Some("some/where/x.csv"), b"1234")], "/workspace/x.csv"),
        (&[("upload", Some("x.csv"), b"1234")], "/workspace/x.csv"),
        (&[("note", None, b"hello"), ("other", Some("o.bin"), b"not this"), ("file", Some("x.csv"), b"1234"), ("more", None, b"")], "/workspace/x.csv"),
        (&[("path", None, b"a/b/c.txt"), ("file", None, b"1234")], "/workspace/a/b/c.txt"),
    ];
    for (parts, path) in cases {
        let sandbox = app.sandbox(&team).await;
        let reply = send_form(&app, &team, &sandbox, form(parts)).await.expect(201);
        assert_eq!(reply, json!({"path": path, "size_bytes": 4}), "{parts:?}");
        assert_eq!(text(&app, &team, &sandbox, path).await, "1234", "{parts:?}");
        let files = on_disk(&app.sandbox_dir(&sandbox)).iter().filter(|n| app.sandbox_dir(&sandbox).join(n).is_file()).count();
        assert_eq!(files, 1, "{parts:?} made one file and nothing else");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_form_that_does_not_fit_is_refused_and_leaves_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let cases: [&[Part<'_>]; 6] = [
        &[],
        &[("path", None, b"/workspace/x")],
        &[("one", Some("1.txt"), b"1"), ("two", Some("2.txt"), b"2")],
        &[("file", Some(""), b"1")],
        &[("file", Some(".."), b"1")],
        &[("file", Some("x"), b"1"), ("path", None, b"/etc/x")],
    ];
    for parts in cases {
        let (code, _) = send_form(&app, &team, &sandbox, form(parts)).await.error(400);
        assert_eq!(code, "bad_request", "{parts:?}");
    }
    let mut cut = form(&[("file", Some("x"), b"12345"), ("path", None, b"/workspace/x")]);
    cut.truncate(cut.len() - BOUNDARY.len());
    assert_eq!(send_form(&app, &team, &sandbox, cut).await.error(400).0, "bad_request");
    let bearer = format!("Bearer {}", team.key);
    let headers = [("authorization", bearer.as_str()), ("content-type", "multipart/form-data")];
    let whole = form(&[("file", Some("x"), b"1")]);
    app.send(Method::POST, &format!("/v1/sandboxes/{sandbox}/files"), &headers, Body::from(whole)).await.error(400);
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)), BTreeSet::new());
    app.finish().await;
}

#[tokio::test]
async fn a_raw_body_needs_a_path() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let reply = app.upload(&team.key, &sandbox, "/workspace/a%20b.txt", "hello").await.expect(201);
    assert_eq!(reply, json!({"path": "/workspace/a b.txt", "size_bytes": 5}));
    assert_eq!(app.upload(&team.key, &sandbox, "empty", "").await.expect(201)["size_bytes"], 0);
    assert_eq!(app.upload(&team.key, &sandbox, "a%20b.txt", "new").await.expect(201)["size_bytes"], 3);
    assert_eq!(text(&app, &team, &sandbox, "a%20b.txt").await, "new", "an upload replaces the file");
    let bearer = format!("Bearer {}", team.key);
    let url = format!("/v1/sandboxes/{sandbox}/files");
    for kind in ["application/octet-stream", "text/csv", "application/json"] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let (code, message) = app.send(Method::POST, &url, &headers, Body::from("hello")).await.error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains("path"), "{message}");
    }
    app.send(Method::POST, &url, &[("authorization", bearer.as_str())], Body::from("hello")).await.error(400);
    // A directory has no bytes.
    app.upload(&team.key, &sandbox, "/workspace/dir/", "hello").await.error(400);
    assert_eq!(names(&app, &team, &sandbox).await, ["a b.txt", "empty"]);
    app.finish().await;
}

#[tokio::test]
async fn a_direct_upload_has_ten_mebibytes_at_most() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let most = vec![b'x'; DIRECT_MAX];
    let more = vec![b'x'; DIRECT_MAX + 1];
    assert_eq!(app.upload(&team.key, &sandbox, "raw", most.clone()).await.expect(201)["size_bytes"], DIRECT_MAX);
    let whole = send_form(&app, &team, &sandbox, form(&[("file", Some("form"), &most)])).await.expect(201);
    assert_eq!(whole["size_bytes"], DIRECT_MAX);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    assert_eq!(before.len(), 2);

    assert_eq!(app.upload(&team.key, &sandbox, "raw-2", more.clone()).await.error(413).0, "payload_too_large");
    assert_eq!(app.upload(&team.key, &sandbox, "raw", more.clone()).await.error(413).0, "payload_too_large");
    let chunks = more.chunks(64 * 1024).map(|c| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(c))).collect::<Vec<_>>();
    let streamed = Body::from_stream(futures::stream::iter(chunks));
    assert_eq!(app.upload(&team.key, &sandbox, "raw-3", streamed).await.error(413).0, "payload_too_large");
    let parts: [&[Part<'_>]; 2] = [
        &[("file", Some("form-2"), &more)],
        &[("file", Some("form-2"), &more), ("path", None, b"/workspace/form-3")],
    ];
    for parts in parts {
        assert_eq!(send_form(&app, &team, &sandbox, form(parts)).await.error(413).0, "payload_too_large");
    }
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)), before, "nothing is left of what was refused");
    let listed = list(&app, &team, &sandbox, "/workspace").await.expect(200);
    assert!(listed["files"].as_array().unwrap().iter().all(|f| f["size_bytes"] == DIRECT_MAX));
    app.finish().await;
}

/// What would leave the sandbox, as it stands in a query, and as it is.
const OUTSIDE: [(&str, &str); 8] = [
    ("..", ".."),
    ("../x", "../x"),
    ("/etc/passwd", "/etc/passwd"),
    ("/workspace/../etc/x", "/workspace/../etc/x"),
    ("a/../../x", "a/../../x"),
    ("/workspacex/a", "/workspacex/a"),
    ("a%00b", "a\0b"),
    ("/workspace/%00", "/workspace/\0"),
];

#[tokio::test]
async fn no_path_leads_out_of_the_sandbox() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let base = format!("/v1/sandboxes/{sandbox}");
    for (query, path) in OUTSIDE {
        let replies = [
            list(&app, &team, &sandbox, query).await,
            content(&app, &team, &sandbox, query, &[]).await,
            app.upload(&team.key, &sandbox, query, "bad").await,
            send_form(&app, &team, &sandbox, form(&[("file", Some("f"), b"bad"), ("path", None, path.as_bytes())])).await,
            app.post(&team.key, &format!("{base}/upload-urls"), json!({"path": path})).await,
        ];
        for (n, reply) in replies.into_iter().enumerate() {
            assert_eq!(reply.error(400).0, "bad_request", "{path:?}, call {n}");
        }
    }
    assert_eq!(on_disk(&app.dir().join("sandboxes")).into_iter().filter(|n| n.contains('/')).count(), 0);
    app.finish().await;
}

#[tokio::test]
async fn no_link_leads_out_of_the_sandbox() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "file", "mine").await.expect(201);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let dir = app.sandbox_dir(&sandbox);
    symlink(outside.path(), dir.join("out")).unwrap();
    symlink(outside.path().join("secret"), dir.join("one")).unwrap();
    symlink("file", dir.join("within")).unwrap();

    for path in ["out/secret", "out/new", "out/deep/er", "one"] {
        let url = upload_url(&app, &team, &sandbox, path).await;
        let replies = [
            app.upload(&team.key, &sandbox, path, "bad").await,
            send_form(&app, &team, &sandbox, form(&[("file", Some("f"), b"bad"), ("path", None, path.as_bytes())])).await,
            put(&app, &url, "bad").await,
            content(&app, &team, &sandbox, path, &[]).await,
        ];
        for (n, reply) in replies.into_iter().enumerate() {
            assert_eq!(reply.error(400).0, "bad_request", "{path}, call {n}");
        }
    }
    for path in ["out", "one", "out/deep"] {
        assert_eq!(list(&app, &team, &sandbox, path).await.error(400).0, "bad_request", "{path}");
    }
    // Even one that stays inside leads nowhere.
    content(&app, &team, &sandbox, "within", &[]).await.error(400);
    assert_eq!(on_disk(outside.path()), BTreeSet::from(["secret".to_owned()]));
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    assert_eq!(names(&app, &team, &sandbox).await, ["file"]);
    app.finish().await;
}

#[tokio::test]
async fn an_upload_onto_a_directory_or_through_a_file_is_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "dir/file", "mine").await.expect(201);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    for path in ["dir", "/workspace", "/workspace/dir", "dir/file/below"] {
        app.upload(&team.key, &sandbox, path, "bad").await.error(400);
        let reply = app.post(&team.key, &format!("/v1/sandboxes/{sandbox}/upload-urls"), json!({"path": path})).await;
        if reply.status == 200 {
            let url = reply.json()["upload_url"].as_str().unwrap().strip_prefix(app.url()).unwrap().to_owned();
            put(&app, &url, "bad").await.error(400);
        } else {
            reply.error(400);
        }
    }
    send_form(&app, &team, &sandbox, form(&[("file", Some("dir"), b"bad")])).await.error(400);
    content(&app, &team, &sandbox, "dir", &[]).await.error(400);
    content(&app, &team, &sandbox, "none", &[]).await.error(404);
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)), before);
    assert_eq!(text(&app, &team, &sandbox, "dir/file").await, "mine");
    app.finish().await;
}

#[tokio::test]
async fn an_upload_url_needs_no_key_and_serves_for_an_hour() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let url = upload_url(&app, &team, &sandbox, "/workspace/in/big file.bin").await;
    let reply = put(&app, &url, "first").await.expect(200);
    assert_eq!(reply, json!({"path": "/workspace/in/big file.bin", "size_bytes": 5}));
    app.advance(Duration::from_secs(3599)).await;
    put(&app, &url, "the second, longer").await.expect(200);
    assert_eq!(text(&app, &team, &sandbox, "in/big%20file.bin").await, "the second, longer", "the last whole upload wins");

    app.advance(Duration::from_secs(2)).await;
    let (code, message) = expect_client_error(&put(&app, &url, "third").await);
    assert_ne!(code, "internal", "{message}");
    assert_eq!(text(&app, &team, &sandbox, "in/big%20file.bin").await, "the second, longer");
    // Only PUT.
    let get = app.send(Method::GET, &url, &[], Body::empty()).await;
    assert!(matches!(get.status, 401 | 405), "{get:?}");
    // A path is required, and a whole one.
    for body in [json!({}), json!({"path": 1}), json!({"path": ""}), json!({"path": "dir/"}), json!({"path": "a", "pathh": "b"})] {
        app.post(&team.key, &format!("/v1/sandboxes/{sandbox}/upload-urls"), body).await.error(400);
    }
    app.finish().await;
}

fn expect_client_error(reply: &Reply) -> (String, String) {
    assert!((400..500).contains(&reply.status), "{reply:?}");
    reply.error(reply.status)
}

#[tokio::test]
async fn an_upload_url_cannot_be_changed() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (sandbox, other) = (app.sandbox(&team).await, app.sandbox(&team).await);
    let url = upload_url(&app, &team, &sandbox, "/workspace/a.bin").await;
    for at in "/v1/".len()..url.len() {
        for replacement in ["0", "b", "Z"] {
            let mut changed = url.clone();
            if &changed[at..=at] == replacement {
                continue;
            }
            changed.replace_range(at..=at, replacement);
            let reply = put(&app, &changed, "bad").await;
            assert!((400..500).contains(&reply.status), "{changed} was taken: {reply:?}");
        }
    }
    for changed in [url[..url.len() - 1].to_owned(), format!("{url}0"), url.replace(&sandbox, &other)] {
        if changed != url {
            expect_client_error(&put(&app, &changed, "bad").await);
        }
    }
    for sandbox in [&sandbox, &other] {
        assert_eq!(on_disk(&app.sandbox_dir(sandbox)), BTreeSet::new());
    }
    put(&app, &url, "good").await.expect(200);
    app.finish().await;
}

#[tokio::test]
async fn an_upload_url_has_a_limit_and_ends_with_its_sandbox() {
    let options = TestOptions { settings: vec![("ERRAND_UPLOADS__URL_BYTES_MAX", "1000".to_owned())], ..TestOptions::default() };
    let app = TestApp::start_with(options).await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let url = upload_url(&app, &team, &sandbox, "a").await;
    put(&app, &url, vec![b'x'; 1000]).await.expect(200);
    assert_eq!(put(&app, &url, vec![b'y'; 1001]).await.error(413).0, "payload_too_large");
    assert_eq!(text(&app, &team, &sandbox, "a").await, "x".repeat(1000));
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)).len(), 1);
    let unused = upload_url(&app, &team, &sandbox, "b").await;
    assert_eq!(put(&app, &unused, vec![b'y'; 1001]).await.status, 413);
    assert_eq!(names(&app, &team, &sandbox).await, ["a"]);
    assert_eq!(app.delete(&team.key, &format!("/v1/sandboxes/{sandbox}")).await.status, 204);
    for url in [url, unused] {
        assert_eq!(put(&app, &url, "late").await.error(404).0, "not_found");
    }
    assert!(!app.sandbox_dir(&sandbox).join("b").exists());
    app.finish().await;
}

/// Sends a request's beginning over a real connection, then no more; reads what comes until the end.
async fn send_and_end(app: &TestApp, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.url().strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    read.expect("the server ends a connection that was given up").ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_that_was_cut_off_leaves_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "whole", "whole").await.expect(201);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    let key = format!("authorization: Bearer {}\r\n", team.key);
    let start = |method: &str, url: &str, more: &str| format!("{method} {url} HTTP/1.1\r\nhost: errand\r\nconnection: close\r\n{more}\r\n");
    let files = format!("/v1/sandboxes/{sandbox}/files");
    for name in ["whole", "new", "deep/new"] {
        let raw = format!("{files}?path={name}");
        let put = upload_url(&app, &team, &sandbox, name).await;
        let parts = form(&[("path", None, name.as_bytes()), ("file", Some("f"), &[b'x'; 4000])]);
        let kind = format!("{key}content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n", parts.len());
        let cut = &parts[..parts.len() / 2];
        let cases = [
            (start("POST", &raw, &format!("{key}content-length: 5000\r\n")), &b"only this"[..]),
            (start("POST", &raw, &format!("{key}transfer-encoding: chunked\r\n")), &b"9\r\nonly this\r\n"[..]),
            (start("PUT", &put, "content-length: 5000\r\n"), &b"only this"[..]),
            (start("POST", &files, &kind), cut),
        ];
        for (head, body) in cases {
            let answer = send_and_end(&app, &head, body).await;
            assert!(!answer.starts_with("HTTP/1.1 2"), "{head}{answer}");
        }
    }
    let left = on_disk(&app.sandbox_dir(&sandbox));
    let files: BTreeSet<_> = left.iter().filter(|n| app.sandbox_dir(&sandbox).join(n).is_file()).cloned().collect();
    assert_eq!(files, before);
    assert_eq!(text(&app, &team, &sandbox, "whole").await, "whole");
    app.upload(&team.key, &sandbox, "new", "now whole").await.expect(201);
    app.finish().await;
}

#[tokio::test]
async fn a_file_is_given_whole_or_in_ranges_and_cannot_act() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "page.html", "0123456789").await.expect(201);
    let whole = content(&app, &team, &sandbox, "page.html", &[]).await;
    assert_eq!((whole.status, &whole.bytes[..]), (200, &b"0123456789"[..]));
    assert_eq!(whole.header("content-length"), Some("10"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert!(whole.header("content-disposition").unwrap().starts_with("attachment"));
    assert!(whole.header("content-security-policy").unwrap().contains("sandbox"), "{whole:?}");

    let cases = [
        ("bytes=0-3", "bytes 0-3/10", "0123"),
        ("bytes=4-", "bytes 4-9/10", "456789"),
        ("bytes=-3", "bytes 7-9/10", "789"),
        ("bytes=8-100", "bytes 8-9/10", "89"),
        ("bytes=9-9", "bytes 9-9/10", "9"),
        ("bytes=-100", "bytes 0-9/10", "0123456789"),
    ];
    for (range, given, expected) in cases {
        let part = content(&app, &team, &sandbox, "page.html", &[("range", range)]).await;
        assert_eq!((part.status, &part.bytes[..]), (206, expected.as_bytes()), "{range}");
        assert_eq!(part.header("content-range"), Some(given), "{range}");
        assert_eq!(part.header("content-length"), Some(expected.len().to_string().as_str()), "{range}");
        assert_eq!(part.header("x-content-type-options"), Some("nosniff"));
    }
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
        let refused = content(&app, &team, &sandbox, "page.html", &[("range", range)]).await;
        assert_eq!(refused.error(416).0, "range_not_satisfiable", "{range}");
        assert_eq!(refused.header("content-range"), Some("bytes */10"), "{range}");
    }
    app.upload(&team.key, &sandbox, "empty", "").await.expect(201);
    assert_eq!(content(&app, &team, &sandbox, "empty", &[]).await.bytes.len(), 0);
    content(&app, &team, &sandbox, "empty", &[("range", "bytes=0-")]).await.error(416);
    // A unit that nobody knows is passed over.
    let other = content(&app, &team, &sandbox, "page.html", &[("range", "lines=0-3")]).await;
    assert_eq!((other.status, other.bytes.len()), (200, 10));
    app.get(&team.key, &format!("/v1/sandboxes/{sandbox}/files/content")).await.error(400);
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_is_not_deleted_under_a_run() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine").await.expect(201);
    let agent = app.playbook(&team, json!([{"approve": {"title": "Go on?"}}])).await;
    let run = app.run(&team, json!({"agent_id": agent, "sandbox_id": sandbox})).await;
    app.settle().await;
    let path = format!("/v1/sandboxes/{sandbox}");
    assert_eq!(app.delete(&team.key, &path).await.error(409).0, "conflict");
    assert_eq!(text(&app, &team, &sandbox, "a").await, "mine");
    let second = app.post(&team.key, "/v1/runs", json!({"agent_id": agent, "sandbox_id": sandbox})).await;
    assert_eq!(second.error(409).0, "conflict");
    assert_eq!(app.get(&team.key, "/v1/runs").await.expect(200)["total"], 1);
    app.post(&team.key, &format!("/v1/runs/{run}/stop"), json!({})).await.expect(200);
    app.settle().await;
    let deleted = app.delete(&team.key, &path).await;
    assert_eq!((deleted.status, deleted.bytes.len()), (204, 0));
    assert_eq!(app.delete(&team.key, &path).await.error(404).0, "not_found");
    assert_eq!(gone_everywhere(&app, &team, &sandbox).await, [404; 4]);
    let started = app.post(&team.key, "/v1/runs", json!({"agent_id": agent, "sandbox_id": sandbox})).await;
    assert_eq!(started.error(400).0, "bad_request");
    app.finish().await;
}

async fn gone_everywhere(app: &TestApp, team: &Team, sandbox: &str) -> [u16; 4] {
    [
        list(app, team, sandbox, "/workspace").await.status,
        content(app, team, sandbox, "a", &[]).await.status,
        app.upload(&team.key, sandbox, "a", "late").await.status,
        app.post(&team.key, &format!("/v1/sandboxes/{sandbox}/upload-urls"), json!({"path": "a"})).await.status,
    ]
}

#[tokio::test]
async fn a_message_to_a_run_whose_sandbox_is_taken_waits_for_it() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let asks = app.playbook(&team, json!([{"approve": {"title": "Go on?"}}])).await;
    let says = app.playbook(&team, json!([{"finish": "heard {{ message }}"}])).await;
    let first = app.run(&team, json!({"agent_id": says, "sandbox_id": sandbox, "message": "one"})).await;
    app.settle().await;
    let second = app.run(&team, json!({"agent_id": asks, "sandbox_id": sandbox})).await;
    app.settle().await;
    app.post(&team.key, &format!("/v1/runs/{first}/messages"), json!({"message": "two"})).await.expect(201);
    app.settle().await;
    let waits = app.get_run(&team, &first).await;
    assert_eq!((&waits["run"]["status"], &waits["run"]["waiting_on"]["kind"]), (&json!("pending"), &json!("sandbox")));
    app.upload(&team.key, &sandbox, "a", "uploads are always allowed").await.expect(201);
    app.post(&team.key, &format!("/v1/runs/{second}/stop"), json!({})).await.expect(200);
    app.settle().await;
    assert_eq!(app.status(&team, &first).await, "completed");
    assert_eq!(app.messages(&team, &first).await.last().unwrap()["text_content"], "heard two");
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_expires_after_its_last_use() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let (unused, uploaded, run_on) = (app.sandbox(&team).await, app.sandbox(&team).await, app.sandbox(&team).await);
    let by_url = app.sandbox(&team).await;
    app.advance(29 * DAY).await;
    app.upload(&team.key, &uploaded, "a", "mine").await.expect(201);
    let url = upload_url(&app, &team, &by_url, "a").await;
    put(&app, &url, "mine").await.expect(200);
    app.run(&team, json!({"agent_id": agent, "sandbox_id": run_on})).await;
    app.settle().await;
    // Looking is no use.
    list(&app, &team, &unused, "/workspace").await.expect(200);
    app.advance(DAY + Duration::from_secs(1)).await;
    assert_eq!(gone_everywhere(&app, &team, &unused).await, [404; 4]);
    let started = app.post(&team.key, "/v1/runs", json!({"agent_id": agent, "sandbox_id": unused})).await;
    assert_eq!(started.error(400).0, "bad_request");
    for used in [&uploaded, &run_on, &by_url] {
        assert_eq!(list(&app, &team, used, "/workspace").await.status, 200);
    }
    app.advance(29 * DAY).await;
    for used in [&uploaded, &run_on, &by_url] {
        assert_eq!(list(&app, &team, used, "/workspace").await.status, 404);
        assert_eq!(app.delete(&team.key, &format!("/v1/sandboxes/{used}")).await.status, 404);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_sandbox_does_not_expire_under_a_run_and_a_resume_after_it_fails() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "a", "mine").await.expect(201);
    let agent = app
        .playbook(&team, json!([{"approve": {"title": "Go on?"}, "if": "{{ message == 'one' }}"}, {"tool": "read_file", "with": {"path": "a"}, "as": "a"}, {"finish": "{{ a }}"}]))
        .await;
    let run = app.run(&team, json!({"agent_id": agent, "sandbox_id": sandbox, "message": "one"})).await;
    app.settle().await;
    app.advance(60 * DAY).await;
    assert_eq!(text(&app, &team, &sandbox, "a").await, "mine", "a run that waits keeps its sandbox");
    let request = app.get_run(&team, &run).await["pending_human_request"]["id"].as_str().unwrap().to_owned();
    app.post(&team.key, &format!("/v1/runs/{run}/human-requests/{request}/respond"), json!({"approved": true})).await.expect(200);
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!(got["run"]["status"], "completed", "{got:#}");

    app.advance(31 * DAY).await;
    app.post(&team.key, &format!("/v1/runs/{run}/messages"), json!({"message": "two"})).await.expect(201);
    app.settle().await;
    let got = app.get_run(&team, &run).await;
    assert_eq!((&got["run"]["status"], &got["run"]["error"]["code"]), (&json!("failed"), &json!("sandbox_expired")), "{got:#}");
    let messages: Vec<Value> = app.messages(&team, &run).await;
    assert_eq!(messages.iter().filter(|m| m["text_content"] == "two").count(), 1, "the message is kept");
    app.finish().await;
}

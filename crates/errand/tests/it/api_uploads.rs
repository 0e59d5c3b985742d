//! Uploads through the API: forms, raw bodies, upload URLs. A refused or interrupted upload leaves nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use axum::body::Body;
use errand_testkit::{Reply, Team, TestApp};
use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api_sandboxes::{content, list, names, on_disk, put, text, upload_url};

const DIRECT_MAX: usize = 10 * 1024 * 1024;
const BOUNDARY: &str = "a-boundary-of-the-test";

/// A part of a form: name, file name, bytes.
type Part<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn form(parts: &[Part<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, filename, bytes) in parts {
        let filename = filename.map_or_else(String::new, |f| format!("; filename=\"{f}\""));
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{filename}\r\n\r\n"
        );
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
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", kind.as_str()),
    ];
    app.send(
        Method::POST,
        &format!("/v1/sandboxes/{sandbox}/files"),
        &headers,
        Body::from(body),
    )
    .await
}

#[tokio::test]
async fn a_form_names_the_file_in_many_ways() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let cases: [(&[Part<'_>], &str); 9] = [
        (
            &[
                ("file", Some("x.csv"), b"1234"),
                ("path", None, b"/workspace/in/y.csv"),
            ],
            "/workspace/in/y.csv",
        ),
        (
            &[
                ("path", None, b"/workspace/in/y.csv"),
                ("file", Some("x.csv"), b"1234"),
            ],
            "/workspace/in/y.csv",
        ),
        (
            &[
                ("file", Some("x.csv"), b"1234"),
                ("path", None, b"/workspace/in/"),
            ],
            "/workspace/in/x.csv",
        ),
        (
            &[("path", None, b"in/"), ("file", Some("x.csv"), b"1234")],
            "/workspace/in/x.csv",
        ),
        (&[("file", Some("x.csv"), b"1234")], "/workspace/x.csv"),
        (
            &[("file", Some("some/where/x.csv"), b"1234")],
            "/workspace/x.csv",
        ),
        (&[("upload", Some("x.csv"), b"1234")], "/workspace/x.csv"),
        (
            &[
                ("note", None, b"hello"),
                ("other", Some("o.bin"), b"not this"),
                ("file", Some("x.csv"), b"1234"),
                ("more", None, b""),
            ],
            "/workspace/x.csv",
        ),
        (
            &[("path", None, b"a/b/c.txt"), ("file", None, b"1234")],
            "/workspace/a/b/c.txt",
        ),
    ];
    for (parts, path) in cases {
        let sandbox = app.sandbox(&team).await;
        let reply = send_form(&app, &team, &sandbox, form(parts))
            .await
            .expect(201);
        assert_eq!(reply, json!({"path": path, "size_bytes": 4}), "{parts:?}");
        assert_eq!(text(&app, &team, &sandbox, path).await, "1234", "{parts:?}");
        let files = on_disk(&app.sandbox_dir(&sandbox))
            .iter()
            .filter(|n| app.sandbox_dir(&sandbox).join(n).is_file())
            .count();
        assert_eq!(files, 1, "{parts:?} made one file and nothing else");
    }
    app.finish().await;
}

#[tokio::test]
async fn an_invalid_form_is_refused_and_leaves_nothing() {
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
        let (code, _) = send_form(&app, &team, &sandbox, form(parts))
            .await
            .error(400);
        assert_eq!(code, "bad_request", "{parts:?}");
    }
    let mut cut = form(&[
        ("file", Some("x"), b"12345"),
        ("path", None, b"/workspace/x"),
    ]);
    cut.truncate(cut.len() - BOUNDARY.len());
    assert_eq!(
        send_form(&app, &team, &sandbox, cut).await.error(400).0,
        "bad_request"
    );
    let bearer = format!("Bearer {}", team.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "multipart/form-data"),
    ];
    let whole = form(&[("file", Some("x"), b"1")]);
    app.send(
        Method::POST,
        &format!("/v1/sandboxes/{sandbox}/files"),
        &headers,
        Body::from(whole),
    )
    .await
    .error(400);
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)), BTreeSet::new());
    app.finish().await;
}

#[tokio::test]
async fn a_raw_body_needs_a_path() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let reply = app
        .upload(&team.key, &sandbox, "/workspace/a%20b.txt", "hello")
        .await
        .expect(201);
    assert_eq!(
        reply,
        json!({"path": "/workspace/a b.txt", "size_bytes": 5})
    );
    assert_eq!(
        app.upload(&team.key, &sandbox, "empty", "")
            .await
            .expect(201)["size_bytes"],
        0
    );
    assert_eq!(
        app.upload(&team.key, &sandbox, "a%20b.txt", "new")
            .await
            .expect(201)["size_bytes"],
        3
    );
    assert_eq!(
        text(&app, &team, &sandbox, "a%20b.txt").await,
        "new",
        "an upload replaces the file"
    );
    let bearer = format!("Bearer {}", team.key);
    let url = format!("/v1/sandboxes/{sandbox}/files");
    for kind in ["application/octet-stream", "text/csv", "application/json"] {
        let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
        let (code, message) = app
            .send(Method::POST, &url, &headers, Body::from("hello"))
            .await
            .error(400);
        assert_eq!(code, "bad_request");
        assert!(message.contains("path"), "{message}");
    }
    app.send(
        Method::POST,
        &url,
        &[("authorization", bearer.as_str())],
        Body::from("hello"),
    )
    .await
    .error(400);
    // A directory has no content.
    app.upload(&team.key, &sandbox, "/workspace/dir/", "hello")
        .await
        .error(400);
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
    assert_eq!(
        app.upload(&team.key, &sandbox, "raw", most.clone())
            .await
            .expect(201)["size_bytes"],
        DIRECT_MAX
    );
    let whole = send_form(
        &app,
        &team,
        &sandbox,
        form(&[("file", Some("form"), &most)]),
    )
    .await
    .expect(201);
    assert_eq!(whole["size_bytes"], DIRECT_MAX);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    assert_eq!(before.len(), 2);

    assert_eq!(
        app.upload(&team.key, &sandbox, "raw-2", more.clone())
            .await
            .error(413)
            .0,
        "payload_too_large"
    );
    assert_eq!(
        app.upload(&team.key, &sandbox, "raw", more.clone())
            .await
            .error(413)
            .0,
        "payload_too_large"
    );
    let chunks = more
        .chunks(64 * 1024)
        .map(|c| Ok::<_, std::io::Error>(bytes::Bytes::copy_from_slice(c)))
        .collect::<Vec<_>>();
    let streamed = Body::from_stream(futures::stream::iter(chunks));
    assert_eq!(
        app.upload(&team.key, &sandbox, "raw-3", streamed)
            .await
            .error(413)
            .0,
        "payload_too_large"
    );
    let parts: [&[Part<'_>]; 2] = [
        &[("file", Some("form-2"), &more)],
        &[
            ("file", Some("form-2"), &more),
            ("path", None, b"/workspace/form-3"),
        ],
    ];
    for parts in parts {
        assert_eq!(
            send_form(&app, &team, &sandbox, form(parts))
                .await
                .error(413)
                .0,
            "payload_too_large"
        );
    }
    assert_eq!(
        on_disk(&app.sandbox_dir(&sandbox)),
        before,
        "nothing is left of what was refused"
    );
    let listed = list(&app, &team, &sandbox, "/workspace").await.expect(200);
    assert!(
        listed["files"]
            .as_array()
            .unwrap()
            .iter()
            .all(|f| f["size_bytes"] == DIRECT_MAX)
    );
    app.finish().await;
}

/// Paths that lead out of the sandbox, encoded for a query and plain.
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
            send_form(
                &app,
                &team,
                &sandbox,
                form(&[("file", Some("f"), b"bad"), ("path", None, path.as_bytes())]),
            )
            .await,
            app.post(
                &team.key,
                &format!("{base}/upload-urls"),
                json!({"path": path}),
            )
            .await,
        ];
        for (n, reply) in replies.into_iter().enumerate() {
            assert_eq!(reply.error(400).0, "bad_request", "{path:?}, call {n}");
        }
    }
    assert_eq!(
        on_disk(&app.dir().join("sandboxes"))
            .into_iter()
            .filter(|n| n.contains('/'))
            .count(),
        0
    );
    app.finish().await;
}

#[tokio::test]
async fn no_link_leads_out_of_the_sandbox() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "file", "mine")
        .await
        .expect(201);
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
            send_form(
                &app,
                &team,
                &sandbox,
                form(&[("file", Some("f"), b"bad"), ("path", None, path.as_bytes())]),
            )
            .await,
            put(&app, &url, "bad").await,
            content(&app, &team, &sandbox, path, &[]).await,
        ];
        for (n, reply) in replies.into_iter().enumerate() {
            assert_eq!(reply.error(400).0, "bad_request", "{path}, call {n}");
        }
    }
    for path in ["out", "one", "out/deep"] {
        assert_eq!(
            list(&app, &team, &sandbox, path).await.error(400).0,
            "bad_request",
            "{path}"
        );
    }
    // Links are not followed, even if they stay inside.
    content(&app, &team, &sandbox, "within", &[])
        .await
        .error(400);
    assert_eq!(
        on_disk(outside.path()),
        BTreeSet::from(["secret".to_owned()])
    );
    assert_eq!(
        fs::read_to_string(outside.path().join("secret")).unwrap(),
        "secret"
    );
    assert_eq!(names(&app, &team, &sandbox).await, ["file"]);
    app.finish().await;
}

#[tokio::test]
async fn an_upload_onto_a_directory_or_through_a_file_is_refused() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "dir/file", "mine")
        .await
        .expect(201);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    for path in ["dir", "/workspace", "/workspace/dir", "dir/file/below"] {
        app.upload(&team.key, &sandbox, path, "bad")
            .await
            .error(400);
        let reply = app
            .post(
                &team.key,
                &format!("/v1/sandboxes/{sandbox}/upload-urls"),
                json!({"path": path}),
            )
            .await;
        if reply.status == 200 {
            let url = reply.json()["upload_url"]
                .as_str()
                .unwrap()
                .strip_prefix(app.url())
                .unwrap()
                .to_owned();
            put(&app, &url, "bad").await.error(400);
        } else {
            reply.error(400);
        }
    }
    send_form(
        &app,
        &team,
        &sandbox,
        form(&[("file", Some("dir"), b"bad")]),
    )
    .await
    .error(400);
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
    assert_eq!(
        reply,
        json!({"path": "/workspace/in/big file.bin", "size_bytes": 5})
    );
    app.advance(Duration::from_secs(3599)).await;
    put(&app, &url, "the second, longer").await.expect(200);
    assert_eq!(
        text(&app, &team, &sandbox, "in/big%20file.bin").await,
        "the second, longer",
        "the last whole upload wins"
    );

    app.advance(Duration::from_secs(2)).await;
    let (code, message) = expect_client_error(&put(&app, &url, "third").await);
    assert_ne!(code, "internal", "{message}");
    assert_eq!(
        text(&app, &team, &sandbox, "in/big%20file.bin").await,
        "the second, longer"
    );
    // Only `PUT` is permitted.
    let get = app.send(Method::GET, &url, &[], Body::empty()).await;
    assert!(matches!(get.status, 401 | 405), "{get:?}");
    // A path is required, and must be absolute.
    for body in [
        json!({}),
        json!({"path": 1}),
        json!({"path": ""}),
        json!({"path": "dir/"}),
        json!({"path": "a", "pathh": "b"}),
    ] {
        app.post(
            &team.key,
            &format!("/v1/sandboxes/{sandbox}/upload-urls"),
            body,
        )
        .await
        .error(400);
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
            assert!(
                (400..500).contains(&reply.status),
                "{changed} was taken: {reply:?}"
            );
        }
    }
    for changed in [
        url[..url.len() - 1].to_owned(),
        format!("{url}0"),
        url.replace(&sandbox, &other),
    ] {
        if changed != url {
            expect_client_error(&put(&app, &changed, "bad").await);
        }
    }
    let (_, message) = put(&app, &format!("{url}?path=/workspace/b"), "bad")
        .await
        .error(400);
    assert!(message.contains("path"), "{message}");
    for sandbox in [&sandbox, &other] {
        assert_eq!(on_disk(&app.sandbox_dir(sandbox)), BTreeSet::new());
    }
    put(&app, &url, "good").await.expect(200);
    app.finish().await;
}

#[tokio::test]
async fn an_upload_url_has_a_limit_and_ends_with_its_sandbox() {
    let app = TestApp::with_settings(&[("ERRAND_UPLOADS__URL_BYTES_MAX", "1000")]).await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    let url = upload_url(&app, &team, &sandbox, "a").await;
    put(&app, &url, vec![b'x'; 1000]).await.expect(200);
    assert_eq!(
        put(&app, &url, vec![b'y'; 1001]).await.error(413).0,
        "payload_too_large"
    );
    assert_eq!(text(&app, &team, &sandbox, "a").await, "x".repeat(1000));
    assert_eq!(on_disk(&app.sandbox_dir(&sandbox)).len(), 1);
    let unused = upload_url(&app, &team, &sandbox, "b").await;
    assert_eq!(put(&app, &unused, vec![b'y'; 1001]).await.status, 413);
    assert_eq!(names(&app, &team, &sandbox).await, ["a"]);
    assert_eq!(
        app.delete(&team.key, &format!("/v1/sandboxes/{sandbox}"))
            .await
            .status,
        204
    );
    for url in [url, unused] {
        assert_eq!(put(&app, &url, "late").await.error(404).0, "not_found");
    }
    assert!(!app.sandbox_dir(&sandbox).join("b").exists());
    app.finish().await;
}

/// Sends the beginning of a request over a real connection, and reads until the end.
async fn send_and_end(app: &TestApp, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(app.url().strip_prefix("http://").unwrap())
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    read.expect("the server ends a connection that was given up")
        .ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_body_that_was_cut_off_leaves_nothing() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let sandbox = app.sandbox(&team).await;
    app.upload(&team.key, &sandbox, "whole", "whole")
        .await
        .expect(201);
    let before = on_disk(&app.sandbox_dir(&sandbox));
    let key = format!("authorization: Bearer {}\r\n", team.key);
    let start = |method: &str, url: &str, more: &str| {
        format!("{method} {url} HTTP/1.1\r\nhost: errand\r\nconnection: close\r\n{more}\r\n")
    };
    let files = format!("/v1/sandboxes/{sandbox}/files");
    for name in ["whole", "new", "deep/new"] {
        let raw = format!("{files}?path={name}");
        let put = upload_url(&app, &team, &sandbox, name).await;
        let parts = form(&[
            ("path", None, name.as_bytes()),
            ("file", Some("f"), &[b'x'; 4000]),
        ]);
        let kind = format!(
            "{key}content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n",
            parts.len()
        );
        let cut = &parts[..parts.len() / 2];
        let cases = [
            (
                start("POST", &raw, &format!("{key}content-length: 5000\r\n")),
                &b"only this"[..],
            ),
            (
                start(
                    "POST",
                    &raw,
                    &format!("{key}transfer-encoding: chunked\r\n"),
                ),
                &b"9\r\nonly this\r\n"[..],
            ),
            (
                start("PUT", &put, "content-length: 5000\r\n"),
                &b"only this"[..],
            ),
            (start("POST", &files, &kind), cut),
        ];
        for (head, body) in cases {
            let answer = send_and_end(&app, &head, body).await;
            assert!(!answer.starts_with("HTTP/1.1 2"), "{head}{answer}");
        }
    }
    let left = on_disk(&app.sandbox_dir(&sandbox));
    let files: BTreeSet<_> = left
        .iter()
        .filter(|n| app.sandbox_dir(&sandbox).join(n).is_file())
        .cloned()
        .collect();
    assert_eq!(files, before);
    assert_eq!(text(&app, &team, &sandbox, "whole").await, "whole");
    app.upload(&team.key, &sandbox, "new", "now whole")
        .await
        .expect(201);
    app.finish().await;
}

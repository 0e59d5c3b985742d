//! Files of a sandbox: in, out, and by an upload URL.

use super::*;

#[tokio::test]
async fn files_go_in_and_come_out() {
    let f = Fixture::with(|settings| settings.direct_upload_bytes_max = 1000).await;
    let sandbox = f.sandbox().await;
    let files = format!("/v1/sandboxes/{sandbox}/files");
    let put = async |query: &str, kind: &str, key: &str, body: String| {
        let request = Request::post(format!("{files}{query}"))
            .header("authorization", format!("Bearer {}", f.key));
        f.send(
            request
                .header("content-type", kind)
                .header("idempotency-key", key)
                .body(Body::from(body))
                .unwrap(),
        )
        .await
    };
    let raw = put("?path=a/b.txt", "text/plain", "1", "0123456789".to_owned()).await;
    assert_eq!(
        (raw.status, raw.json()),
        (201, json!({"path": "/workspace/a/b.txt", "size_bytes": 10}))
    );
    let replay = put("?path=a/b.txt", "text/plain", "1", "0123456789".to_owned()).await;
    assert_eq!(
        (
            replay.bytes,
            replay.headers["idempotency-replayed"].to_str().unwrap()
        ),
        (raw.bytes, "true")
    );
    put("?path=a/b.txt", "text/plain", "1", "other".to_owned())
        .await
        .error(409, "conflict");
    put("", "text/plain", "2", "x".to_owned())
        .await
        .error(400, "bad_request");
    put("?path=../x", "text/plain", "3", "x".to_owned())
        .await
        .error(400, "bad_request");
    put("?path=a", "text/plain", "4", "x".to_owned())
        .await
        .error(400, "bad_request");
    put("?path=large", "text/plain", "5", "x".repeat(1001))
        .await
        .error(413, "payload_too_large");

    let form = "multipart/form-data; boundary=B";
    let part = |about: &str, text: &str| {
        format!("--B\r\ncontent-disposition: form-data; {about}\r\n\r\n{text}\r\n")
    };
    let after = part("name=\"file\"; filename=\"x/c.csv\"", "a,b")
        + &part("name=\"note\"", "n")
        + &part("name=\"path\"", "data/")
        + "--B--\r\n";
    assert_eq!(
        put("", form, "6", after).await.json(),
        json!({"path": "/workspace/data/c.csv", "size_bytes": 3})
    );
    let only = part("name=\"upload\"; filename=\"d.csv\"", "") + "--B--\r\n";
    assert_eq!(
        put("", form, "7", only).await.json(),
        json!({"path": "/workspace/d.csv", "size_bytes": 0})
    );
    let several = part("name=\"x\"; filename=\"e\"", "1")
        + &part("name=\"y\"; filename=\"f\"", "2")
        + "--B--\r\n";
    put("", form, "8", several).await.error(400, "bad_request");
    let large = part("name=\"file\"; filename=\"g\"", &"x".repeat(1001)) + "--B--\r\n";
    put("", form, "9", large)
        .await
        .error(413, "payload_too_large");
    let cut = part("name=\"file\"; filename=\"h\"", "x");
    put("", form, "10", cut).await.error(400, "bad_request");

    let listed = f.get(&files).await.json();
    let names: Vec<_> = listed["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a", "d.csv", "data"]);
    f.get(&format!("{files}?path=nothing"))
        .await
        .error(404, "not_found");
    f.get(&format!("{files}?path=d.csv"))
        .await
        .error(404, "not_found");
    let content = async |range: &str| {
        f.call(
            "GET",
            &format!("{files}/content?path=a/b.txt"),
            &[("range", range)],
            Value::Null,
        )
        .await
    };
    let whole = content("").await;
    assert_eq!(
        (
            whole.status,
            whole.bytes.as_ref(),
            whole.headers["accept-ranges"].to_str().unwrap()
        ),
        (200, &b"0123456789"[..], "bytes")
    );
    let some = content("bytes=2-4").await;
    assert_eq!(
        (
            some.status,
            some.bytes.as_ref(),
            some.headers["content-range"].to_str().unwrap()
        ),
        (206, &b"234"[..], "bytes 2-4/10")
    );
    let none = content("bytes=10-").await;
    none.error(416, "range_not_satisfiable");
    assert_eq!(none.headers["content-range"], "bytes */10");

    let gone = f
        .call(
            "DELETE",
            &format!("/v1/sandboxes/{sandbox}"),
            &[],
            Value::Null,
        )
        .await;
    assert_eq!(gone.status, 204);
    f.get(&files).await.error(404, "not_found");
}

#[tokio::test]
async fn an_upload_url_is_the_permission() {
    let f = Fixture::with(|settings| settings.url_upload_bytes_max = 5).await;
    let sandbox = f.sandbox().await;
    let path = format!("/v1/sandboxes/{sandbox}/upload-urls");
    f.call("POST", &path, &[], json!({"path": "/etc/passwd"}))
        .await
        .error(400, "bad_request");
    let made = f
        .call("POST", &path, &[], json!({"path": "a b.bin"}))
        .await
        .json();
    assert_eq!(
        (&made["path"], &made["expires_in_seconds"]),
        (&json!("/workspace/a b.bin"), &json!(3600))
    );
    let url = made["upload_url"]
        .as_str()
        .unwrap()
        .strip_prefix("http://errand.example")
        .unwrap()
        .to_owned();
    let put = async |body: &'static str| {
        f.send(Request::put(&url).body(Body::from(body)).unwrap())
            .await
    };
    assert_eq!(
        put("12345").await.json(),
        json!({"path": "/workspace/a b.bin", "size_bytes": 5})
    );
    put("123456").await.error(413, "payload_too_large");
    assert_eq!(put("1").await.status, 200);
    let content = f
        .get(&format!(
            "/v1/sandboxes/{sandbox}/files/content?path=a%20b.bin"
        ))
        .await;
    assert_eq!(content.bytes.as_ref(), b"1");
    f.app.clock.advance(Duration::from_secs(3600));
    put("1").await.error(401, "unauthorized");
}

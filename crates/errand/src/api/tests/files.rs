//! Tests of uploads, downloads and upload URLs.

use super::*;

const FORM: &str = "multipart/form-data; boundary=B";

/// Uploads to a sandbox, each with its own idempotency key.
struct Uploads {
    f: Fixture,
    files: String,
}

impl Uploads {
    /// Creates a sandbox with an upload limit of 1,000 bytes.
    async fn new() -> Self {
        let f = Fixture::with(|settings| settings.direct_upload_bytes_max = 1000).await;
        let files = format!("/v1/sandboxes/{}/files", f.sandbox().await);
        Self { f, files }
    }

    async fn put(&self, query: &str, kind: &str, key: &str, body: String) -> Reply {
        let request = Request::post(format!("{}{query}", self.files))
            .header("authorization", format!("Bearer {}", self.f.key))
            .header("content-type", kind)
            .header("idempotency-key", key);
        self.f.send(request.body(Body::from(body)).unwrap()).await
    }

    async fn names(&self) -> Vec<String> {
        let listed = self.f.get(&self.files).await.json();
        let files = listed["files"].as_array().unwrap().iter();
        files
            .map(|file| file["name"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn part(about: &str, text: &str) -> String {
    format!("--B\r\ncontent-disposition: form-data; {about}\r\n\r\n{text}\r\n")
}

#[tokio::test]
async fn a_raw_body_becomes_a_file() {
    let u = Uploads::new().await;
    let raw = u
        .put("?path=a/b.txt", "text/plain", "1", "0123456789".to_owned())
        .await;
    assert_eq!(raw.status, 201);
    assert_eq!(
        raw.json(),
        json!({"path": "/workspace/a/b.txt", "size_bytes": 10})
    );
    let replay = u
        .put("?path=a/b.txt", "text/plain", "1", "0123456789".to_owned())
        .await;
    assert_eq!(replay.bytes, raw.bytes);
    assert_eq!(replay.headers["idempotency-replayed"], "true");
    u.put("?path=a/b.txt", "text/plain", "1", "other".to_owned())
        .await
        .error(409, "conflict");
    for (key, query) in [
        ("2", ""),
        ("3", "?path=../x"),
        ("4", "?path=a"),
        ("5", "?path=a/"),
    ] {
        u.put(query, "text/plain", key, "x".to_owned())
            .await
            .error(400, "bad_request");
    }
    u.put("?path=large", "text/plain", "6", "x".repeat(1001))
        .await
        .error(413, "payload_too_large");
    assert_eq!(u.names().await, ["a"]);
}

#[tokio::test]
async fn the_parts_of_a_form_may_have_any_order() {
    let u = Uploads::new().await;
    let end = "--B--\r\n";
    let after = part("name=\"file\"; filename=\"x/c.csv\"", "a,b")
        + &part("name=\"note\"", "n")
        + &part("name=\"path\"", "data/")
        + end;
    assert_eq!(
        u.put("", FORM, "1", after).await.json(),
        json!({"path": "/workspace/data/c.csv", "size_bytes": 3})
    );
    let only = part("name=\"upload\"; filename=\"d.csv\"", "") + end;
    assert_eq!(
        u.put("", FORM, "2", only).await.json(),
        json!({"path": "/workspace/d.csv", "size_bytes": 0})
    );
    let several =
        part("name=\"x\"; filename=\"e\"", "1") + &part("name=\"y\"; filename=\"f\"", "2");
    let cut = part("name=\"file\"; filename=\"h\"", "x");
    for (key, body) in [("3", several + end), ("4", cut), ("5", end.to_owned())] {
        u.put("", FORM, key, body).await.error(400, "bad_request");
    }
    let large = part("name=\"file\"; filename=\"g\"", &"x".repeat(1001)) + end;
    u.put("", FORM, "6", large)
        .await
        .error(413, "payload_too_large");
    assert_eq!(u.names().await, ["d.csv", "data"]);
}

#[tokio::test]
async fn files_are_downloaded_completely_or_in_ranges() {
    let u = Uploads::new().await;
    u.put("?path=a/b.txt", "text/plain", "1", "0123456789".to_owned())
        .await;
    for path in ["nothing", "a/b.txt"] {
        u.f.get(&format!("{}?path={path}", u.files))
            .await
            .error(404, "not_found");
    }
    let path = format!("{}/content?path=a/b.txt", u.files);
    let content = async |range: &str| {
        u.f.call("GET", &path, &[("range", range)], Value::Null)
            .await
    };
    let whole = content("").await;
    assert_eq!(
        (whole.status, whole.bytes.as_ref()),
        (200, &b"0123456789"[..])
    );
    assert_eq!(whole.headers["accept-ranges"], "bytes");
    let some = content("bytes=2-4").await;
    assert_eq!((some.status, some.bytes.as_ref()), (206, &b"234"[..]));
    assert_eq!(some.headers["content-range"], "bytes 2-4/10");
    let none = content("bytes=10-").await;
    none.error(416, "range_not_satisfiable");
    assert_eq!(none.headers["content-range"], "bytes */10");
    u.f.get(&format!("{}/content", u.files))
        .await
        .error(400, "bad_request");

    let sandbox = u.files.strip_suffix("/files").unwrap();
    let gone = u.f.call("DELETE", sandbox, &[], Value::Null).await;
    assert_eq!(gone.status, 204);
    u.f.get(&u.files).await.error(404, "not_found");
}

#[tokio::test]
async fn an_upload_url_needs_no_key() {
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

use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::net::Guard;

#[test]
fn the_kind_depends_on_the_type_and_the_charset() {
    let of = |content_type: &str, bytes: &[u8]| Kind::of(content_type, bytes);
    assert_eq!(
        of("text/html; charset=\"ISO-8859-1\"", b""),
        Some(Kind::Html(encoding_rs::WINDOWS_1252))
    );
    assert_eq!(
        of("TEXT/HTML", b"<meta charset='euc-jp'>"),
        Some(Kind::Html(encoding_rs::EUC_JP))
    );
    for text in [
        "text/csv",
        "application/json",
        "application/ld+json",
        "application/atom+xml",
    ] {
        assert_eq!(
            of(text, b""),
            Some(Kind::Text(encoding_rs::UTF_8)),
            "{text}"
        );
    }
    assert_eq!(of("image/png", b""), None);
    assert_eq!(of("application/octet-stream", &[0xff]), None);
    assert_eq!(Kind::Text(encoding_rs::WINDOWS_1252).decode(&[0xe4]), "ä");
}

#[test]
fn invalid_arguments_are_named_and_not_repeated() {
    let of = |value: Value| request_of(value.as_object().unwrap());
    assert!(
        of(json!({"url": "https://a.test/x", "headers": {"authorization": "Bearer y"}})).is_ok()
    );
    for (bad, word) in [
        (json!({}), "`url`"),
        (json!({"url": "no address"}), "`url`"),
        (json!({"url": "http://a", "headers": {"Host": "b"}}), "Host"),
        (
            json!({"url": "http://a", "headers": {"x": "s3cret\n"}}),
            "line breaks",
        ),
        (json!({"url": "http://a", "method": "POST"}), "`method`"),
    ] {
        let error = of(bad).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains("s3cret"), "{error}");
    }
    let url = Url::parse("https://me:pass@a.test/x?y=1#z").unwrap();
    assert_eq!(shown(&url), "https://a.test/x?y=1");
}

#[tokio::test]
async fn a_silent_server_times_out() {
    assert_eq!((BOUNDS.total.as_secs(), TIME_MAX.as_secs()), (30, 30));
    assert_eq!(BOUNDS.body_bytes_max, 10_000_000);
    crate::net::install_crypto_provider();
    // It accepts the connection in the kernel, and never answers.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let guard = Guard::new(true, "fetch_url.allow_private_networks");
    let mut tool = FetchUrl::new(guard.client(BOUNDS).unwrap());
    tool.time_max = Duration::from_millis(50);
    let (ids, now) = (IdGen::new([1; 32]), Timestamp::from_millis(0));
    let arguments = json!({"url": url}).as_object().unwrap().clone();
    let context = ToolContext {
        build: None,
        arguments: arguments.clone(),
        run: ids.run(now),
        call_id: "call_1".to_owned(),
        workspace: None,
        parsers: parse::Parsers::new(None).of(ids.team(now)),
        cancel: CancellationToken::new(),
        draining: CancellationToken::new(),
    };
    let outcome = tool.run(&context, arguments).await;
    assert!(
        matches!(&outcome, Outcome::Error(error) if error.code() == ToolErrorCode::TimedOut),
        "{outcome:?}"
    );
}

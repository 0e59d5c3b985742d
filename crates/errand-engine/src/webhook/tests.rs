use std::time::Duration;

use standardwebhooks::Webhook;
use wiremock::matchers::{any, body_string, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::net::{Bounds, Guard};

const BODY: &str = r#"{"id":"e1","event":"run_completed"}"#;

fn secret() -> WebhookSecret {
    WebhookSecret::generate([7; 32])
}

fn client(allow_private: bool) -> GuardedClient {
    Guard::webhooks(allow_private)
        .client(Bounds::WEBHOOK)
        .unwrap()
}

async fn receiver(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

async fn attempt(client: &GuardedClient, url: &str) -> Attempt {
    send(
        client,
        url,
        "e1",
        1_700_000_000,
        Bytes::from_static(BODY.as_bytes()),
        &secret(),
    )
    .await
}

async fn answered_with(status: u16) -> Attempt {
    let server =
        receiver(ResponseTemplate::new(status).insert_header("location", "http://127.0.0.1:1/"))
            .await;
    attempt(&client(true), &server.uri()).await
}

#[test]
fn the_signature_follows_the_specification() {
    let given = WebhookSecret::parse("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD").unwrap();
    let headers = sign(
        &given,
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1_649_367_553,
        br#"{"email":"test@example.com","username":"test_user"}"#,
    );
    assert_eq!(
        headers.unwrap()["webhook-signature"],
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="
    );
}

#[test]
fn the_specification_s_library_accepts_the_signature() {
    // The library compares the timestamp with the system's clock.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let headers = sign(
        &secret(),
        "e1",
        i64::try_from(now.as_secs()).unwrap(),
        BODY.as_bytes(),
    )
    .unwrap();
    let receiver = Webhook::new(&secret().expose()).unwrap();
    receiver.verify(BODY.as_bytes(), &headers).unwrap();

    assert!(receiver.verify(b"{}", &headers).is_err(), "another body");
    let mut renamed = headers.clone();
    renamed.insert(ID, HeaderValue::from_static("e2"));
    assert!(
        receiver.verify(BODY.as_bytes(), &renamed).is_err(),
        "another id"
    );
    let other = Webhook::new(&WebhookSecret::generate([8; 32]).expose()).unwrap();
    assert!(
        other.verify(BODY.as_bytes(), &headers).is_err(),
        "another secret"
    );
}

#[test]
fn secrets_of_any_length_sign_as_the_library_does() {
    for length in SECRET_BYTES_MIN..=SECRET_BYTES_MAX {
        let text = format!("whsec_{}", STANDARD.encode(vec![0xa5; length]));
        let headers = sign(
            &WebhookSecret::parse(&text).unwrap(),
            "e1",
            -5,
            BODY.as_bytes(),
        )
        .unwrap();
        let expected = Webhook::new(&text)
            .unwrap()
            .sign("e1", -5, BODY.as_bytes())
            .unwrap();
        assert_eq!(headers["webhook-signature"], expected, "{length} bytes");
    }
}

#[test]
fn a_secret_survives_its_text_form() {
    let text = secret().expose();
    assert!(text.starts_with("whsec_") && text.len() == 50, "{text}");
    assert_eq!(WebhookSecret::parse(&text).ok().unwrap().expose(), text);
}

#[test]
fn other_texts_are_not_secrets() {
    let encoded = |length| format!("whsec_{}", STANDARD.encode(vec![1; length]));
    let texts = [
        String::new(),
        "whsec_".into(),
        "whsec_!!!".into(),
        encoded(23),
        encoded(65),
        encoded(32).replace("whsec_", ""),
    ];
    for text in texts {
        assert_eq!(WebhookSecret::parse(&text).err(), Some(BadSecret), "{text}");
    }
    assert!(
        WebhookSecret::parse(&encoded(24)).is_ok() && WebhookSecret::parse(&encoded(64)).is_ok()
    );
}

#[test]
fn ambiguous_ids_are_refused() {
    for id in ["", "a.b", "a b", "a\nb", "é"] {
        assert_eq!(sign(&secret(), id, 1, b"x").err(), Some(BadId), "{id:?}");
    }
    assert!(sign(&secret(), "0190c1d2-7a5b-7e3f-8c1d-2b3a4c5d6e7f", 1, b"x").is_ok());
}

#[tokio::test]
async fn a_2xx_is_delivered_with_all_headers() {
    for status in [200, 201, 202, 204, 299] {
        let server = MockServer::start().await;
        let expected = sign(&secret(), "e1", 1_700_000_000, BODY.as_bytes()).unwrap();
        Mock::given(method("POST"))
            .and(path("/hook"))
            .and(body_string(BODY))
            .and(header("content-type", "application/json"))
            .and(header("webhook-id", "e1"))
            .and(header("webhook-timestamp", "1700000000"))
            .and(header(
                "user-agent",
                concat!("errand/", env!("CARGO_PKG_VERSION")),
            ))
            .respond_with(ResponseTemplate::new(status))
            .expect(1)
            .mount(&server)
            .await;
        let done = attempt(&client(true), &format!("{}/hook?token=abc", server.uri())).await;
        assert_eq!(
            (done.status, done.error, done.verdict),
            (Some(status), None, Verdict::Delivered)
        );
        // Given as a list, because the header matcher splits the expected value at commas.
        let received = server.received_requests().await.unwrap();
        assert_eq!(
            received[0].headers["webhook-signature"],
            expected["webhook-signature"]
        );
    }
}

#[tokio::test]
async fn other_statuses_are_retried() {
    for status in [300, 304, 400, 401, 404, 409, 429, 500, 502, 503] {
        let done = answered_with(status).await;
        assert_eq!((done.status, done.verdict), (Some(status), Verdict::Retry));
        assert!(done.error.unwrap().contains(&status.to_string()));
    }
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let target = receiver(ResponseTemplate::new(200)).await;
        let server =
            receiver(ResponseTemplate::new(status).insert_header("location", target.uri())).await;
        let done = attempt(&client(true), &server.uri()).await;
        assert_eq!((done.status, done.verdict), (Some(status), Verdict::Retry));
        assert!(done.error.unwrap().contains("redirects are not followed"));
        assert!(target.received_requests().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_410_response_is_final() {
    let done = answered_with(410).await;
    assert_eq!((done.status, done.verdict), (Some(410), Verdict::Gone));
    assert_eq!(
        done.error.unwrap(),
        "the receiver answered 410 Gone: it does not want this webhook any more"
    );
}

#[tokio::test]
async fn a_hanging_receiver_is_retried() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/?token=abc", silent.local_addr().unwrap());
    let bounds = Bounds {
        total: Duration::from_millis(50),
        ..Bounds::WEBHOOK
    };
    let done = attempt(&Guard::webhooks(true).client(bounds).unwrap(), &url).await;
    assert_eq!((done.status, done.verdict), (None, Verdict::Retry));
    assert_eq!(done.error.unwrap(), "127.0.0.1 did not answer within 50 ms");
    assert!(done.duration_ms >= 50);
}

#[tokio::test]
async fn an_unreachable_receiver_is_retried() {
    // Bound but not listening, so that connections are refused and no other process can take the port.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!(
        "http://u:pw@{}/path?token=abc",
        closed.local_addr().unwrap()
    );
    let done = attempt(&client(true), &url).await;
    assert_eq!((done.status, done.verdict), (None, Verdict::Retry));
    let error = done.error.unwrap();
    assert!(
        error.starts_with("cannot connect to 127.0.0.1: "),
        "{error}"
    );
    assert!(
        !error.contains("token") && !error.contains("pw") && !error.contains("path"),
        "{error}"
    );
}

#[tokio::test]
async fn private_addresses_are_not_called_unless_allowed() {
    let server = receiver(ResponseTemplate::new(200)).await;
    let port = server.address().port();
    for host in ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:7f00:1]"] {
        let done = attempt(&client(false), &format!("http://{host}:{port}/")).await;
        assert_eq!(
            (done.status, done.verdict),
            (None, Verdict::Retry),
            "{host}"
        );
        let error = done.error.unwrap();
        assert!(error.contains("webhooks.allow_private_networks"), "{error}");
    }
    assert!(server.received_requests().await.unwrap().is_empty());

    let done = attempt(&client(true), &format!("http://localhost:{port}/")).await;
    assert_eq!(done.verdict, Verdict::Delivered, "{done:?}");
}

#[tokio::test]
async fn an_unsendable_request_is_an_attempt_too() {
    let done = attempt(&client(true), "not a url").await;
    assert_eq!((done.status, done.verdict), (None, Verdict::Retry));
    assert!(done.error.unwrap().contains("not a URL"));
    let done = attempt(&client(true), "ftp://example.com/").await;
    assert!(done.error.unwrap().contains("only http and https"));
    let done = send(
        &client(true),
        "http://127.0.0.1:1/",
        "a.b",
        1,
        Bytes::new(),
        &secret(),
    )
    .await;
    assert!(done.error.unwrap().contains("without a dot"));
}

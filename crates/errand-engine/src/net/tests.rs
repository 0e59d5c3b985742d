use std::net::IpAddr;

use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;

const LOCAL: &[IpAddr] = &[IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];

fn open() -> GuardedClient {
    Guard::webhooks(true).client(Bounds::WEBHOOK).unwrap()
}

async fn get(client: &GuardedClient, url: &str) -> Result<Answer, RequestError> {
    client
        .request(
            Method::GET,
            &Url::parse(url).unwrap(),
            HeaderMap::new(),
            Bytes::new(),
        )
        .await
}

async fn server(answer: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(answer).mount(&server).await;
    server
}

async fn requests(server: &MockServer) -> usize {
    server.received_requests().await.unwrap().len()
}

#[tokio::test]
async fn a_response_is_returned_completely() {
    let server = server(
        ResponseTemplate::new(418)
            .insert_header("x-a", "b")
            .set_body_string("hello"),
    )
    .await;
    let answer = get(&open(), &server.uri()).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), &answer.body[..], answer.body_is_cut),
        (418, &b"hello"[..], false)
    );
    assert_eq!(answer.headers["x-a"], "b");
}

#[tokio::test]
async fn a_long_body_is_cut() {
    let most = Bounds::WEBHOOK.body_bytes_max;
    for (length, cut) in [(most, false), (most + 1, true), (1_000_000, true)] {
        let server = server(ResponseTemplate::new(200).set_body_bytes(vec![b'x'; length])).await;
        let answer = get(&open(), &server.uri()).await.unwrap();
        assert_eq!(
            (answer.body.len(), answer.body_is_cut),
            (length.min(most), cut),
            "{length}"
        );
    }
}

#[tokio::test]
async fn redirects_are_returned() {
    let target = server(ResponseTemplate::new(200)).await;
    let server = server(ResponseTemplate::new(302).insert_header("location", target.uri())).await;
    assert_eq!(get(&open(), &server.uri()).await.unwrap().status, 302);
    assert_eq!(requests(&target).await, 0);
}

#[tokio::test]
async fn a_password_in_the_url_becomes_basic_authentication() {
    let server = server(ResponseTemplate::new(200)).await;
    let url = format!("http://user:secret@{}/", server.address());
    get(&open(), &url).await.unwrap();
    let received = server.received_requests().await.unwrap();
    assert_eq!(
        received[0].headers["authorization"],
        "Basic dXNlcjpzZWNyZXQ="
    );
}

/// The resolved address is checked when the connection is made, not only when the URL is set.
#[tokio::test]
async fn a_name_with_a_private_address_is_refused() {
    let server = server(ResponseTemplate::new(200)).await;
    let url = format!(
        "http://hook.example.com:{}/?token=abc",
        server.address().port()
    );

    let strict =
        Guard::webhooks(false).client_resolving(Bounds::WEBHOOK, "hook.example.com", LOCAL.into());
    let error = get(&strict, &url).await.unwrap_err();
    assert!(
        matches!(&error, RequestError::Blocked(Blocked::Resolved { .. })),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("webhooks.allow_private_networks"),
        "{error}"
    );
    assert_eq!(requests(&server).await, 0);

    let open =
        Guard::webhooks(true).client_resolving(Bounds::WEBHOOK, "hook.example.com", LOCAL.into());
    assert_eq!(get(&open, &url).await.unwrap().status, 200);
    assert_eq!(requests(&server).await, 1);
}

#[tokio::test]
async fn literal_private_addresses_are_refused_before_sending() {
    let server = server(ResponseTemplate::new(200)).await;
    let strict = Guard::webhooks(false).client(Bounds::WEBHOOK).unwrap();
    for host in ["127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]"] {
        let error = get(
            &strict,
            &format!("http://{host}:{}/", server.address().port()),
        )
        .await
        .unwrap_err();
        assert!(
            matches!(&error, RequestError::Blocked(_)),
            "{host}: {error:?}"
        );
    }
    assert_eq!(requests(&server).await, 0);
}

#[tokio::test]
async fn errors_contain_only_the_host_of_the_address() {
    // Bound but not listening, so that connections are refused and no other process can take the port.
    let closed = tokio::net::TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = closed.local_addr().unwrap().port();
    let client =
        Guard::webhooks(true).client_resolving(Bounds::WEBHOOK, "a.example.com", LOCAL.into());

    let refused = get(
        &client,
        &format!("http://u:pw@a.example.com:{port}/path?token=abc"),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(&refused, RequestError::Connect { .. }),
        "{refused:?}"
    );
    let unknown = get(
        &client,
        &format!("http://u:pw@b.example.com:{port}/path?token=abc"),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(&unknown, RequestError::Resolve { .. }),
        "{unknown:?}"
    );
    for error in [refused, unknown] {
        let all = format!("{} {error:?}", error_chain(&error));
        assert!(all.contains("example.com"), "{all}");
        assert!(
            !all.contains("token") && !all.contains("path") && !all.contains("pw"),
            "{all}"
        );
    }
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    // The kernel accepts connections, but no program ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bounds = Bounds {
        total: Duration::from_millis(50),
        ..Bounds::WEBHOOK
    };
    let client = Guard::webhooks(true).client(bounds).unwrap();
    let error = get(
        &client,
        &format!("http://{}/", silent.local_addr().unwrap()),
    )
    .await
    .unwrap_err();
    assert!(
        matches!(&error, RequestError::TimedOut { within_ms: 50, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn https_requires_a_trusted_certificate() {
    let server = server(ResponseTemplate::new(200)).await;
    let client =
        Guard::webhooks(true).client_resolving(Bounds::WEBHOOK, "a.example.com", LOCAL.into());
    let error = get(
        &client,
        &format!("https://a.example.com:{}/", server.address().port()),
    )
    .await
    .unwrap_err();
    assert!(matches!(&error, RequestError::Connect { .. }), "{error:?}");
    assert_eq!(requests(&server).await, 0);
}

#[test]
fn the_crypto_provider_may_be_installed_twice() {
    install_crypto_provider();
    install_crypto_provider();
    assert!(rustls::crypto::CryptoProvider::get_default().is_some());
}

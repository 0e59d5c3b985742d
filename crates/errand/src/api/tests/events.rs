//! Tests of event streams.

use super::*;

#[tokio::test]
async fn events_are_streamed_to_the_end() {
    let f = Fixture::new().await;
    let agent = f.agent().await;
    let run = f
        .call(
            "POST",
            "/v1/runs",
            &[],
            json!({"agent_id": agent, "message": "Hello"}),
        )
        .await
        .json()["run"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/v1/runs/{run}/events");
    let request = Request::get(&path)
        .header("authorization", format!("Bearer {}", f.key))
        .body(Body::empty())
        .unwrap();
    let response = f.router.clone().oneshot(request).await.unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "text/event-stream"
    );
    let mut stream = response.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("event: run.updated\n") {
        text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(
        text.starts_with("id: 1\nevent: message.created\n"),
        "{text}"
    );
    assert!(text.contains("\"text_content\":\"Hello\"") && text.contains(&run));
    assert_eq!(
        f.call("POST", &format!("/v1/runs/{run}/stop"), &[], Value::Null)
            .await
            .status,
        200
    );
    while let Some(part) = stream.next().await {
        text.push_str(std::str::from_utf8(&part.unwrap()).unwrap());
    }
    let end = text.rsplit("event: end\ndata: ").next().unwrap();
    let end: Value = serde_json::from_str(end).unwrap();
    assert_eq!(end["run_id"], run, "{text}");
    let last = text.matches("id: ").count().to_string();
    assert_eq!(
        f.get(&format!("{path}?after={last}")).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        f.call(
            "GET",
            &format!("{path}?after=0"),
            &[("last-event-id", &last)],
            Value::Null
        )
        .await
        .status,
        204
    );
    assert_eq!(
        f.get(&format!("{path}?after=1"))
            .await
            .bytes
            .windows(4)
            .filter(|w| w == b"id: ")
            .count()
            .to_string(),
        (last.parse::<usize>().unwrap() - 1).to_string()
    );
    f.get(&format!("{path}?after=99"))
        .await
        .error(400, "bad_request");
    f.call("GET", &path, &[("last-event-id", "x")], Value::Null)
        .await
        .error(400, "bad_request");
}

#[tokio::test]
async fn a_stream_ends_with_its_key_and_with_the_server() {
    let f = Fixture::new().await;
    let agent = f.agent().await;
    let run = f
        .call("POST", "/v1/runs", &[], json!({"agent_id": agent}))
        .await
        .json()["run"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let made = f
        .call("POST", "/v1/api-keys", &[], json!({"name": "short"}))
        .await
        .json();
    let open = async |key: &str| {
        let request = Request::get(format!("/v1/runs/{run}/events"))
            .header("authorization", format!("Bearer {key}"));
        let mut stream = f
            .router
            .clone()
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap()
            .into_body()
            .into_data_stream();
        assert!(stream.next().await.is_some());
        stream
    };
    let (of_revoked, of_server) = (
        open(made["key"].as_str().unwrap()).await,
        open(&f.key).await,
    );
    let path = format!("/v1/api-keys/{}", made["id"].as_str().unwrap());
    assert_eq!(f.call("DELETE", &path, &[], Value::Null).await.status, 204);
    let woken = async {
        f.call(
            "POST",
            &format!("/v1/runs/{run}/messages"),
            &[],
            json!({"message": "x"}),
        )
        .await
    };
    let (rest, message) = tokio::join!(of_revoked.collect::<Vec<_>>(), woken);
    assert_eq!(message.status, 201);
    let rest: Vec<u8> = rest.into_iter().flat_map(|part| part.unwrap()).collect();
    assert!(
        !String::from_utf8(rest)
            .unwrap()
            .contains("\"text_content\":\"x\""),
        "a revoked key hears nothing more"
    );
    f.app.draining.cancel();
    of_server.collect::<Vec<_>>().await;
    f.get("/v1/agents").await.error(503, "unavailable");
    f.send(without_key("GET", "/readyz"))
        .await
        .error(503, "unavailable");
    assert_eq!(f.send(without_key("GET", "/healthz")).await.status, 200);
}

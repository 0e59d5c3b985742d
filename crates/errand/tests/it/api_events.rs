//! The events of a run, as a client receives them over a real socket.

use std::time::Duration;

use errand_testkit::{Held, Team, TestApp};
use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::api_runs::{NOBODY, echo, waiting};

/// An upper bound, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// An item of a stream: an event, or a comment (which has no kind).
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Item {
    pub(crate) id: Option<u64>,
    pub(crate) kind: String,
    pub(crate) data: Value,
}

/// The client's end of a stream.
pub(crate) struct Stream {
    response: Response,
    text: String,
}

impl Stream {
    /// The next item. `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Item> {
        tokio::time::timeout(PATIENCE, self.read())
            .await
            .expect("the stream gives something, or ends")
    }

    async fn read(&mut self) -> Option<Item> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let item = parse(block);
                self.text = rest.to_owned();
                return Some(item);
            }
            // A stream ends properly, between two events.
            let Some(chunk) = self
                .response
                .chunk()
                .await
                .expect("a stream that is not cut off")
            else {
                assert_eq!(self.text, "");
                return None;
            };
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn take(&mut self, n: usize) -> Vec<Item> {
        let mut items = Vec::new();
        for _ in 0..n {
            items.push(self.next().await.expect("one more event"));
        }
        items
    }

    /// All remaining items until the stream closes.
    pub(crate) async fn rest(mut self) -> Vec<Item> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await {
            items.push(item);
        }
        items
    }
}

fn parse(block: &str) -> Item {
    let mut item = Item::default();
    for line in block.lines() {
        let (field, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("a line of an event: {line:?}"));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => {}
            "id" => item.id = Some(value.parse().unwrap()),
            "event" => value.clone_into(&mut item.kind),
            "data" => item.data = serde_json::from_str(value).unwrap(),
            other => panic!("a field {other} of an event"),
        }
    }
    item
}

fn client() -> Client {
    Client::builder().build().unwrap()
}

/// Requests the events of a run. `from`: query of the path; `last`: the header `Last-Event-ID`.
async fn ask(app: &TestApp, key: &str, run: &str, from: &str, last: Option<&str>) -> Response {
    let request = client()
        .get(format!("{}/v1/runs/{run}/events{from}", app.url()))
        .bearer_auth(key);
    let request = match last {
        Some(last) => request.header("last-event-id", last),
        None => request,
    };
    request.send().await.unwrap()
}

pub(crate) async fn open(app: &TestApp, key: &str, run: &str, last: Option<u64>) -> Stream {
    let last = last.map(|last| last.to_string());
    let response = ask(app, key, run, "", last.as_deref()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Stream {
        response,
        text: String::new(),
    }
}

fn ids(items: &[Item]) -> Vec<u64> {
    items.iter().filter_map(|item| item.id).collect()
}

fn kinds(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.kind.as_str()).collect()
}

/// Asserts that an event contains an object as `GET` returns it.
#[track_caller]
fn assert_tells(item: &Item, run: &str, object: &Value) {
    assert_eq!(item.data["run_id"], run);
    assert!(item.data["created_at"].is_string(), "{item:?}");
    for (name, value) in object.as_object().unwrap() {
        assert_eq!(item.data[name], *value, "{name} of {item:?}");
    }
}

/// A run that waited for an approval, received it, and ended.
async fn ended(app: &TestApp, team: &Team) -> String {
    let (run, _) = waiting(app, team).await;
    app.answer(team, &run, json!({"approved": true})).await;
    app.settle().await;
    run
}

#[tokio::test]
async fn a_stream_tells_the_whole_of_an_ended_run_and_closes() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = ended(&app, &team).await;
    let items = open(&app, &team.key, &run, None).await.rest().await;
    let (end, told) = items.split_last().unwrap();
    assert_eq!(
        ids(told),
        (1..=told.len() as u64).collect::<Vec<_>>(),
        "numbered from 1, without a gap"
    );
    assert_eq!(end.kind, "end");
    assert_tells(end, &run, &json!({}));

    let messages = app.messages(&team, &run).await;
    let of = |kind: &str| {
        told.iter()
            .filter(|item| item.kind == kind)
            .cloned()
            .collect::<Vec<_>>()
    };
    let created = of("message.created");
    assert_eq!(created.len(), messages.len());
    for (item, message) in created.iter().zip(&messages) {
        assert_tells(item, &run, message);
    }
    let statuses: Vec<_> = of("run.updated")
        .iter()
        .map(|item| item.data["status"].as_str().unwrap().to_owned())
        .collect();
    let mut once = statuses.clone();
    once.dedup();
    assert_eq!(
        once,
        ["pending", "starting", "waiting", "running", "completed"]
    );
    assert_tells(
        of("run.updated").last().unwrap(),
        &run,
        &app.get_run(&team, &run).await["run"],
    );
    let (created, closed) = (of("human_request.created"), of("human_request.closed"));
    assert_eq!((created.len(), closed.len()), (1, 1));
    assert_tells(&created[0], &run, &messages[0]["human_request"]);
    assert_eq!(
        [&closed[0].data["response"], &closed[0].data["id"]],
        [&json!("approved"), &created[0].data["id"]]
    );
    assert_eq!(
        kinds(told).len(),
        of("run.updated").len() + messages.len() + 2,
        "and nothing else: {told:?}"
    );
    app.finish().await;
}

#[tokio::test]
async fn events_come_as_they_happen() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let Held { run, gate, .. } = app.thinking_run(&team).started().await;
    let mut stream = open(&app, &team.key, &run, None).await;
    let first = stream.next().await.unwrap();
    assert_eq!(
        (first.id, first.kind.as_str(), &first.data["status"]),
        (Some(1), "run.updated", &json!("pending"))
    );
    gate.arrival().await;
    let posted = app
        .post(
            &team.key,
            &format!("/v1/runs/{run}/messages"),
            json!({"message": "hello"}),
        )
        .await
        .expect(201);
    let told = loop {
        let item = stream.next().await.expect("the message");
        if item.kind == "message.created" {
            break item;
        }
    };
    assert_tells(&told, &run, &posted["message"]);
    for _ in 0..4 {
        gate.open();
    }
    let rest = stream.rest().await;
    assert_eq!(kinds(&rest).last(), Some(&"end"));
    assert_eq!(rest[rest.len() - 2].data["status"], "completed");
    app.finish().await;
}

#[tokio::test]
async fn a_stream_goes_on_after_the_event_that_the_client_names() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = ended(&app, &team).await;
    let all = open(&app, &team.key, &run, None).await.rest().await;
    let last = all.len() - 1;
    for known in 0..last {
        let rest = open(&app, &team.key, &run, Some(known as u64))
            .await
            .rest()
            .await;
        assert_eq!(rest, all[known..], "by Last-Event-ID {known}");
        let response = ask(&app, &team.key, &run, &format!("?after={known}"), None).await;
        let stream = Stream {
            response,
            text: String::new(),
        };
        assert_eq!(stream.rest().await, all[known..], "by after={known}");
    }
    let response = ask(&app, &team.key, &run, "?after=1", Some("3")).await;
    let stream = Stream {
        response,
        text: String::new(),
    };
    assert_eq!(
        stream.rest().await,
        all[3..],
        "a browser that reconnects sends its header to the first address"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_long_run_streams_without_a_gap() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"for_each": "{{ range(250) }}", "steps": [{"say": "{{ item }}"}]}]);
    let agent = app.playbook(&team, steps).await;
    let run = app.run(&team, json!({"agent_id": agent})).await;
    // From the middle, and again after the end.
    let live = open(&app, &team.key, &run, None).await.rest().await;
    let said = |items: &[Item]| {
        let texts = items.iter().filter(|item| item.kind == "message.created");
        let texts = texts.map(|item| item.data["text_content"].as_str().unwrap().to_owned());
        texts.collect::<Vec<_>>()
    };
    let expected: Vec<_> = (0..250).map(|n| n.to_string()).collect();
    assert_eq!(said(&live)[..250], expected);
    assert_eq!(ids(&live), (1..live.len() as u64).collect::<Vec<_>>());
    assert_eq!(open(&app, &team.key, &run, None).await.rest().await, live);
    app.finish().await;
}

#[tokio::test]
async fn a_reconnect_from_the_end_is_204() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = ended(&app, &team).await;
    let all = open(&app, &team.key, &run, None).await.rest().await;
    let last = ids(&all).last().unwrap().to_string();
    for (from, header) in [
        (String::new(), Some(last.as_str())),
        (format!("?after={last}"), None),
    ] {
        let response = ask(&app, &team.key, &run, &from, header).await;
        assert_eq!(response.status(), 204);
        assert_eq!(response.bytes().await.unwrap().len(), 0);
    }
    app.finish().await;
}

#[tokio::test]
async fn a_number_beyond_the_last_or_none_is_400() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let run = ended(&app, &team).await;
    let all = open(&app, &team.key, &run, None).await.rest().await;
    let beyond = (ids(&all).last().unwrap() + 1).to_string();
    for bad in [
        beyond.as_str(),
        "x",
        "-1",
        "1.5",
        "",
        "99999999999999999999999",
    ] {
        let by_header = ask(&app, &team.key, &run, "", Some(bad)).await;
        let by_query = ask(&app, &team.key, &run, &format!("?after={bad}"), None).await;
        for response in [by_header, by_query] {
            assert_eq!(response.status(), 400, "{bad:?}");
            assert_eq!(response.headers()["content-type"], "application/json");
            let body: Value = response.json().await.unwrap();
            assert_eq!(body["error"], "bad_request", "{bad:?}");
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn the_stream_of_a_resumed_run_continues() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = echo(&app, &team).await;
    let run = app
        .run(&team, json!({"agent_id": agent, "message": "one"}))
        .await;
    app.settle().await;
    let before = open(&app, &team.key, &run, None).await.rest().await;
    let last = *ids(&before).last().unwrap();
    app.message(&team, &run, "two").await;
    app.settle().await;
    let after = open(&app, &team.key, &run, Some(last)).await.rest().await;
    assert_eq!(ids(&after)[0], last + 1);
    let texts: Vec<_> = after
        .iter()
        .filter(|i| i.kind == "message.created")
        .map(|i| i.data["text_content"].clone())
        .collect();
    assert_eq!(texts, ["two", "heard two"]);
    app.finish().await;
}

#[tokio::test]
async fn two_streams_of_a_run_tell_the_same() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let mut streams = [
        open(&app, &team.key, &run, None).await,
        open(&app, &team.key, &run, None).await,
    ];
    let known = streams[0].take(2).await;
    assert_eq!(streams[1].take(2).await, known);
    app.answer(&team, &run, json!({"approved": true})).await;
    let [one, two] = streams;
    let (one, two) = (one.rest().await, two.rest().await);
    assert_eq!(one, two);
    assert_eq!(one.last().unwrap().kind, "end");
    app.finish().await;
}

#[tokio::test]
async fn a_crash_leaves_the_numbers_as_they_are() {
    let mut app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let mut stream = open(&app, &team.key, &run, None).await;
    let mut known = Vec::new();
    while known
        .last()
        .is_none_or(|item: &Item| item.data["status"] != "waiting")
    {
        known.push(stream.next().await.unwrap());
    }
    app.crash().await;
    drop(stream);
    let mut stream = open(&app, &team.key, &run, ids(&known).last().copied()).await;
    app.answer(&team, &run, json!({"approved": true})).await;
    known.push(stream.next().await.unwrap());
    known.extend(stream.rest().await);
    assert_eq!(
        ids(&known),
        (1..known.len() as u64).collect::<Vec<_>>(),
        "each once, none left out"
    );
    assert_eq!(open(&app, &team.key, &run, None).await.rest().await, known);
    app.finish().await;
}

#[tokio::test]
async fn a_silent_stream_shows_that_it_lives() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let mut stream = open(&app, &team.key, &run, None).await;
    // Each time the stream starts to wait, fifteen seconds pass.
    let seconds_pass = async {
        loop {
            app.clock().advance(Duration::from_secs(15));
            tokio::task::yield_now().await;
        }
    };
    let comment = async {
        while let Some(item) = stream.next().await {
            if item.kind.is_empty() {
                return item;
            }
        }
        panic!("the stream ends");
    };
    tokio::select! {
        item = comment => assert_eq!(item, Item::default()),
        () = seconds_pass => {}
    }
    app.finish().await;
}

#[tokio::test]
async fn revoking_the_key_closes_its_streams_at_once() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let made = app
        .post(&team.key, "/v1/api-keys", json!({"name": "x"}))
        .await
        .expect(201);
    let (mut revoked, mut other) = (
        open(&app, made["key"].as_str().unwrap(), &run, None).await,
        open(&app, &team.key, &run, None).await,
    );
    let known = other.take(2).await;
    assert_eq!(revoked.take(2).await, known);
    app.delete(
        &team.key,
        &format!("/v1/api-keys/{}", made["id"].as_str().unwrap()),
    )
    .await
    .expect(204);
    // The clock does not advance, and nothing happens to the run.
    let rest = revoked.rest().await;
    assert!(
        !kinds(&rest).contains(&"end"),
        "the run has not ended: {rest:?}"
    );
    app.answer(&team, &run, json!({"approved": true})).await;
    assert_eq!(
        other.rest().await.last().unwrap().kind,
        "end",
        "another key's stream goes on"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_stream_closes_when_the_creator_of_its_key_is_removed() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (user, key) = app
        .person(&team, "ann@acme.example", errand_core::role::Role::Member)
        .await;
    let (run, _) = waiting(&app, &team).await;
    let mut stream = open(&app, &key, &run, None).await;
    stream.take(2).await;
    app.store()
        .remove_member(team.id, user, errand_core::role::Role::Owner)
        .await
        .unwrap();
    app.answer(&team, &run, json!({"approved": true})).await;
    let rest = stream.rest().await;
    assert!(
        rest.iter()
            .all(|item| item.kind != "end" && item.kind != "human_request.closed"),
        "it hears no more: {rest:?}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_server_stop_ends_a_stream_without_an_end_event() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let (run, _) = waiting(&app, &team).await;
    let mut stream = open(&app, &team.key, &run, None).await;
    stream.take(1).await;
    let (rest, ()) = tokio::join!(stream.rest(), app.finish());
    assert!(!kinds(&rest).contains(&"end"), "{rest:?}");
}

#[tokio::test]
async fn a_stream_that_is_refused_is_refused_in_the_documented_form() {
    let app = TestApp::start().await;
    let (team, other) = (app.team("acme").await, app.team("other").await);
    let (run, _) = waiting(&app, &team).await;
    for (key, run, status, code) in [
        ("dv_wrong", run.as_str(), 401, "unauthorized"),
        (&other.key, &run, 404, "not_found"),
        (&team.key, NOBODY, 404, "not_found"),
    ] {
        let response = ask(&app, key, run, "", None).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.json::<Value>().await.unwrap()["error"], code);
    }
    app.finish().await;
}

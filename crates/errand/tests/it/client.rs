//! The Rust client (`errand-client`) against the real server.

use errand_client::{
    Answer, Client, DeliveriesOf, Error, ErrorCode, EventBody, FileContent, FileKind, Message,
    MessageKind, NewMessage, NewRun, NewWebhook, PageRequest, RetryPolicy, Run, RunFilter, RunId,
    RunStatus, WebhookEvent,
};
use errand_testkit::{Team, TestApp};
use futures::{TryStreamExt as _, stream};
use serde_json::json;

fn client(app: &TestApp, team: &Team) -> Client {
    Client::new(app.url(), &team.key).unwrap()
}

#[tokio::test]
async fn a_run_is_started_answered_and_followed_by_the_client() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let steps = json!([{"approve": {"title": "Pay?"}}, {"finish": "done"}]);
    let agent = app.playbook(&team, steps).await;
    let client = client(&app, &team);

    let new = NewRun::of(agent).message("Go.");
    let run = client.start_run(&new).await.unwrap().id.clone();
    let asking = client.wait(&run).await.unwrap();
    assert_eq!(asking.run.status, RunStatus::Waiting);
    let request = asking.into_value().pending_human_request.unwrap();
    assert_eq!(request.title, "Pay?");

    let mut events = client.events(&run);
    let mut names = Vec::new();
    loop {
        let event = events.next().await.unwrap().unwrap();
        if let EventBody::HumanRequestCreated(seen) = event.body().unwrap() {
            assert_eq!(seen.id, request.id);
            break;
        }
        names.push(event.name);
    }
    assert!(names.iter().any(|name| name == "message.created"));

    let answer = Answer::approve().reason("fine");
    let answered = client.respond(&run, &request.id, &answer).await.unwrap();
    assert_eq!(answered.reason.as_deref(), Some("fine"));
    let ended = client.wait(&run).await.unwrap();
    assert_eq!(ended.run.status, RunStatus::Completed);

    // After the stored number, nothing is missing and nothing comes twice.
    let mut rest = client.events_after(&run, events.last().unwrap());
    let mut last = None;
    while let Some(event) = rest.next().await.unwrap() {
        assert!(event.id > events.last());
        if let EventBody::RunUpdated(run) = event.body().unwrap() {
            last = Some(run.status);
        }
    }
    assert_eq!(last, Some(RunStatus::Completed));

    let messages: Vec<Message> = client.all_messages(&run).try_collect().await.unwrap();
    let kinds: Vec<_> = messages.iter().map(|message| &message.kind).collect();
    assert_eq!(kinds.first(), Some(&&MessageKind::Text));
    assert!(kinds.contains(&&MessageKind::HumanRequest));
    assert!(kinds.contains(&&MessageKind::HumanResponse));

    let late = client
        .respond(&run, &request.id, &answer)
        .await
        .unwrap_err();
    assert!(late.is_code(&ErrorCode::BadRequest), "{late}");
    let nowhere = RunId::from("0193b0e2-0000-7000-8000-000000000000");
    let error = client.run(&nowhere).await.unwrap_err();
    assert!(error.is_not_found() && error.as_api().unwrap().request_id.is_some());
    app.finish().await;
}

#[tokio::test]
async fn a_keyed_call_takes_effect_once_and_lists_are_read_to_the_end() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let agent = app.playbook(&team, json!([{"finish": "done"}])).await;
    let client = client(&app, &team);
    let new = NewRun::of(agent);
    let keyed = client.with_idempotency_key("order-17").unwrap();
    let first = keyed.start_run(&new).await.unwrap();
    let again = keyed.start_run(&new).await.unwrap();
    assert_eq!(first.text, again.text);
    assert!(!first.is_replay && again.is_replay);
    for _ in 0..100 {
        client.start_run(&new).await.unwrap();
    }
    app.settle().await;
    let all: Vec<Run> = client
        .all_runs(&RunFilter::new())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(all.len(), 101);
    assert_eq!(all.last().unwrap().id, first.id);
    let filter = RunFilter::new();
    let page = client.runs(&filter, PageRequest::of(2).offset(100));
    let page = page.await.unwrap().into_value();
    assert_eq!((page.items.len(), page.total), (1, 101));
    let failed = RunFilter::new().status(RunStatus::Failed);
    let failed = client.runs(&failed, PageRequest::default()).await.unwrap();
    assert_eq!(failed.total, 0);

    client
        .post_message(&first.id, &NewMessage::of("More."))
        .await
        .unwrap();
    app.settle().await;
    app.finish().await;
}

#[tokio::test]
async fn files_go_to_a_sandbox_and_back() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let client = client(&app, &team);
    let sandbox = client.create_sandbox().await.unwrap().sandbox_id.clone();
    // One byte more than the API accepts directly: the client must know the same limit.
    let most = usize::try_from(errand_core::limits::DIRECT_UPLOAD_BYTES_MAX).unwrap();
    for (path, size) in [
        ("/workspace/in/small", most),
        ("/workspace/in/large", most + 1),
    ] {
        let uploaded = client.upload(&sandbox, path, vec![7; size]).await.unwrap();
        assert_eq!(uploaded.path, path);
        let file = client.download(&sandbox, path).await.unwrap();
        assert_eq!(file.size_bytes(), Some(size as u64));
        assert_eq!(file.into_bytes().await.unwrap().len(), size);
    }
    let pieces = stream::iter(["a", "b\n"].map(Ok::<_, std::io::Error>));
    let content = FileContent::stream(3, pieces);
    client
        .upload(&sandbox, "/workspace/text", content)
        .await
        .unwrap();
    let text = client.download(&sandbox, "text").await.unwrap();
    assert_eq!(text.into_bytes().await.unwrap(), b"ab\n");
    let list = client.files(&sandbox, "/workspace").await.unwrap();
    let kinds: Vec<_> = list
        .files
        .iter()
        .map(|file| (&*file.name, &file.kind))
        .collect();
    assert_eq!(kinds, [("in", &FileKind::Dir), ("text", &FileKind::File)]);

    client.delete_sandbox(&sandbox).await.unwrap();
    let error = client.files(&sandbox, "/workspace").await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    app.finish().await;
}

#[tokio::test]
async fn webhooks_and_their_deliveries_are_managed_by_the_client() {
    let app = TestApp::start().await;
    let team = app.team("acme").await;
    let client = client(&app, &team);
    let new = NewWebhook::of("https://example.com/hook")
        .event(WebhookEvent::RunFailed)
        .description("for the client");
    let webhook = client.create_webhook(&new).await.unwrap().into_value();
    assert_eq!(webhook.events, [WebhookEvent::RunFailed]);
    let listed: Vec<_> = client.all_webhooks().try_collect().await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&webhook));
    let deliveries = client.deliveries(DeliveriesOf::Webhook(&webhook.id), PageRequest::of(5));
    assert_eq!(deliveries.await.unwrap().total, 0);
    client.delete_webhook(&webhook.id).await.unwrap();

    let secret = client.webhook_secret().await.unwrap().secret.clone();
    let rolled = client.roll_webhook_secret().await.unwrap();
    assert_ne!(rolled.secret.as_ref(), Some(&secret));
    assert_eq!(rolled.retired.len(), 1);
    app.finish().await;
}

#[tokio::test]
async fn a_wrong_key_is_refused_without_a_retry() {
    let app = TestApp::start().await;
    let key = format!("dv_{}", "0".repeat(32));
    let client = Client::builder(app.url(), &key)
        .retry(RetryPolicy::default())
        .build()
        .unwrap();
    let error = client.create_sandbox().await.unwrap_err();
    assert!(error.is_code(&ErrorCode::Unauthorized), "{error}");
    assert!(matches!(error, Error::Api(_)));
    app.finish().await;
}

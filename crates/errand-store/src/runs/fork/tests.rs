use errand_core::run::RunSource;
use errand_core::tool_error::ToolErrorCode;
use errand_core::transcript::Outcome;

use super::*;
use crate::AuditScope;
use crate::audit::fixture::Runs;
use crate::runs::queries::entries_from;

fn fork_of(runs: &Runs, run: RunId, after: Option<MessageId>, message: Option<&str>) -> ForkRun {
    ForkRun {
        team: runs.f.team,
        run,
        id: runs.f.ids.run(runs.now),
        after,
        build: None,
        source: RunSource::Api,
        webhook_url: None,
        human_request_webhook_url: None,
        untrusted: false,
        message: message.map(|text| (runs.f.ids.message(runs.now), text.to_owned())),
        by: runs.f.owner.into(),
        api_key: None,
        sandbox: None,
        sandbox_ttl_ms: 1_000,
        expected_build: None,
        now: runs.now,
    }
}

async fn make(runs: &Runs, mut fork: ForkRun) -> Result<RunView> {
    let store = &runs.f.store;
    let build = store.build_of_fork(fork.team, fork.run, fork.build).await;
    let usable = build.ok().map(|build| build.usable());
    fork.expected_build = fork.expected_build.or(usable);
    let made = runs.f.store.fork(fork, Idempotent::not_recorded()).await;
    made.and_then(crate::idempotency::Outcome::executed)
}

async fn entries(runs: &Runs, run: RunId) -> Vec<Entry> {
    let read = runs
        .f
        .store
        .read(move |conn| entries_from(conn, run, 0))
        .await;
    read.unwrap()
}

#[tokio::test]
async fn wherever_a_fork_cuts_it_is_well_formed_and_nothing_else_changes() {
    let runs = Runs::new().await;
    let (waiting, _) = runs.waiting().await;
    let (at_work, _) = runs.at_work().await;
    for run in [
        waiting,
        at_work,
        runs.completed().await,
        runs.failed().await,
        runs.interrupted().await,
    ] {
        let before = (
            format!("{:?}", runs.row(run).await),
            entries(&runs, run).await,
        );
        for entry in before.1.iter().filter(|entry| entry.body.is_shown()) {
            for message in [None, Some("Go on.")] {
                let fork = fork_of(&runs, run, Some(entry.id), message);
                let id = fork.id;
                let ends = matches!(entry.body, Body::Assistant { ends: true, .. });
                match make(&runs, fork).await {
                    Err(StoreError::Invalid { field, .. }) => {
                        assert!(ends && message.is_none() && field == "after_message");
                        continue;
                    }
                    made => {
                        assert!(!ends || message.is_some());
                        let made = made.unwrap().run;
                        assert_eq!(made.usage, errand_core::wire::UsageBody::default());
                    }
                }
                assert_eq!(runs.findings(id).await, [], "after {entry:?}");
                let taken = entries(&runs, id).await;
                let same = taken.iter().zip(&before.1).filter(|(new, old)| {
                    // Requests have new ids.
                    new.body == old.body
                        || std::mem::discriminant(&new.body) == std::mem::discriminant(&old.body)
                });
                assert!(same.count() as u64 >= entry.position);
                let last = taken.iter().rev().find(|entry| entry.body.is_shown());
                if message.is_some() {
                    assert!(
                        matches!(&last.unwrap().body, Body::User { text, .. } if text == "Go on.")
                    );
                }
            }
        }
        let after = (
            format!("{:?}", runs.row(run).await),
            entries(&runs, run).await,
        );
        assert_eq!(after, before);
    }
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn a_call_that_the_cut_leaves_open_was_not_run() {
    let runs = Runs::new().await;
    let run = runs.completed().await;
    let whole = entries(&runs, run).await;
    let call = whole
        .iter()
        .find(|entry| matches!(entry.body, Body::ToolCall { .. }))
        .unwrap();
    let fork = fork_of(&runs, run, Some(call.id), None);
    let id = fork.id;
    make(&runs, fork).await.unwrap();
    let taken = entries(&runs, id).await;
    let closed = &taken[usize::try_from(call.position).unwrap()].body;
    assert!(
        matches!(closed, Body::ToolResult { outcome: Outcome::Error(error), .. } if error.code() == ToolErrorCode::NotRun),
        "{closed:?}"
    );
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_makes_nothing() {
    let runs = Runs::new().await;
    let run = runs.completed().await;
    let other = entries(&runs, runs.failed().await).await.remove(0).id;
    let whole = entries(&runs, run).await;
    let note = whole.iter().find(|entry| !entry.body.is_shown()).unwrap();
    let invalid = |made: Result<RunView>, name: &str| matches!(made, Err(StoreError::Invalid { field, .. }) if field == name);
    let fork = |after| fork_of(&runs, run, after, Some("x"));
    assert!(invalid(
        make(&runs, fork(Some(other))).await,
        "after_message"
    ));
    assert!(invalid(
        make(&runs, fork(Some(note.id))).await,
        "after_message"
    ));
    let foreign = ForkRun {
        build: Some(runs.f.ids.build(runs.now)),
        ..fork(None)
    };
    assert!(invalid(make(&runs, foreign).await, "build"));
    let unable = ForkRun {
        expected_build: Some(CheckedBuild {
            id: runs.row(run).await.build,
            problem: Some("no such model".to_owned()),
        }),
        ..fork(None)
    };
    assert!(invalid(make(&runs, unable).await, "build"));
    let theirs = ForkRun {
        team: runs.f.other_team,
        ..fork(None)
    };
    assert!(matches!(
        make(&runs, theirs).await,
        Err(StoreError::NotFound)
    ));
    runs.f.sql("UPDATE agents SET deleted_at = 1").await;
    assert!(matches!(
        make(&runs, fork(None)).await,
        Err(StoreError::Refused(_))
    ));
    let total: i64 = runs
        .f
        .store
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM runs", [], |row| row.get(0))?))
        .await
        .unwrap();
    assert_eq!(total, 2);
}

#[tokio::test]
async fn a_fork_holds_the_sandbox_that_was_filled_for_it() {
    let runs = Runs::new().await;
    let run = runs.completed().await;
    let sandbox = runs.f.ids.sandbox(runs.now);
    let fork = ForkRun {
        sandbox: Some(sandbox.clone()),
        webhook_url: Some("http://127.0.0.1/mine".to_owned()),
        ..fork_of(&runs, run, None, Some("x"))
    };
    let id = fork.id;
    let made = make(&runs, fork).await.unwrap();
    assert_eq!(made.run.sandbox_id, Some(sandbox.to_string()));
    let row = runs.row(id).await;
    assert_eq!(row.webhook_url.as_deref(), Some("http://127.0.0.1/mine"));
    assert_eq!(
        row.human_webhook_url, None,
        "the URLs of the forked run are not copied"
    );
    runs.claim(id).await;
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

use super::*;
use crate::audit::fixture::Runs;
use crate::idempotency::Idempotent;

#[tokio::test]
async fn a_run_starts_only_of_the_checked_build() {
    let runs = Runs::new().await;
    let store = &runs.f.store;
    let live = store.live_build(runs.f.team, runs.agent).await.unwrap();
    let changes = runs.f.changes().await;
    let other = CheckedBuild {
        id: runs.f.ids.build(runs.now),
        problem: None,
    };
    for expected_build in [None, Some(other)] {
        let mut start = runs.new_start(None).await;
        start.expected_build = expected_build;
        let refused = store.start_run(start, Idempotent::not_recorded()).await;
        assert!(
            matches!(refused, Err(StoreError::BuildChanged { build }) if build == live.id),
            "{refused:?}"
        );
    }
    let mut start = runs.new_start(None).await;
    start.expected_build = Some(CheckedBuild {
        id: live.id,
        problem: Some("no such model".to_owned()),
    });
    let refused = store.start_run(start, Idempotent::not_recorded()).await;
    assert!(
        matches!(&refused, Err(StoreError::Invalid { field: "agent_id", message }) if message == "no such model"),
        "{refused:?}"
    );
    assert_eq!(runs.f.changes().await, changes, "nothing was written");
    let start = runs.new_start(None).await;
    store
        .start_run(start, Idempotent::not_recorded())
        .await
        .unwrap();
}

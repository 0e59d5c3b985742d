//! The inbox, on runs of each kind.

use super::*;
use crate::audit::fixture::Runs;

#[tokio::test]
async fn a_request_is_found_open_and_closed_by_its_own_team_alone() {
    let runs = Runs::new().await;
    let (store, team) = (&runs.f.store, runs.f.team);
    let (run, request) = runs.waiting().await;
    let found = store.requests(team, vec![request.id]).await.unwrap();
    assert!(
        matches!(found.as_slice(), [FoundRequest::Open(open)] if open.run == run),
        "{found:?}"
    );
    let pending = store.pending_of(team, vec![run]).await.unwrap();
    assert_eq!(pending.get(&run).map(|one| one.id), Some(request.id));
    let since = request.created_at;
    let earlier = Timestamp::from_millis(since.as_millis() - 1);
    let new = store.open_requests_since(team, earlier, 5).await.unwrap();
    assert_eq!(new.len(), 1);
    let none = store.open_requests_since(team, since, 5).await.unwrap();
    assert!(none.is_empty(), "{none:?}");

    runs.answer(run, &request).await;
    let found = store.requests(team, vec![request.id]).await.unwrap();
    assert!(
        matches!(found.as_slice(), [FoundRequest::Closed(closed)] if closed.asked.run == run),
        "{found:?}"
    );
    assert!(store.pending_of(team, vec![run]).await.unwrap().is_empty());

    let other = runs.f.other_team;
    assert!(
        store
            .requests(other, vec![request.id])
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.asked_for(other, vec![run]).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_asked_for_is_the_newest_message_of_the_user() {
    let runs = Runs::new().await;
    let (store, team) = (&runs.f.store, runs.f.team);
    let (run, _) = runs.waiting().await;
    let before = store.asked_for(team, vec![run]).await.unwrap();
    runs.message(run).await;
    let after = store.asked_for(team, vec![run]).await.unwrap();
    let position = |all: &HashMap<RunId, AskedFor>| all.get(&run).map(|asked| asked.position);
    assert!(position(&after) > position(&before), "{after:?}");
    let asked = after.get(&run).unwrap();
    assert!(matches!(asked.body, Body::User { .. }), "{asked:?}");
}

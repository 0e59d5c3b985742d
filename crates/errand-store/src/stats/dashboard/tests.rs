//! Queries for the web pages, on runs of each kind.

use errand_core::id::UserId;

use super::*;
use crate::audit::fixture::Runs;
use crate::model::PageQuery;

const FIRST: PageQuery = PageQuery {
    limit: 10,
    offset: 0,
};

#[tokio::test]
async fn what_waits_is_counted_listed_and_gone_when_it_is_answered() {
    let runs = Runs::new().await;
    let (run, request) = runs.waiting().await;
    assert_eq!(
        runs.f.store.open_requests_count(runs.f.team).await.unwrap(),
        1
    );
    let open = runs
        .f
        .store
        .open_requests(runs.f.team, FIRST)
        .await
        .unwrap();
    assert_eq!(open.total, 1);
    let one = open.items.first().unwrap();
    assert_eq!((one.run, one.request.id), (run, request.id));
    assert!(
        runs.f
            .store
            .closed_requests(runs.f.team, 5)
            .await
            .unwrap()
            .is_empty()
    );

    runs.answer(run, &request).await;
    assert_eq!(
        runs.f.store.open_requests_count(runs.f.team).await.unwrap(),
        0
    );
    let closed = runs.f.store.closed_requests(runs.f.team, 5).await.unwrap();
    assert_eq!(closed.len(), 1);
    assert_eq!(closed.first().unwrap().asked.request.id, request.id);
}

#[tokio::test]
async fn figures_count_each_run_once() {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    let all = runs
        .f
        .store
        .list_runs(runs.f.team, crate::model::RunFilter::default(), FIRST)
        .await
        .unwrap()
        .total;
    let days = runs
        .f
        .store
        .figures_by_day(runs.f.team, Timestamp::from_millis(0))
        .await
        .unwrap();
    let counted: u64 = days
        .iter()
        .map(|day| day.completed + day.failed + day.interrupted + day.open)
        .sum();
    assert_eq!(counted, all);
    assert!(days.iter().all(|day| day.day.as_millis() % DAY_MS == 0));
    let by_status = runs.f.store.runs_by_status(runs.f.team).await.unwrap();
    assert_eq!(by_status.values().sum::<u64>(), all);
    let by_agent = runs
        .f
        .store
        .figures_by_agent(runs.f.team, Timestamp::from_millis(0))
        .await
        .unwrap();
    let ended: u64 = by_agent
        .values()
        .map(|of| of.completed + of.failed + of.interrupted)
        .sum();
    let ended_by_day: u64 = days
        .iter()
        .map(|day| day.completed + day.failed + day.interrupted)
        .sum();
    assert_eq!(ended, ended_by_day);
    assert!(by_agent.values().any(|of| of.last.is_some()));
}

#[tokio::test]
async fn a_transcript_is_read_in_parts_without_gap_or_repeat() {
    let runs = Runs::new().await;
    let run = runs.completed().await;
    let whole = runs
        .f
        .store
        .transcript(runs.f.team, run, Reach::Newest, 1000)
        .await
        .unwrap();
    assert_eq!(whole.before, 0);
    assert_eq!(whole.entries.len() as u64, whole.last);
    let mut back = Vec::new();
    let mut reach = Reach::Newest;
    loop {
        let part = runs
            .f
            .store
            .transcript(runs.f.team, run, reach, 2)
            .await
            .unwrap();
        let Some(first) = part.entries.first() else {
            break;
        };
        reach = Reach::Before(first.position);
        let before = part.before;
        back.splice(0..0, part.entries);
        if before == 0 {
            break;
        }
    }
    assert_eq!(back, whole.entries);
    let after = runs
        .f
        .store
        .transcript(runs.f.team, run, Reach::After(1), 1000)
        .await
        .unwrap();
    assert_eq!(Some(after.entries.as_slice()), whole.entries.get(1..));
    let beyond = runs
        .f
        .store
        .transcript(runs.f.team, run, Reach::After(u64::MAX), 5)
        .await
        .unwrap();
    assert!(beyond.entries.is_empty());
}

#[tokio::test]
async fn another_team_sees_nothing() {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    let run = runs.completed().await;
    let ids = errand_core::id::IdGen::new([5; 32]);
    let other = ids.team(Timestamp::from_millis(1_800_000_000_000));
    assert_eq!(runs.f.store.open_requests_count(other).await.unwrap(), 0);
    assert!(runs.f.store.runs_by_status(other).await.unwrap().is_empty());
    let refused = runs.f.store.transcript(other, run, Reach::Newest, 5).await;
    assert!(matches!(refused, Err(crate::StoreError::NotFound)));
    assert!(
        runs.f
            .store
            .emails_of(Vec::<UserId>::new())
            .await
            .unwrap()
            .is_empty()
    );
}

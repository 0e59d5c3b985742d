use std::collections::HashMap;
use std::sync::Arc;

use errand_core::id::RunId;
use uuid::Uuid;

use super::due::{DUE, IN_ORDER_MAX};
use super::*;
use crate::accounts::fixture::Fixture;
use crate::model::{DueDelivery, Lane};

const URL: &str = "https://example.com/hook";

impl Fixture {
    /// Inserts a delivery of a run's event directly. Due at once.
    async fn delivery(&self, run: RunId, sequence: u64, url: &'static str) -> i64 {
        self.delivery_for(self.team, run, sequence, url).await
    }

    async fn delivery_for(
        &self,
        team: TeamId,
        run: RunId,
        sequence: u64,
        url: &'static str,
    ) -> i64 {
        let (id, now) = (self.ids.event(self.now), self.now);
        self.store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO deliveries (delivery_id, id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at)
                     VALUES (randomblob(16), ?1, ?2, ?3, 'run_completed', ?4, ?5, ?6, ?7, 'pending', 0, ?7)",
                    params![
                        Blob(id.as_uuid()),
                        Blob(run.as_uuid()),
                        Blob(team.as_uuid()),
                        int(sequence),
                        url,
                        sequence.to_string().into_bytes(),
                        Ms(now)
                    ],
                )?;
                Ok(tx.last_insert_rowid())
            })
            .await
            .unwrap()
    }

    /// The numbers of the due deliveries.
    async fn due(&self, after_ms: u64, limit: usize, busy: &[RunId]) -> Vec<i64> {
        let mut turns = DeliveryTurns::unshared(usize::MAX);
        let lanes = busy.iter().map(|run| Lane::Run(*run, URL.to_owned()));
        turns.busy = lanes.collect();
        let due = self
            .store
            .due_deliveries(self.now.plus_ms(after_ms), limit, turns)
            .await
            .unwrap();
        due.due.iter().map(|delivery| delivery.number).collect()
    }

    async fn record(&self, number: i64, attempt: u32, end: DeliveryEnd) -> bool {
        self.store
            .record_attempt(number, failed(attempt, self.now), end)
            .await
            .unwrap()
    }

    async fn fails(&self, number: i64, attempt: u32, again_after_ms: u64) {
        assert!(
            self.record(
                number,
                attempt,
                DeliveryEnd::Again(self.now.plus_ms(again_after_ms))
            )
            .await
        );
    }

    async fn outbox_rang(&self) -> bool {
        tokio::select! {
            biased;
            () = self.store.bell().outbox() => true,
            () = std::future::ready(()) => false,
        }
    }
}

fn failed(attempt: u32, at: Timestamp) -> AttemptRow {
    AttemptRow {
        attempt,
        at,
        duration_ms: 12,
        status: Some(500),
        error: Some("no 2xx".to_owned()),
        answer: Some("Sorry.".to_owned()),
    }
}

#[tokio::test]
async fn a_due_delivery_is_given_whole() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    let number = f.delivery(run, 4, URL).await;
    let due = f
        .store
        .due_deliveries(f.now, 10, DeliveryTurns::unshared(10))
        .await
        .unwrap()
        .due;
    let row = f.store.deliveries_of(f.team, run).await.unwrap().remove(0);
    assert_ne!(row.id, Uuid::nil());
    let expected = DueDelivery {
        number,
        delivery: row.delivery,
        id: row.id,
        run: Some(run),
        team: f.team,
        receiver: "https://example.com".to_owned(),
        url: URL.to_owned(),
        body: b"4".to_vec(),
        begun_at: f.now,
        attempts: 0,
        attempts_before: 0,
    };
    assert_eq!(due, [expected]);
}

#[tokio::test]
async fn a_runs_events_go_one_at_a_time_and_in_order() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    // The order is that of the sequence numbers, not of the rows.
    let second = f.delivery(run, 2, URL).await;
    let first = f.delivery(run, 1, URL).await;
    assert_eq!(f.due(0, 10, &[]).await, [first]);
    assert_eq!(
        f.due(0, 10, &[run]).await,
        [] as [i64; 0],
        "one is in flight"
    );
    assert!(f.record(first, 1, DeliveryEnd::Delivered).await);
    assert_eq!(f.due(0, 10, &[]).await, [second]);
    assert!(f.record(second, 1, DeliveryEnd::Gone).await);
    assert_eq!(f.due(0, 10, &[]).await, [] as [i64; 0]);
}

#[tokio::test]
async fn after_its_first_failure_later_events_overtake_one() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    let (first, second, third) = (
        f.delivery(run, 1, URL).await,
        f.delivery(run, 2, URL).await,
        f.delivery(run, 3, URL).await,
    );
    f.fails(first, 1, 5).await;
    assert_eq!(
        f.due(0, 10, &[]).await,
        [second],
        "the first is not due and does not delay the others"
    );
    f.fails(second, 1, 7).await;
    assert_eq!(f.due(0, 10, &[]).await, [third]);
    assert!(f.record(third, 1, DeliveryEnd::Delivered).await);

    // Each by itself: one at a time, in the order of their due times.
    f.fails(first, 2, 9).await;
    assert_eq!(f.due(8, 10, &[]).await, [second]);
    assert_eq!(f.due(9, 10, &[]).await, [second]);
    assert!(f.record(second, 2, DeliveryEnd::Exhausted).await);
    assert_eq!(f.due(9, 10, &[]).await, [first]);
    assert_eq!(f.due(9, 10, &[run]).await, [] as [i64; 0]);
}

#[tokio::test]
async fn urls_of_a_run_do_not_wait_for_each_other() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "waiting", None).await;
    let one = f.delivery(run, 1, URL).await;
    let other = f.delivery(run, 2, "https://example.org/other").await;
    assert_eq!(f.due(0, 10, &[]).await, [one, other]);
    assert_eq!(f.due(0, 10, &[run]).await, [other], "one is in flight");
    f.fails(one, 1, 5).await;
    assert_eq!(f.due(0, 10, &[]).await, [other]);
}

#[tokio::test]
async fn runs_do_not_wait_for_each_other_and_the_limit_holds() {
    let f = Fixture::new().await;
    let (mut runs, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let run = f.run_row(f.team, "completed", None).await;
        numbers.push(f.delivery(run, 1, URL).await);
        f.delivery(run, 2, URL).await;
        runs.push(run);
    }
    assert_eq!(f.due(0, 10, &[]).await, numbers);
    assert_eq!(f.due(0, 2, &[]).await, numbers[..2]);
    assert_eq!(f.due(0, 2, &runs[..1]).await, numbers[1..]);
    assert_eq!(f.due(0, 0, &[]).await, [] as [i64; 0]);
}

#[tokio::test]
async fn one_receiver_leaves_room_for_the_others() {
    let f = Fixture::new().await;
    let mut numbers = Vec::new();
    for url in [
        "https://dead.example/a",
        "https://dead.example/b?c=d",
        "https://dead.example",
        "https://other.example/a",
    ] {
        let run = f.run_row(f.team, "completed", None).await;
        numbers.push(f.delivery(run, 1, url).await);
    }
    let due = async |turns: DeliveryTurns| {
        let due = f.store.due_deliveries(f.now, 10, turns).await.unwrap().due;
        due.iter().map(|d| d.number).collect::<Vec<_>>()
    };
    // Receivers take turns.
    assert_eq!(
        due(DeliveryTurns::unshared(2)).await,
        [numbers[0], numbers[3], numbers[1]]
    );
    let mut turns = DeliveryTurns::unshared(2);
    let dead = "https://dead.example".to_owned();
    turns.slots.take(&f.team, &dead);
    assert_eq!(due(turns.clone()).await, [numbers[3], numbers[0]]);
    // A receiver that is limited to one probe gets nothing while the probe is in flight.
    turns.receivers = Arc::new(HashMap::from([((f.team, dead), 1)]));
    assert_eq!(due(turns).await, [numbers[3]]);
}

#[tokio::test]
async fn teams_take_turns_whatever_waits_for_them() {
    let f = Fixture::new().await;
    let other = f.other_team;
    for sequence in 0..50 {
        let run = f.run_row(f.team, "completed", None).await;
        let url = format!("https://r{sequence}.example").leak();
        f.delivery(run, sequence, url).await;
    }
    let run = f.run_row(other, "completed", None).await;
    let number = f.delivery_for(other, run, 1, URL).await;
    let mut turns = DeliveryTurns::unshared(10);
    turns.slots = DeliverySlots::new(8);
    let due = f.store.due_deliveries(f.now, 8, turns).await.unwrap().due;
    assert!(due.iter().take(2).any(|due| due.number == number));
    assert_eq!(due.len(), 8);
}

#[tokio::test]
async fn the_next_moment_is_the_least_to_come() {
    let f = Fixture::new().await;
    let next = |after_ms| f.store.next_delivery_at(f.now.plus_ms(after_ms));
    assert_eq!(next(0).await.unwrap(), None);
    let run = f.run_row(f.team, "completed", None).await;
    let (first, second) = (f.delivery(run, 1, URL).await, f.delivery(run, 2, URL).await);
    assert_eq!(
        next(0).await.unwrap(),
        None,
        "due now does not count as upcoming"
    );
    f.fails(first, 1, 50).await;
    f.fails(second, 1, 20).await;
    assert_eq!(next(0).await.unwrap(), Some(f.now.plus_ms(20)));
    assert_eq!(next(20).await.unwrap(), Some(f.now.plus_ms(50)));
    assert!(f.record(second, 2, DeliveryEnd::Delivered).await);
    assert_eq!(next(0).await.unwrap(), Some(f.now.plus_ms(50)));
}

#[tokio::test]
async fn an_attempt_is_recorded_once() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    let number = f.delivery(run, 1, URL).await;
    assert!(!f.outbox_rang().await);
    f.fails(number, 1, 5).await;
    assert!(f.outbox_rang().await);

    let before = f.changes().await;
    assert!(!f.record(number, 1, DeliveryEnd::Delivered).await, "again");
    assert!(
        !f.record(number, 3, DeliveryEnd::Delivered).await,
        "one is missing"
    );
    assert!(
        !f.record(number + 1, 1, DeliveryEnd::Delivered).await,
        "there is no such delivery"
    );
    assert_eq!(f.changes().await, before);
    assert!(!f.outbox_rang().await);

    assert!(f.record(number, 2, DeliveryEnd::Delivered).await);
    assert!(
        !f.record(number, 3, DeliveryEnd::Delivered).await,
        "it has ended"
    );
    let rows = f.store.deliveries_of(f.team, run).await.unwrap();
    assert_eq!(rows[0].attempts, [failed(1, f.now), failed(2, f.now)]);
}

#[tokio::test]
async fn a_runs_deliveries_are_shown_with_their_attempts() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    assert_eq!(f.store.deliveries_of(f.team, run).await.unwrap(), []);

    let mut numbers = Vec::new();
    for sequence in 1..=5 {
        numbers.push(f.delivery(run, sequence, URL).await);
    }
    let elsewhere = f.run_row(f.team, "completed", None).await;
    f.delivery(elsewhere, 1, URL).await;
    f.fails(numbers[0], 1, 5).await;
    f.fails(numbers[0], 2, 9).await;
    for (number, end) in numbers[1..].iter().zip([
        DeliveryEnd::Delivered,
        DeliveryEnd::Gone,
        DeliveryEnd::Exhausted,
    ]) {
        assert!(f.record(*number, 1, end).await);
    }
    let rows = f.store.deliveries_of(f.team, run).await.unwrap();
    let shown: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.sequence,
                row.state.as_str(),
                row.due_at,
                row.attempts.len(),
            )
        })
        .collect();
    let expected = [
        (1, "pending", Some(f.now.plus_ms(9)), 2),
        (2, "delivered", None, 1),
        (3, "gone", None, 1),
        (4, "exhausted", None, 1),
        (5, "pending", Some(f.now), 0),
    ];
    assert_eq!(shown, expected);
    assert_eq!(
        (rows[0].event.as_str(), rows[0].url.as_str()),
        ("run_completed", URL)
    );

    let foreign = f.store.deliveries_of(f.other_team, run).await;
    assert!(matches!(foreign, Err(StoreError::NotFound)), "{foreign:?}");
    assert!(matches!(
        f.store.deliveries_of(f.team, f.ids.run(f.now)).await,
        Err(StoreError::NotFound)
    ));
}

#[tokio::test]
async fn the_index_gives_the_order() {
    let f = Fixture::new().await;
    let plan = f
        .store
        .read(|conn| {
            let mut statement =
                conn.prepare(&format!("EXPLAIN QUERY PLAN {}", DUE.replace("?1", "1")))?;
            let lines = statement
                .query_map([], |row| row.get::<_, String>(3))?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(lines.join("\n"))
        })
        .await
        .unwrap();
    assert!(
        plan.contains("deliveries_due") && plan.contains("deliveries_by_run"),
        "{plan}"
    );
    assert!(
        !plan.contains("TEMP B-TREE") && !plan.contains("SCAN"),
        "{plan}"
    );
}

#[tokio::test]
async fn the_backlog_of_one_receiver_is_not_in_the_way_of_others() {
    let f = Fixture::new().await;
    for sequence in 0..2 * IN_ORDER_MAX as u64 {
        let run = f.run_row(f.team, "completed", None).await;
        f.delivery(run, sequence, "https://slow.example.com:8443/a?b#c")
            .await;
    }
    let run = f.run_row(f.team, "completed", None).await;
    let other = f.delivery(run, 1, URL).await;
    let turns = DeliveryTurns::unshared(4);
    let due = f.store.due_deliveries(f.now, 8, turns).await.unwrap().due;
    let due: Vec<i64> = due.iter().map(|due| due.number).collect();
    assert_eq!(due, [other, 1, 2, 3, 4]);
}

#[tokio::test]
async fn a_receiver_is_scheme_host_and_port() {
    let f = Fixture::new().await;
    let urls = [
        "https://example.com",
        "https://example.com:8443/a",
        "http://example.com?x=/",
        "https://[::1]:9#a?b/c",
    ];
    for (url, expected) in urls.into_iter().zip([
        "https://example.com",
        "https://example.com:8443",
        "http://example.com",
        "https://[::1]:9",
    ]) {
        let run = f.run_row(f.team, "completed", None).await;
        let number = f.delivery(run, 1, url).await;
        let found = f.store.read(move |conn| {
            let sql = "SELECT receiver FROM deliveries WHERE number = ?1";
            Ok(conn.query_row(sql, params![number], |row| row.get::<_, String>(0))?)
        });
        assert_eq!(found.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn what_is_sent_again_during_an_attempt_is_tried_again_whatever_becomes_of_that() {
    let f = Fixture::new().await;
    let run = f.run_row(f.team, "completed", None).await;
    let number = f.delivery(run, 1, URL).await;
    let later = f.now.plus_ms(1_000);
    let again = f.store.write(move |tx| {
        tx.execute(
            "UPDATE deliveries SET resent_at = ?2, resent_after = attempts, due_at = ?2 WHERE number = ?1",
            params![number, Ms(later)],
        )?;
        Ok(())
    });
    again.await.unwrap();
    // The attempt that began before has failed, and would have been the last one.
    assert!(f.record(number, 1, DeliveryEnd::Exhausted).await);
    assert!(f.due(999, 8, &[]).await.is_empty());
    assert_eq!(f.due(1_000, 8, &[]).await, [number]);
}

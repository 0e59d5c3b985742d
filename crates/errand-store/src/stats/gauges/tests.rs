use super::*;
use crate::accounts::fixture::Fixture;
use crate::db::types::int;

impl Fixture {
    async fn by_hand(&self, sql: &'static str, run: RunId, at: Timestamp) {
        self.store
            .write(move |tx| {
                tx.execute(sql, params![Blob(run.as_uuid()), Ms(at)])?;
                Ok(())
            })
            .await
            .unwrap();
    }

    async fn delivery_of(&self, run: RunId, state: &'static str, due_at: Option<Timestamp>) {
        let (id, team, now) = (self.ids.event(self.now), self.team, self.now);
        self.store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO deliveries (delivery_id, id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at)
                     VALUES (randomblob(16), ?1, ?2, ?3, 'run_completed', 1, 'https://example.com', x'00', ?4, ?5, 0, ?6)",
                    params![
                        Blob(id.as_uuid()),
                        Blob(run.as_uuid()),
                        Blob(team.as_uuid()),
                        Ms(now),
                        state,
                        due_at.map(Ms)
                    ],
                )?;
                Ok(())
            })
            .await
            .unwrap();
    }

    async fn late(&self, after_ms: u64) -> Overdue {
        self.store
            .overdue(self.now.plus_ms(after_ms))
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn what_is_open_and_what_has_ended_is_counted() {
    let f = Fixture::new().await;
    let figures = f.store.figures(f.now).await.unwrap();
    assert_eq!(figures.open_runs, OPEN.map(|status| (status, 0)));
    assert_eq!(
        (figures.claims, figures.oldest_claim, figures.requests_open),
        (0, None, 0)
    );
    assert_eq!(figures.deliveries, Deliveries::default());
    for (team, status) in [
        (f.team, "completed"),
        (f.team, "completed"),
        (f.other_team, "completed"),
        (f.team, "failed"),
        (f.team, "pending"),
        (f.other_team, "pending"),
        (f.other_team, "waiting"),
    ] {
        f.run_row(team, status, None).await;
    }
    let run = f.run_row(f.team, "running", None).await;
    f.by_hand(
        "UPDATE runs SET claim_token = randomblob(16), claim_boot = randomblob(16), claimed_at = ?2, deadline_at = ?2 WHERE id = ?1",
        run,
        f.now,
    )
    .await;
    for (state, due_ms) in [
        ("pending", Some(5)),
        ("pending", Some(3)),
        ("pending", Some(900)),
        ("delivered", None),
        ("delivered", None),
        ("gone", None),
        ("exhausted", None),
        ("exhausted", None),
    ] {
        f.delivery_of(run, state, due_ms.map(|ms| f.now.plus_ms(ms)))
            .await;
    }
    let figures = f.store.figures(f.now.plus_ms(100)).await.unwrap();
    let open: Vec<u64> = figures.open_runs.iter().map(|(_, n)| *n).collect();
    assert_eq!(open, [2, 0, 1, 1]);
    assert_eq!(
        (
            figures.claims,
            figures.claims_of_others,
            figures.oldest_claim
        ),
        (1, 1, Some(f.now))
    );
    let expected = Deliveries {
        pending: 3,
        delivered: 2,
        gone: 1,
        exhausted: 2,
        dropped: 0,
        due_since: Some(f.now.plus_ms(3)),
    };
    assert_eq!(figures.deliveries, expected);
    let ended: Vec<u64> = f
        .store
        .ended_runs()
        .await
        .unwrap()
        .iter()
        .map(|(_, n)| *n)
        .collect();
    assert_eq!(ended, [3, 1, 0]);
}

#[tokio::test]
async fn what_is_late_is_told_from_what_is_not_yet() {
    let f = Fixture::new().await;
    let (place, timer) = (
        f.run_row(f.team, "pending", None).await,
        f.run_row(f.team, "running", None).await,
    );
    let wakes = "UPDATE runs SET wake_at = ?2, waiting_kind = CASE status WHEN 'running' THEN 'timer' ELSE 'place' END WHERE id = ?1";
    f.by_hand(wakes, place, f.now.plus_ms(10)).await;
    f.by_hand(wakes, timer, f.now.plus_ms(20)).await;
    f.delivery_of(place, "pending", Some(f.now.plus_ms(30)))
        .await;
    assert_eq!(f.late(9).await, Overdue::default());
    let one = |ms| Late {
        count: 1,
        since: Some(f.now.plus_ms(ms)),
    };
    assert_eq!(
        f.late(20).await,
        Overdue {
            places: one(10),
            timers: one(20),
            ..Overdue::default()
        }
    );
    assert_eq!(f.late(30).await.deliveries, one(30));
    // A claimed run is not late.
    f.by_hand(
        "UPDATE runs SET claim_token = randomblob(16), claimed_at = ?2 WHERE id = ?1",
        place,
        f.now,
    )
    .await;
    assert_eq!(f.late(20).await.places, Late::default());
}

#[tokio::test]
async fn the_store_knows_its_newest_moment_and_what_runs_have_written() {
    let f = Fixture::new().await;
    assert_eq!(f.store.newest_moment().await.unwrap(), Some(f.now));
    let make = async |at: Timestamp| {
        let id = f.ids.sandbox(at);
        let once = crate::Idempotent::not_recorded();
        f.store
            .create_sandbox(f.team, id.clone(), at.plus_ms(1000), at, once)
            .await
            .unwrap();
        id
    };
    let (written, read, unused) = (
        make(f.now).await,
        make(f.now).await,
        make(f.now.plus_ms(7)).await,
    );
    assert_eq!(
        f.store.newest_moment().await.unwrap(),
        Some(f.now.plus_ms(7))
    );
    for (sandbox, tool) in [(&written, "write_file"), (&read, "read_file")] {
        let run = f.run_row(f.team, "completed", Some(sandbox)).await;
        let id = f.ids.message(f.now);
        let body = format!(
            r#"{{"kind":"tool_result","call_id":"c1","name":"{tool}","outcome":{{"result":{{"a":1}}}}}}"#
        );
        let now = f.now;
        f.store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO messages (run_id, position, id, created_at, body) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![Blob(run.as_uuid()), int(1), Blob(id.as_uuid()), Ms(now), body],
                )?;
                Ok(())
            })
            .await
            .unwrap();
    }
    let mut kept = f.store.kept_sandboxes().await.unwrap();
    kept.sort();
    let mut all = vec![written.clone(), read, unused];
    all.sort();
    assert_eq!(kept, all);
    let found = f.store.written_sandboxes(all.into_iter().collect()).await;
    assert_eq!(found.unwrap(), [written]);
}

/// Scrapes read indexes only, no matter how much has ended.
#[tokio::test]
async fn counting_reads_indexes_alone() {
    let f = Fixture::new().await;
    let plans = f
        .store
        .read(|conn| {
            let mut plans = Vec::new();
            for sql in [
                "SELECT count(*) FROM runs r INDEXED BY runs_by_status WHERE r.team_id = x'00' AND r.status = 'completed'",
                "SELECT count(*), min(due_at) FILTER (WHERE due_at <= 5) FROM deliveries WHERE state = 'pending'",
                "SELECT state, count(*) FROM deliveries INDEXED BY deliveries_given_up
                 WHERE state IN ('gone', 'exhausted', 'dropped') GROUP BY state",
                "SELECT count(*) FROM human_requests WHERE closed_at IS NULL",
            ] {
                let plan: Vec<String> = conn
                    .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?
                    .query_map([], |row| row.get(3))?
                    .collect::<rusqlite::Result<_>>()?;
                plans.push(plan.join("; "));
            }
            Ok(plans)
        })
        .await
        .unwrap();
    for plan in plans {
        assert!(
            plan.contains("USING COVERING INDEX") || plan.contains("USING INDEX human_requests"),
            "{plan}"
        );
    }
}

#[tokio::test]
async fn a_schema_is_looked_at_without_making_one() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Store::schema(&dir.path().join("nowhere")).unwrap(), None);
    assert_eq!(Store::schema(dir.path()).unwrap(), None);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let f = Fixture::new().await;
    let schema = Store::schema(f.store.dir()).unwrap().unwrap();
    assert_eq!(schema.found, schema.known);
    assert!(f.store.integrity().await.unwrap().is_empty());
    assert_eq!((f.store.commits() > 0, f.store.queue()), (true, 0));
    let before = f.store.commits();
    f.store.write(|_| Ok(())).await.unwrap();
    assert_eq!(f.store.commits(), before + 1);
}

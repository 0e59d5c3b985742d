use errand_core::id::SandboxId;
use rusqlite::params;

use super::*;
use crate::accounts::fixture::Fixture;
use crate::error::StoreError;

impl Fixture {
    fn many(&self, statuses: Vec<Status>) -> ManyRuns {
        ManyRuns {
            team: self.team,
            statuses,
            agent: None,
            source: None,
            since: None,
            until: None,
            limit: 1000,
            dry_run: false,
            by: self.owner.into(),
            now: self.now,
        }
    }

    async fn pending(&self) -> RunId {
        self.run_row(self.team, "pending", None::<&SandboxId>).await
    }

    async fn status(&self, run: RunId) -> (Status, Option<String>) {
        let view = self.store.run(self.team, run).await.unwrap();
        (view.run.status, view.run.error.map(|error| error.code))
    }

    /// Gives a run a pending request that cannot be read.
    async fn spoil(&self, run: RunId) {
        let (id, team) = (self.ids.human_request(self.now), self.team);
        self.store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO human_requests (id, run_id, team_id, request, created_at) VALUES (?1, ?2, ?3, '{', 0)",
                    params![Blob(id.as_uuid()), Blob(run.as_uuid()), Blob(team.as_uuid())],
                )?;
                tx.execute(
                    "UPDATE runs SET request_id = ?1, status = 'waiting' WHERE id = ?2",
                    params![Blob(id.as_uuid()), Blob(run.as_uuid())],
                )?;
                Ok(())
            })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_run_that_cannot_be_read_holds_up_no_other_of_its_call() {
    let f = Fixture::new().await;
    let (first, bad, last) = (f.pending().await, f.pending().await, f.pending().await);
    f.spoil(bad).await;
    let alone = f
        .store
        .stop(f.team, bad, f.owner, f.now, Idempotent::not_recorded())
        .await;
    assert!(
        matches!(alone, Err(StoreError::Corrupt { .. })),
        "{alone:?}"
    );
    let done = f
        .store
        .stop_many(f.many(Vec::new()), Idempotent::not_recorded())
        .await
        .unwrap()
        .executed()
        .unwrap();
    let expected = ManyRunsDone {
        matched: 3,
        changed: 2,
        more: false,
        runs: vec![first, last],
    };
    assert_eq!(done, expected);
    assert_eq!(f.status(first).await, (Status::Interrupted, None));
    assert_eq!(f.status(last).await, (Status::Interrupted, None));
    let aside = (Status::Failed, Some("unreadable".to_owned()));
    assert_eq!(f.status(bad).await, aside);
}

#[tokio::test]
async fn the_oldest_of_several_statuses_come_first_and_only_so_many() {
    let f = Fixture::new().await;
    let mut runs = Vec::new();
    for status in ["running", "pending", "failed", "starting", "pending"] {
        runs.push(f.run_row(f.team, status, None).await);
    }
    f.run_row(f.other_team, "pending", None).await;
    let mut many = f.many(Vec::new());
    many.limit = 3;
    many.dry_run = true;
    let dry = f
        .store
        .stop_many(many.clone(), Idempotent::not_recorded())
        .await
        .unwrap()
        .executed()
        .unwrap();
    assert_eq!(dry.runs, [runs[0], runs[1], runs[3]]);
    assert!(dry.more && dry.changed == 0 && dry.matched == 3);
    assert_eq!(f.status(runs[0]).await.0, Status::Running);
    many.limit = 4;
    many.dry_run = false;
    let done = f
        .store
        .stop_many(many, Idempotent::not_recorded())
        .await
        .unwrap()
        .executed()
        .unwrap();
    assert_eq!((done.changed, done.more), (4, false));
    let failed = f
        .store
        .retry_many(f.many(vec![Status::Failed]), Idempotent::not_recorded())
        .await
        .unwrap()
        .executed()
        .unwrap();
    assert_eq!(failed.runs, [runs[2]]);
}

use errand_core::id::RunId;

use super::*;
use crate::accounts::fixture::{Fixture, assert_replayed};

/// `sandbox.ttl` in these tests.
const TTL_MS: u64 = 1000;

impl Fixture {
    async fn sandbox(&self) -> SandboxId {
        let (id, end) = (self.ids.sandbox(self.now), self.now.plus_ms(TTL_MS));
        self.store
            .create_sandbox(
                self.team,
                id.clone(),
                end,
                self.now,
                Idempotent::not_recorded(),
            )
            .await
            .unwrap();
        id
    }

    async fn serves(&self, sandbox: &SandboxId, run: Option<RunId>) {
        let sandbox = sandbox.clone();
        self.store
            .write(move |tx| {
                let run = run.map(|run| Blob(run.as_uuid()));
                tx.execute(
                    "UPDATE sandboxes SET owner_run = ?2 WHERE id = ?1",
                    params![sandbox.as_str(), run],
                )?;
                Ok(())
            })
            .await
            .unwrap();
    }

    async fn is_usable(&self, sandbox: &SandboxId, now: Timestamp) -> bool {
        match self.store.sandbox(self.team, sandbox, now).await {
            Ok(_) => true,
            Err(StoreError::NotFound) => false,
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn fate(&self, sandbox: &SandboxId) -> SandboxFate {
        let fates = self.store.sandbox_fates(vec![sandbox.clone()]).await;
        fates.unwrap()[0].1
    }

    async fn delete(&self, sandbox: &SandboxId, now: Timestamp) -> Result<()> {
        self.store
            .delete_sandbox(self.team, sandbox, now, Idempotent::not_recorded())
            .await?
            .executed()
    }
}

#[tokio::test]
async fn a_sandbox_that_a_driver_is_leaving_is_not_deleted() {
    let f = Fixture::new().await;
    let id = f.sandbox().await;
    let leaving = |claim: Option<uuid::Uuid>| {
        let (store, id) = (f.store.clone(), id.clone());
        async move {
            let act = move |tx: &crate::db::sqlite::Tx<'_>| {
                tx.execute(
                    "UPDATE sandboxes SET leaving = ?2 WHERE id = ?1",
                    params![id.as_str(), claim.map(Blob)],
                )?;
                Ok(())
            };
            store.write(act).await.unwrap();
        }
    };
    leaving(Some(uuid::Uuid::from_u128(7))).await;
    let refused = f.delete(&id, f.now).await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    leaving(None).await;
    f.delete(&id, f.now).await.unwrap();
}

#[tokio::test]
async fn a_sandbox_is_its_teams_until_it_expires() {
    let f = Fixture::new().await;
    let id = f.sandbox().await;
    let end = f.now.plus_ms(TTL_MS);
    let expected = Sandbox {
        id: id.clone(),
        team: f.team,
        created_at: f.now,
        expires_at: end,
        bytes: 0,
    };
    assert_eq!(f.store.sandbox(f.team, &id, f.now).await.unwrap(), expected);
    assert!(f.is_usable(&id, f.now.plus_ms(TTL_MS - 1)).await);
    assert!(!f.is_usable(&id, end).await);
    assert!(!f.is_usable(&f.ids.sandbox(f.now), f.now).await);
    let foreign = f.store.sandbox(f.other_team, &id, f.now).await;
    assert!(matches!(foreign, Err(StoreError::NotFound)), "{foreign:?}");
}

#[tokio::test]
async fn a_use_moves_the_end_and_never_back() {
    let f = Fixture::new().await;
    let id = f.sandbox().await;
    let (end, later) = (f.now.plus_ms(TTL_MS), f.now.plus_ms(2 * TTL_MS));
    f.store
        .touch_sandbox(f.team, &id, later, Some(4096), f.now)
        .await
        .unwrap();
    f.store
        .touch_sandbox(f.team, &id, end, None, f.now)
        .await
        .unwrap();
    assert_eq!(
        f.store
            .sandbox(f.team, &id, f.now)
            .await
            .unwrap()
            .expires_at,
        later
    );

    // What it holds is recorded with a use that knows it.
    let row = f.store.sandbox(f.team, &id, f.now).await.unwrap();
    assert_eq!(row.bytes, 4096);

    for (team, now) in [(f.other_team, f.now), (f.team, later)] {
        let touched = f
            .store
            .touch_sandbox(team, &id, later.plus_ms(9), Some(1), now)
            .await;
        assert!(matches!(touched, Err(StoreError::NotFound)), "{touched:?}");
    }
    assert_eq!(
        f.store
            .sandbox(f.team, &id, f.now)
            .await
            .unwrap()
            .expires_at,
        later
    );
}

#[tokio::test]
async fn a_repeat_makes_one_sandbox() {
    let f = Fixture::new().await;
    let make = |body| {
        f.store.create_sandbox(
            f.team,
            f.ids.sandbox(f.now),
            f.now.plus_ms(9),
            f.now,
            f.once("s", body),
        )
    };
    let (first, second) = (make(1).await.unwrap(), make(1).await.unwrap());
    let sandbox = assert_replayed(first, second);
    assert!(matches!(make(2).await, Err(StoreError::KeyReused)));
    let there = f
        .store
        .expired_sandboxes(f.now.plus_ms(9), 10)
        .await
        .unwrap();
    assert_eq!(there, [sandbox.id]);
}

#[tokio::test]
async fn a_deleted_sandbox_is_not_found_and_its_directory_not_known() {
    let f = Fixture::new().await;
    let id = f.sandbox().await;
    let foreign = f
        .store
        .delete_sandbox(f.other_team, &id, f.now, Idempotent::not_recorded())
        .await;
    assert!(matches!(foreign, Err(StoreError::NotFound)), "{foreign:?}");
    assert_eq!(f.fate(&id).await, SandboxFate::Kept);

    let delete = || f.store.delete_sandbox(f.team, &id, f.now, f.once("d", 1));
    let (first, second) = (delete().await.unwrap(), delete().await.unwrap());
    assert_replayed(first, second);
    assert!(!f.is_usable(&id, f.now).await);
    assert_eq!(f.fate(&id).await, SandboxFate::Deleted);
    let nobody = f.ids.sandbox(f.now);
    assert_eq!(f.fate(&nobody).await, SandboxFate::Unknown);
    assert!(matches!(
        f.delete(&id, f.now).await,
        Err(StoreError::NotFound)
    ));
    assert!(matches!(
        f.store
            .touch_sandbox(f.team, &id, f.now, Some(1), f.now)
            .await,
        Err(StoreError::NotFound)
    ));
    assert!(
        f.store
            .expired_sandboxes(f.now.plus_ms(TTL_MS), 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn the_run_that_it_serves_keeps_a_sandbox() {
    let f = Fixture::new().await;
    let end = f.now.plus_ms(TTL_MS);
    for status in ["pending", "starting", "running", "waiting"] {
        let id = f.sandbox().await;
        let run = f.run_row(f.team, status, Some(&id)).await;
        f.serves(&id, Some(run)).await;
        for now in [f.now, end] {
            assert!(f.is_usable(&id, now).await, "{status}");
            let deleted = f.delete(&id, now).await;
            assert!(
                matches!(deleted, Err(StoreError::Conflict(_))),
                "{status}: {deleted:?}"
            );
        }
        assert_eq!(f.store.mark_sandbox_deleted(&id, end).await.unwrap(), None);
        f.store
            .touch_sandbox(f.team, &id, end, None, end)
            .await
            .unwrap();
    }
    assert!(f.store.expired_sandboxes(end, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_run_that_waits_for_a_sandbox_keeps_it_from_deletion_only() {
    let f = Fixture::new().await;
    let (id, end) = (f.sandbox().await, f.now.plus_ms(TTL_MS));
    f.run_row(f.team, "pending", Some(&id)).await;
    assert!(matches!(
        f.delete(&id, f.now).await,
        Err(StoreError::Conflict(_))
    ));
    // A run that is resumed after the end does not bring its sandbox back, but its files stay until the run has ended.
    assert!(!f.is_usable(&id, end).await);
    assert!(matches!(
        f.delete(&id, end).await,
        Err(StoreError::NotFound)
    ));
    assert!(f.store.expired_sandboxes(end, 10).await.unwrap().is_empty());
    assert_eq!(f.store.mark_sandbox_deleted(&id, end).await.unwrap(), None);
}

#[tokio::test]
async fn a_run_that_has_ended_does_not() {
    let f = Fixture::new().await;
    let end = f.now.plus_ms(TTL_MS);
    for status in ["completed", "failed", "interrupted"] {
        let id = f.sandbox().await;
        let run = f.run_row(f.team, status, Some(&id)).await;
        f.serves(&id, Some(run)).await;
        assert!(!f.is_usable(&id, end).await);
        assert_eq!(
            f.store.expired_sandboxes(end, 10).await.unwrap(),
            std::slice::from_ref(&id)
        );
        f.delete(&id, f.now).await.unwrap();
    }
}

#[tokio::test]
async fn expired_sandboxes_go_in_order_unless_they_were_used() {
    let f = Fixture::new().await;
    let (mut ids, mut ends) = (Vec::new(), Vec::new());
    for ms in [30, 10, 20, 40] {
        let (id, end) = (f.ids.sandbox(f.now), f.now.plus_ms(ms));
        f.store
            .create_sandbox(f.team, id.clone(), end, f.now, Idempotent::not_recorded())
            .await
            .unwrap();
        ids.push(id);
        ends.push(end);
    }
    let at = f.now.plus_ms(30);
    let expired = |limit| f.store.expired_sandboxes(at, limit);
    assert_eq!(
        expired(10).await.unwrap(),
        [ids[1].clone(), ids[2].clone(), ids[0].clone()]
    );
    assert_eq!(expired(1).await.unwrap(), [ids[1].clone()]);

    // Used just before: not gone.
    f.store
        .touch_sandbox(f.team, &ids[2], ends[3], None, f.now)
        .await
        .unwrap();
    assert_eq!(
        f.store.mark_sandbox_deleted(&ids[2], at).await.unwrap(),
        None
    );
    let deleted = f.store.mark_sandbox_deleted(&ids[1], at).await.unwrap();
    assert_eq!(deleted.unwrap().id, ids[1]);
    assert_eq!(
        f.store.mark_sandbox_deleted(&ids[1], at).await.unwrap(),
        None
    );
    let nobody = f.ids.sandbox(f.now);
    assert_eq!(
        f.store.mark_sandbox_deleted(&nobody, at).await.unwrap(),
        None
    );
    assert_eq!(expired(10).await.unwrap(), [ids[0].clone()]);
    assert_eq!(f.fate(&ids[2]).await, SandboxFate::Kept);
}

#[tokio::test]
async fn a_teams_bytes_are_those_of_its_kept_sandboxes() {
    let f = Fixture::new().await;
    let (first, second, third) = (f.sandbox().await, f.sandbox().await, f.sandbox().await);
    let (foreign, nobody) = (f.ids.sandbox(f.now), f.ids.sandbox(f.now));
    let end = f.now.plus_ms(TTL_MS);
    f.store
        .create_sandbox(
            f.other_team,
            foreign.clone(),
            end,
            f.now,
            Idempotent::not_recorded(),
        )
        .await
        .unwrap();
    let sums = async || {
        let mut sums = f.store.sandbox_bytes_of_teams().await.unwrap();
        sums.sort_by_key(|(_, bytes)| *bytes);
        sums
    };
    assert_eq!(sums().await, []);

    let record = |measured: &[(&SandboxId, u64)]| {
        let measured = measured.iter().map(|(id, bytes)| ((*id).clone(), *bytes));
        f.store.record_sandbox_bytes(measured.collect())
    };
    let recorded = record(&[(&first, 5000), (&nobody, 9), (&second, 300), (&foreign, 70)]);
    // One that has no row is no error, and is not among them.
    let expected = [
        (first.clone(), 5000),
        (second.clone(), 300),
        (foreign.clone(), 70),
    ];
    assert_eq!(recorded.await.unwrap(), expected);
    assert_eq!(sums().await, [(f.other_team, 70), (f.team, 5300)]);

    f.delete(&first, f.now).await.unwrap();
    assert_eq!(sums().await, [(f.other_team, 70), (f.team, 300)]);
    // It was measured before it was deleted, and recorded after.
    assert_eq!(record(&[(&first, 5000)]).await.unwrap(), []);
    let expired = f.store.mark_sandbox_deleted(&second, end).await.unwrap();
    let expected = RecordedSandbox {
        id: second.clone(),
        team: f.team,
        bytes: 300,
    };
    assert_eq!(expired, Some(expected));
    assert_eq!(sums().await, [(f.other_team, 70)]);

    // All that are kept, also where they hold nothing, page by page.
    let mut kept = Vec::new();
    let mut after = None;
    loop {
        let page = f.store.recorded_sandboxes(after, 1).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        kept.extend(page.into_iter().map(|found| (found.id, found.bytes)));
    }
    let mut expected = [(third, 0), (foreign, 70)];
    expected.sort();
    assert_eq!(kept, expected);
}

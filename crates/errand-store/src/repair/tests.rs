use errand_core::human::Origin;
use errand_core::id::BuildId;
use errand_core::run::{RunSource, WaitReason};
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::Outcome;
use proptest::prelude::*;
use rusqlite::params;

use super::*;
use crate::audit::AuditScope;
use crate::audit::fixture::{Runs, call, ending, going, intent, is_revoked, result};
use crate::db::types::Blob;
use crate::model::{StepCommit, StepEnd, Usage};
use crate::runs::queries::entries_from;

/// Statements that damage the rows of an open run.
const DAMAGES: [&str; 25] = [
    "UPDATE runs SET waiting_kind = NULL WHERE id = ?1",
    "UPDATE runs SET waiting_kind = 'sandbox' WHERE id = ?1",
    "UPDATE runs SET wake_at = NULL WHERE id = ?1",
    "UPDATE runs SET wake_at = 1 WHERE id = ?1",
    "UPDATE runs SET claim_token = NULL WHERE id = ?1",
    "UPDATE runs SET claim_boot = NULL, claimed_at = NULL WHERE id = ?1",
    "UPDATE runs SET claim_token = zeroblob(16), claim_boot = zeroblob(16), claimed_at = 1 WHERE id = ?1",
    "UPDATE runs SET deadline_at = NULL WHERE id = ?1",
    "UPDATE runs SET request_id = NULL WHERE id = ?1",
    "UPDATE runs SET request_id = zeroblob(16) WHERE id = ?1",
    "UPDATE runs SET status = 'pending' WHERE id = ?1",
    "UPDATE runs SET status = 'starting' WHERE id = ?1",
    "UPDATE runs SET status = 'running' WHERE id = ?1",
    "UPDATE runs SET status = 'waiting' WHERE id = ?1",
    "UPDATE runs SET completed_at = 1, error_code = 'x', started_at = NULL WHERE id = ?1",
    "UPDATE runs SET newest_user = 0 WHERE id = ?1",
    "UPDATE runs SET turn = 99 WHERE id = ?1",
    "UPDATE runs SET position = position + 3 WHERE id = ?1",
    "UPDATE runs SET shown = 0, sequence = 0 WHERE id = ?1",
    "UPDATE human_requests SET closed_at = 1, resolution = '{\"how\":\"stopped\"}' WHERE run_id = ?1 AND closed_at IS NULL",
    "UPDATE human_requests SET closed_at = NULL WHERE id = (SELECT id FROM human_requests WHERE run_id = ?1 AND NOT EXISTS \
         (SELECT 1 FROM human_requests WHERE run_id = ?1 AND closed_at IS NULL) LIMIT 1)",
    "DELETE FROM human_requests WHERE run_id = ?1",
    "UPDATE sandboxes SET owner_run = NULL WHERE owner_run = ?1",
    "UPDATE sandboxes SET leaving = zeroblob(16) WHERE owner_run = ?1",
    "UPDATE sandboxes SET owner_run = zeroblob(16), leaving = NULL WHERE id = (SELECT sandbox_id FROM runs WHERE id = ?1)",
];

/// Creates an open run in one of several states.
async fn open_run(runs: &Runs, kind: u8) -> RunId {
    match kind {
        0 => runs.pending().await,
        1 => runs.at_work().await.0,
        2 => runs.on_timer().await,
        3 => runs.waiting().await.0,
        4 => {
            let run = runs.completed().await;
            runs.message(run).await;
            run
        }
        _ => runs.behind_a_sandbox().await,
    }
}

/// Repairs a damaged run and checks the guarantees.
async fn repair_damaged(runs: &Runs, kind: u8, damages: &[usize], fails: bool) {
    let run = open_run(runs, kind).await;
    for damage in damages {
        runs.damage(run, DAMAGES[*damage]).await;
    }
    let told = format!("kind {kind}, {damages:?}, fails: {fails}");
    let repaired = if fails {
        runs.f.store.repair_fail(run, runs.now).await
    } else {
        runs.f.store.repair_resume(run, runs.now).await
    };
    let repaired = repaired.unwrap_or_else(|error| panic!("{told}: {error}"));
    let found = runs.findings(run).await;
    assert!(found.is_empty(), "{told}: {found:#?}");
    let row = runs.row(run).await;
    assert_eq!(repaired.status, row.status, "{told}");
    assert_eq!(row.status.has_ended(), fails, "{told}");
    if !fails && row.status != Status::Waiting {
        assert_eq!(row.waiting_kind, Some(WaitReason::Slot), "{told}");
        runs.claim(run).await;
    }
}

#[test]
fn a_damaged_run_goes_on_or_ends_and_holds_each_invariant() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let runs = runtime.block_on(Runs::new());
    for kind in 0..6 {
        for fails in [false, true] {
            runtime.block_on(repair_damaged(&runs, kind, &[], fails));
        }
    }
    let damages = prop::collection::vec(0..DAMAGES.len(), 1..6);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 192,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(
            &(0..6_u8, damages, any::<bool>()),
            |(kind, damages, fails)| {
                runtime.block_on(repair_damaged(&runs, kind, &damages, fails));
                Ok(())
            },
        )
        .unwrap();
}

#[tokio::test]
async fn a_driver_hears_a_stop_that_comes_right_after_its_claim_and_none_from_before() {
    let runs = Runs::new().await;
    let run = runs.start(None).await;
    let (_, first) = runs.claim_with_listener(run).await;
    // Nothing was received yet.
    runs.stop(run).await;
    assert!(is_revoked(&first));

    runs.message(run).await;
    let (_, second) = runs.claim_with_listener(run).await;
    assert!(!is_revoked(&second));
    drop(first);
    runs.stop(run).await;
    assert!(is_revoked(&second));
}

#[tokio::test]
async fn a_driver_at_work_is_fenced_and_its_sandbox_waits_for_it_to_leave() {
    let runs = Runs::new().await;
    let (run, claim, revocation) = runs.driven().await;
    let repaired = runs.f.store.repair_resume(run, runs.now).await.unwrap();
    assert!(repaired.was_taken_away);
    assert_eq!(repaired.waits_for, Some(WaitReason::Sandbox));
    revocation.revoked().await;
    assert_eq!(runs.findings(run).await, []);
    let late = StepCommit {
        run,
        claim,
        step: runs.row(run).await.step + 1,
        known: 0,
        entries: Vec::new(),
        end: going(),
        usage: Usage::default(),
        sandbox: None,
        sandbox_bytes: None,
        turn: false,
        step_deadline: runs.now,
        now: runs.now,
    };
    let refused = runs.f.store.commit_step(late).await;
    assert!(matches!(refused, Err(StoreError::Fenced)), "{refused:?}");

    let outcome = vec![(
        "c2".to_owned(),
        Outcome::Error(ToolError::from_text("interrupted: x")),
    )];
    runs.f
        .store
        .release_late(run, claim, outcome, runs.now)
        .await
        .unwrap();
    drop(revocation);
    assert_eq!(runs.row(run).await.waiting_kind, Some(WaitReason::Slot));
    // The call is in doubt under the next claim: its intent is there, but no result.
    let next = runs.claim(run).await;
    assert_ne!(next, claim);
    let call_id = "c2".to_owned();
    let request = runs
        .ask(
            run,
            next,
            Origin::InDoubt {
                call_id,
                target: None,
            },
        )
        .await;
    runs.answer(run, &request).await;
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn a_driver_that_is_gone_keeps_nothing() {
    let runs = Runs::new().await;
    let (run, _) = runs.at_work().await;
    let waits = {
        let sandbox = runs.row(run).await.sandbox.unwrap();
        runs.stop(run).await;
        runs.start(Some(&sandbox)).await
    };
    // The driver of the first run never reports that it has left.
    assert_eq!(
        runs.row(waits).await.waiting_kind,
        Some(WaitReason::Sandbox)
    );
    let repaired = runs.f.store.repair_resume(waits, runs.now).await.unwrap();
    assert_eq!(repaired.waits_for, Some(WaitReason::Slot));
    runs.claim(waits).await;
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn what_waits_for_a_repaired_run_s_sandbox_goes_on_when_that_ends() {
    for unread in [false, true] {
        let runs = Runs::new().await;
        let (run, _) = runs.at_work().await;
        let sandbox = runs.row(run).await.sandbox.unwrap();
        runs.stop(run).await;
        let second = runs.start(Some(&sandbox)).await;
        let third = runs.start(Some(&sandbox)).await;
        runs.f.store.repair_resume(second, runs.now).await.unwrap();
        assert_eq!(
            runs.row(third).await.waiting_kind,
            Some(WaitReason::Sandbox)
        );
        let now = runs.now;
        if unread {
            let ended = runs.f.store.write(move |tx| fail_unread(tx, second, now));
            ended.await.unwrap();
        } else {
            runs.f.store.repair_fail(second, now).await.unwrap();
        }
        assert_eq!(runs.row(third).await.waiting_kind, Some(WaitReason::Slot));
        runs.claim(third).await;
    }
}

#[tokio::test]
async fn what_has_ended_is_left_as_it_is_but_for_failures_that_are_retried() {
    let runs = Runs::new().await;
    let store = &runs.f.store;
    for run in [runs.completed().await, runs.interrupted().await] {
        let before = format!("{:?}", runs.row(run).await);
        let refused = store.repair_resume(run, runs.now).await;
        let told = matches!(&refused, Err(StoreError::Refused(why)) if why.contains("a message resumes it"));
        assert!(told, "{refused:?}");
        let left = store.repair_fail(run, runs.now).await.unwrap();
        assert!(!left.is_changed);
        assert_eq!(format!("{:?}", runs.row(run).await), before);
    }
    let failed = runs.failed().await;
    assert!(
        !store
            .repair_fail(failed, runs.now)
            .await
            .unwrap()
            .is_changed
    );
    let repaired = store.repair_resume(failed, runs.now).await.unwrap();
    assert_eq!(repaired.status, Status::Pending);
    let nobody = store
        .repair_resume(runs.f.ids.run(runs.now), runs.now)
        .await;
    assert!(matches!(nobody, Err(StoreError::NotFound)), "{nobody:?}");
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn a_request_that_was_quarantined_is_asked_again() {
    let runs = Runs::new().await;
    let (run, request) = runs.waiting().await;
    // The state after a start that could not read the row.
    let now = runs.now;
    let ended = runs.f.store.write(move |tx| fail_unread(tx, run, now));
    ended.await.unwrap();
    let repaired = runs.f.store.repair_resume(run, now).await.unwrap();
    assert_eq!(repaired.waits_for, Some(WaitReason::Human));
    assert_eq!(runs.findings(run).await, []);
    runs.answer(run, &request).await;
    runs.claim(run).await;
}

#[tokio::test]
async fn a_transcript_that_cannot_be_read_is_ended_or_forked() {
    for damage in [
        "UPDATE messages SET body = '{}' WHERE run_id = ?1 AND position = 4",
        "DELETE FROM messages WHERE run_id = ?1 AND position = 4",
    ] {
        let runs = Runs::new().await;
        runs.f.sql("DROP TRIGGER messages_are_final").await;
        let (run, _) = runs.at_work().await;
        assert_eq!(runs.damage(run, damage).await, 1);
        let refused = runs.f.store.repair_resume(run, runs.now).await;
        let told = matches!(&refused, Err(StoreError::Refused(why)) if why.contains("fork") && why.contains("--fail"));
        assert!(told, "{refused:?}");

        let forked = runs
            .f
            .store
            .fork_run(fork_of(&runs, run, None))
            .await
            .unwrap();
        assert_eq!((forked.taken, forked.of), (3, 5));
        assert_eq!(runs.findings(RunId::from_stored(forked.run.id)).await, []);
        let too_many = runs.f.store.fork_run(fork_of(&runs, run, Some(4))).await;
        let told =
            matches!(&too_many, Err(StoreError::Refused(why)) if why.contains("first 3 entries"));
        assert!(told, "{too_many:?}");

        let failed = runs.f.store.repair_fail(run, runs.now).await.unwrap();
        assert_eq!(failed.status, Status::Failed);
        let deliveries = runs.f.store.deliveries_of(runs.f.team, run).await.unwrap();
        assert_eq!(deliveries.last().unwrap().event, "run_failed");
        if damage.starts_with("UPDATE") {
            assert_eq!(runs.findings(run).await, []);
        }
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_ends_unread() {
    let runs = Runs::new().await;
    let (run, request) = runs.waiting().await;
    runs.f
        .sql("INSERT INTO sandboxes (id, team_id, created_at, expires_at) SELECT 'here', team_id, 1, 1 FROM runs LIMIT 1")
        .await;
    runs.damage(run, "UPDATE runs SET sandbox_id = 'here' WHERE id = ?1")
        .await;
    let refused = runs.f.store.repair_resume(run, runs.now).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    let failed = runs.f.store.repair_fail(run, runs.now).await.unwrap();
    assert!(failed.is_changed);
    runs.damage(run, "UPDATE runs SET sandbox_id = NULL WHERE id = ?1")
        .await;
    let row = runs.row(run).await;
    assert_eq!(row.status, Status::Failed);
    assert_eq!(row.error.unwrap().code, CODE);
    let late = runs.f.store.respond(
        crate::model::Respond {
            team: runs.f.team,
            run,
            request: request.id,
            answer: errand_core::human::Answer::Approval {
                approved: true,
                reason: None,
            },
            by: runs.f.owner.into(),
            now: runs.now,
        },
        crate::idempotency::Idempotent::not_recorded(),
    );
    assert!(matches!(late.await, Err(StoreError::Refused(_))));
}

fn fork_of(runs: &Runs, run: RunId, after: Option<u64>) -> Fork {
    Fork {
        run,
        id: runs.f.ids.run(runs.now),
        after,
        build: None,
        source: RunSource::Cli,
        now: runs.now,
    }
}

async fn bodies(runs: &Runs, run: RunId) -> Vec<Body> {
    let entries = runs.f.store.read(move |conn| entries_from(conn, run, 0));
    let entries = entries.await.unwrap();
    entries.into_iter().map(|entry| entry.body).collect()
}

#[tokio::test]
async fn a_fork_takes_entries_over_wherever_it_cuts_and_changes_nothing_else() {
    let runs = Runs::new().await;
    let kinds = [
        open_run(&runs, 0).await,
        open_run(&runs, 1).await,
        open_run(&runs, 2).await,
        open_run(&runs, 3).await,
        runs.completed().await,
        runs.failed().await,
        runs.interrupted().await,
    ];
    for run in kinds {
        let old = bodies(&runs, run).await;
        let before = format!("{:?}", runs.row(run).await);
        for after in 0..=old.len() as u64 {
            let fork = fork_of(&runs, run, Some(after));
            let id = fork.id;
            let forked = runs.f.store.fork_run(fork).await.unwrap();
            assert_eq!((forked.taken, forked.of), (after, old.len() as u64));
            let found = runs.findings(id).await;
            assert!(found.is_empty(), "after {after} of {run}: {found:#?}");
            let ledger = {
                let entries = runs.f.store.read(move |conn| entries_from(conn, id, 0));
                Ledger::of(&entries.await.unwrap())
            };
            assert!(ledger.open.is_empty() && ledger.request.is_none());
            // It continues and ends.
            let claim = runs.claim(id).await;
            let read_to = runs.row(id).await.newest_user;
            runs.step(id, claim, vec![ending()], StepEnd::Complete { read_to })
                .await;
            assert_eq!(runs.findings(id).await, []);
        }
        assert_eq!(format!("{:?}", runs.row(run).await), before);
        assert_eq!(bodies(&runs, run).await, old);
    }
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn what_a_fork_cuts_is_taken_again_unless_it_may_have_been_done() {
    let runs = Runs::new().await;
    let fork = |run, after| runs.f.store.fork_run(fork_of(&runs, run, after));
    // A pending request is closed and asked again.
    let (waiting, _) = runs.waiting().await;
    let forked = fork(waiting, None).await.unwrap();
    let of = bodies(&runs, RunId::from_stored(forked.run.id)).await;
    let closed = matches!(&of[3..], [
        Body::HumanResponse { resolution: Resolution::Stopped, .. },
        Body::ToolResult { outcome: Outcome::Error(why), .. },
        Body::Retried { .. },
    ] if why.code() == ToolErrorCode::NotRun);
    assert!(closed, "{of:#?}");
    // A call that had begun has an unknown outcome, and nothing is repeated.
    let (at_work, _) = runs.at_work().await;
    let forked = fork(at_work, None).await.unwrap();
    let of = bodies(&runs, RunId::from_stored(forked.run.id)).await;
    let unknown = matches!(&of[5..], [Body::ToolResult { outcome: Outcome::Error(why), .. }] if why.code() == ToolErrorCode::OutcomeUnknown);
    assert!(unknown, "{of:#?}");
    // After a failure, it continues from the step that failed.
    let failed = runs.failed().await;
    let forked = fork(failed, None).await.unwrap();
    let of = bodies(&runs, RunId::from_stored(forked.run.id)).await;
    assert!(matches!(of.last(), Some(Body::Retried { .. })), "{of:#?}");
}

#[tokio::test]
async fn a_fork_takes_a_sandbox_that_nobody_uses_any_more() {
    let runs = Runs::new().await;
    let (at_work, _) = runs.at_work().await;
    let interrupted = runs.interrupted().await;
    let fork = |run| runs.f.store.fork_run(fork_of(&runs, run, None));
    assert_eq!(fork(at_work).await.unwrap().run.sandbox_id, None);
    let sandbox = runs.row(interrupted).await.sandbox.unwrap().to_string();
    let first = fork(interrupted).await.unwrap();
    assert_eq!(first.run.sandbox_id.as_deref(), Some(sandbox.as_str()));
    assert_eq!(fork(interrupted).await.unwrap().run.sandbox_id, None);
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

#[tokio::test]
async fn a_fork_takes_a_build_of_its_agent_alone() {
    let runs = Runs::new().await;
    let run = runs.completed().await;
    let fork = |build: BuildId| {
        let fork = Fork {
            build: Some(build),
            ..fork_of(&runs, run, None)
        };
        runs.f.store.fork_run(fork)
    };
    let (_, foreign) = runs.f.agent_rows(runs.f.team).await;
    let refused = fork(foreign).await;
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
    let own = runs.row(run).await.build;
    assert_eq!(fork(own).await.unwrap().run.build_id, own.as_uuid());
}

#[tokio::test]
async fn a_call_that_a_repair_closed_can_be_ended_by_nobody_again() {
    let runs = Runs::new().await;
    let run = runs.start(None).await;
    let claim = runs.claim(run).await;
    let open = vec![call("c1", "run_command"), call("c2", "write_file")];
    runs.step(run, claim, open, going()).await;
    let done = vec![intent("c1", claim), result("c1", "run_command")];
    runs.step(run, claim, done, going()).await;
    runs.f.store.repair_fail(run, runs.now).await.unwrap();
    let of = bodies(&runs, run).await;
    let results = of
        .iter()
        .filter(|body| matches!(body, Body::ToolResult { .. }));
    assert_eq!(results.count(), 2);
    let error = runs.row(run).await.error.unwrap();
    assert_eq!(error.code, CODE);
    assert!(error.message.contains("--fail"));
}

#[tokio::test]
async fn time_that_was_missed_is_nobodys_and_a_clock_set_back_holds_up_nothing() {
    let runs = Runs::new().await;
    let (at_work, later) = (runs.start(None).await, runs.start(None).await);
    runs.claim(at_work).await;
    let before = runs.row(at_work).await;
    let store = &runs.f.store;
    store
        .time_was_missed(runs.now.plus_ms(1_000), 600_000)
        .await
        .unwrap();
    let after = runs.row(at_work).await;
    let moved = |at: Option<Timestamp>| at.map(|at| at.plus_ms(600_000));
    assert_eq!(after.deadline, moved(before.deadline));
    assert_eq!(after.claimed_at, moved(before.claimed_at));
    // Runs that were claimed after the gap have missed nothing.
    store.time_was_missed(runs.now, 600_000).await.unwrap();
    assert_eq!(runs.row(at_work).await.deadline, after.deadline);
    // Queued at a time that comes again after the clock was set back.
    let earlier = Timestamp::from_millis(runs.now.as_millis() - 3_600_000);
    assert!(runs.row(later).await.wake_at > Some(earlier));
    store.clock_was_set_back(earlier).await.unwrap();
    assert_eq!(runs.row(later).await.wake_at, Some(earlier));
}

#[tokio::test]
async fn who_waits_for_a_run_that_cannot_be_read_goes_on_and_what_that_waits_for_ends() {
    for caller_is_damaged in [false, true] {
        let runs = Runs::new().await;
        let (caller, child) = (runs.start(None).await, runs.start(None).await);
        runs.claim(caller).await;
        let (id, by) = (Blob(child.as_uuid()), Blob(caller.as_uuid()));
        let waits = runs.f.store.write(move |tx| {
            tx.execute(
                "INSERT INTO child_runs (child, parent, call_id, depth) VALUES (?1, ?2, 'c', 1)",
                params![id, by],
            )?;
            tx.execute(
                "UPDATE runs SET status = 'running', waiting_kind = 'child_run', claim_token = NULL, claim_boot = NULL, claimed_at = NULL,
                     deadline_at = NULL WHERE id = ?1",
                params![by],
            )?;
            Ok(())
        });
        waits.await.unwrap();
        let (damaged, now) = (if caller_is_damaged { caller } else { child }, runs.now);
        let ended = runs.f.store.write(move |tx| fail_unread(tx, damaged, now));
        ended.await.unwrap();
        assert_eq!(runs.row(damaged).await.status, Status::Failed);
        if caller_is_damaged {
            assert_eq!(runs.row(child).await.status, Status::Interrupted);
        } else {
            let waits = runs.row(caller).await.waiting_kind;
            assert_eq!(waits, Some(WaitReason::Slot));
        }
    }
}

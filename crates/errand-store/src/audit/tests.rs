use std::collections::BTreeSet;

use super::fixture::Runs;
use super::*;

/// Statements that damage a consistent store, and the invariants that each breaks.
const DAMAGES: [(&str, &[&str]); 47] = [
    ("UPDATE runs SET completed_at = NULL WHERE status = 'completed'", &["an_ended_run_is_at_rest"]),
    ("UPDATE runs SET completed_at = 1 WHERE status = 'waiting'", &["an_ended_run_is_at_rest"]),
    ("UPDATE runs SET wake_at = 1 WHERE status = 'interrupted'", &["an_ended_run_is_at_rest"]),
    ("UPDATE runs SET waiting_kind = 'human' WHERE status = 'failed'", &["an_ended_run_is_at_rest"]),
    ("UPDATE runs SET error_code = NULL WHERE status = 'failed'", &["a_failed_run_says_why"]),
    ("UPDATE runs SET error_code = 'x' WHERE status = 'running'", &["a_failed_run_says_why"]),
    ("UPDATE runs SET started_at = NULL WHERE status = 'completed'", &["a_run_at_work_has_begun"]),
    ("UPDATE runs SET deadline_at = NULL WHERE claim_token IS NOT NULL", &["a_claim_is_of_this_start"]),
    ("UPDATE runs SET claimed_at = 1 WHERE status = 'waiting'", &["a_claim_is_of_this_start"]),
    (
        "UPDATE runs SET claim_boot = zeroblob(16) WHERE claim_token IS NOT NULL",
        &["a_claim_is_of_this_start", "an_open_run_has_a_reason"],
    ),
    ("UPDATE runs SET waiting_kind = NULL WHERE status = 'waiting'", &["an_open_run_has_a_reason"]),
    ("UPDATE runs SET wake_at = NULL WHERE waiting_kind = 'timer'", &["an_open_run_has_a_reason"]),
    ("UPDATE sandboxes SET leaving = NULL, owner_run = NULL WHERE leaving IS NOT NULL", &["an_open_run_has_a_reason"]),
    (
        "UPDATE runs SET request_id = NULL WHERE status = 'waiting'",
        &["waiting_is_one_open_request", "an_open_run_has_a_reason"],
    ),
    ("UPDATE runs SET request_id = zeroblob(16) WHERE status = 'completed'", &["waiting_is_one_open_request"]),
    (
        "UPDATE human_requests SET closed_at = 1, resolution = '{\"how\":\"stopped\"}' WHERE closed_at IS NULL",
        &["waiting_is_one_open_request", "an_open_run_has_a_reason", "request_rows_agree_with_the_transcript"],
    ),
    (
        "DELETE FROM messages WHERE body LIKE '%\"late\"%'",
        &["positions_have_no_gap"],
    ),
    ("UPDATE runs SET position = position + 1 WHERE status = 'waiting'", &["positions_have_no_gap"]),
    ("UPDATE runs SET shown = shown + 1 WHERE status = 'waiting'", &["shown_numbers_have_no_gap"]),
    (
        "UPDATE messages SET shown = 99 WHERE body LIKE '%\"late\"%'",
        &["shown_numbers_have_no_gap", "each_message_has_one_event"],
    ),
    ("UPDATE runs SET sequence = sequence + 1 WHERE status = 'failed'", &["events_have_no_gap"]),
    ("UPDATE events SET position = 7 WHERE position = 1", &["each_message_has_one_event"]),
    (
        "UPDATE events SET kind = 'run.updated', data = '{\"status\":\"waiting\"}' WHERE position = 1",
        &["each_message_has_one_event"],
    ),
    (
        "UPDATE events SET data = '{\"status\":\"running\"}' WHERE kind = 'run.updated' AND run_id = (SELECT id FROM runs WHERE status = 'waiting')",
        &["the_last_update_tells_the_status"],
    ),
    (
        "UPDATE messages SET body = replace(body, '\"id\":\"c2\"', '\"id\":\"c1\"') WHERE body LIKE '{\"kind\":\"tool_call\"%' AND run_id = (SELECT id FROM runs WHERE claim_token IS NOT NULL)",
        &["a_call_has_one_result", "an_intent_belongs_to_an_open_call", "no_call_begins_twice_in_silence"],
    ),
    (
        "UPDATE messages SET body = replace(body, '\"call_id\":\"c2\"', '\"call_id\":\"c9\"') WHERE body LIKE '{\"kind\":\"tool_result\"%' AND run_id = (SELECT id FROM runs WHERE status = 'interrupted' LIMIT 1)",
        &["a_call_has_one_result"],
    ),
    (
        "UPDATE messages SET body = '{\"kind\":\"woke\",\"until\":\"2026-01-01T00:00:00Z\"}' WHERE body LIKE '{\"kind\":\"tool_call\"%' AND run_id = (SELECT id FROM runs WHERE status = 'waiting')",
        &["shown_numbers_have_no_gap"],
    ),
    (
        "UPDATE messages SET body = replace(body, '\"call_id\":\"c2\"', '\"call_id\":\"c1\"') WHERE body LIKE '{\"kind\":\"intent\"%' AND run_id = (SELECT id FROM runs WHERE claim_token IS NOT NULL)",
        &["an_intent_belongs_to_an_open_call"],
    ),
    (
        "UPDATE messages SET body = replace(body, 'not done, run it', 'skip') WHERE body LIKE '{\"kind\":\"human_response\"%'",
        &["no_call_begins_twice_in_silence", "request_rows_agree_with_the_transcript"],
    ),
    (
        "UPDATE messages SET body = '{\"kind\":\"interrupted\"}' WHERE body LIKE '{\"kind\":\"intent\"%' AND run_id = (SELECT id FROM runs WHERE status = 'completed')",
        &["no_call_begins_twice_in_silence"],
    ),
    (
        "UPDATE messages SET body = replace(body, 'read_file', 'run_command') WHERE run_id = (SELECT id FROM runs WHERE claim_token IS NOT NULL)",
        &["no_call_begins_twice_in_silence"],
    ),
    (
        "UPDATE messages SET body = replace(body, '\"request_id\":\"0', '\"request_id\":\"1') WHERE body LIKE '{\"kind\":\"human_response\"%approved%' AND run_id = (SELECT id FROM runs WHERE status = 'completed')",
        &["a_response_closes_its_request_once", "request_rows_agree_with_the_transcript"],
    ),
    ("UPDATE human_requests SET expires_at = expires_at + 1", &["request_rows_agree_with_the_transcript"]),
    ("UPDATE human_requests SET responded_by = NULL", &["request_rows_agree_with_the_transcript"]),
    (
        "INSERT INTO human_requests (id, run_id, team_id, request, created_at, closed_at, resolution)
         SELECT zeroblob(16), run_id, team_id, replace(request, json_extract(request, '$.id'), 'nobody-asked'), 1, 1, '{\"how\":\"stopped\"}'
         FROM human_requests LIMIT 1",
        &["a_request_row_has_its_entry"],
    ),
    ("UPDATE runs SET newest_user = 0 WHERE status = 'failed'", &["a_row_agrees_with_its_transcript"]),
    ("UPDATE runs SET turn = 99 WHERE claim_token IS NOT NULL", &["a_row_agrees_with_its_transcript"]),
    (
        "UPDATE messages SET body = replace(body, '\"ends\":true', '\"ends\":true,\"mark\":{\"path\":\"0\",\"message\":0}') WHERE run_id = (SELECT id FROM runs WHERE status = 'completed')",
        &["a_completed_run_has_read_each_message"],
    ),
    ("DELETE FROM deliveries WHERE state = 'pending' AND event = 'human_request'", &["events_are_delivered_once"]),
    (
        "INSERT INTO deliveries (delivery_id, id, run_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at)
         SELECT randomblob(16), id, run_id, team_id, event, sequence, url, body, created_at, 'pending', 0, 1 FROM deliveries WHERE event = 'run_failed'",
        &["events_are_delivered_once"],
    ),
    ("UPDATE deliveries SET due_at = NULL", &["events_are_delivered_once"]),
    ("UPDATE webhooks SET deleted_at = 1", &["a_deleted_webhook_is_owed_nothing"]),
    (
        "UPDATE deliveries SET event = 'run_failed' WHERE webhook_id IS NOT NULL AND event = 'human_request'",
        &["events_are_delivered_once"],
    ),
    ("DELETE FROM delivery_attempts", &["events_are_delivered_once"]),
    (
        "UPDATE sandboxes SET owner_run = (SELECT id FROM runs WHERE status = 'completed') WHERE owner_run IS NULL",
        &["a_sandbox_serves_an_open_run"],
    ),
    (
        "UPDATE sandboxes SET deleted_at = 1, bytes = 7 WHERE owner_run IS NULL",
        &["a_deleted_sandbox_takes_no_room"],
    ),
    (
        "UPDATE sandboxes SET owner_run = NULL WHERE owner_run IN (SELECT id FROM runs WHERE claim_token IS NOT NULL)",
        &["a_claimed_run_holds_its_sandbox"],
    ),
];

/// A store with a run of each kind, without the triggers that protect it.
async fn unguarded() -> Runs {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    let guards = "DROP TRIGGER runs_ended_is_final; DROP TRIGGER messages_are_final";
    runs.f.sql(guards).await;
    runs
}

fn names(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().map(|finding| finding.invariant).collect()
}

#[tokio::test]
async fn runs_of_each_kind_hold_each_invariant() {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    assert_eq!(runs.audit(AuditScope::All).await, []);
    assert_eq!(runs.audit(AuditScope::Open).await, []);
    assert_eq!(runs.f.store.runs_without_reason(runs.now).await.unwrap(), 0);
    assert_eq!(runs.f.store.integrity().await.unwrap(), [] as [String; 0]);
}

#[tokio::test]
async fn each_damage_is_found_as_what_it_is() {
    let runs = unguarded().await;
    let mut wrong = Vec::new();
    for (damage, broken) in DAMAGES {
        let (store, now) = (&runs.f.store, runs.now);
        let boot = store.boot();
        // Damaged, audited and rolled back in one transaction, so that each damage meets a consistent store.
        let found = store
            .write(move |tx| {
                tx.execute_batch("SAVEPOINT damage")?;
                let changed = tx.execute(damage, [])?;
                let found = all(tx, boot, now);
                tx.execute_batch("ROLLBACK TO damage; RELEASE damage")?;
                Ok((changed, found?))
            })
            .await
            .unwrap();
        let expected: BTreeSet<_> = broken.iter().copied().collect();
        if found.0 == 0 || names(&found.1) != expected {
            wrong.push(format!("{damage}: {} rows, found {:#?}", found.0, found.1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(runs.audit(AuditScope::All).await, []);
}

/// The whole audit, on one connection.
fn all(conn: &Connection, boot: BootId, now: Timestamp) -> Result<Vec<Finding>> {
    let mut found = of_store(conn, AuditScope::All, boot)?;
    for run in runs_after(conn, None)? {
        of_run(conn, run, boot, now, &mut found)?;
    }
    Ok(found.findings)
}

#[tokio::test]
async fn each_invariant_is_broken_by_one_of_the_damages() {
    let broken: BTreeSet<_> = DAMAGES
        .iter()
        .flat_map(|(_, broken)| broken.iter())
        .collect();
    // These have their own tests.
    let own = [
        "a_run_is_of_one_team",
        "a_transcript_can_be_read",
        "a_team_has_an_owner",
    ];
    let of_run = OF_RUN.iter().map(|of| of.name);
    let all = of_run.chain(OF_STORE.iter().map(|of| of.name));
    let missing: Vec<_> = all
        .filter(|name| !broken.contains(name) && !own.contains(name))
        .collect();
    assert_eq!(missing, [] as [&str; 0]);
}

#[tokio::test]
async fn what_cannot_be_read_is_a_finding_and_no_error() {
    let runs = unguarded().await;
    runs.f
        .sql("UPDATE messages SET body = '{}' WHERE position = 1 AND run_id = (SELECT id FROM runs WHERE status = 'failed')")
        .await;
    let found = runs.audit(AuditScope::All).await;
    assert_eq!(names(&found), ["a_transcript_can_be_read"].into());
    assert!(found[0].what.starts_with("entry 1: "), "{}", found[0].what);
    // A run that was ended for this reason is not a finding.
    runs.f
        .sql("UPDATE runs SET error_code = 'unreadable' WHERE status = 'failed'")
        .await;
    assert_eq!(runs.audit(AuditScope::All).await, []);

    runs.f
        .sql("PRAGMA defer_foreign_keys = ON; UPDATE sandboxes SET id = 'here' WHERE id IN (SELECT sandbox_id FROM runs WHERE claim_token IS NOT NULL);
              UPDATE runs SET sandbox_id = 'here' WHERE claim_token IS NOT NULL")
        .await;
    let found = runs.audit(AuditScope::Open).await;
    assert_eq!(names(&found), ["a_run_can_be_read"].into(), "{found:#?}");
}

#[tokio::test]
async fn what_is_another_teams_is_found() {
    let runs = unguarded().await;
    for damage in [
        "UPDATE events SET team_id = ?1 WHERE sequence = 1",
        "UPDATE deliveries SET team_id = ?1",
        "UPDATE sandboxes SET team_id = ?1",
        "UPDATE builds SET team_id = ?1",
    ] {
        let (team, was) = (runs.f.other_team, runs.f.team);
        let set = |team: errand_core::id::TeamId| {
            runs.f
                .store
                .write(move |tx| Ok(tx.execute(damage, [Blob(team.as_uuid())])?))
        };
        assert!(set(team).await.unwrap() > 0);
        let found = runs.audit(AuditScope::All).await;
        assert_eq!(names(&found), ["a_run_is_of_one_team"].into(), "{damage}");
        set(was).await.unwrap();
    }
    runs.f.sql("DELETE FROM memberships").await;
    let found = runs.audit(AuditScope::Open).await;
    assert_eq!(names(&found), ["a_team_has_an_owner"].into());
    assert!(found.iter().all(|finding| finding.run.is_none()));
}

#[tokio::test]
async fn open_runs_are_audited_without_reading_the_others() {
    let runs = unguarded().await;
    runs.f
        .sql("UPDATE messages SET body = '{}' WHERE run_id IN (SELECT id FROM runs WHERE status = 'completed')")
        .await;
    assert_eq!(runs.audit(AuditScope::Open).await, []);
    runs.f
        .sql(
            "UPDATE runs SET wake_at = 1 WHERE status = 'completed';
              UPDATE runs SET claim_token = zeroblob(16), wake_at = 1 WHERE status = 'failed';
              UPDATE deliveries SET due_at = NULL WHERE event = 'run_completed'",
        )
        .await;
    let found = runs.audit(AuditScope::Open).await;
    let expected = ["an_ended_run_is_at_rest", "events_are_delivered_once"];
    assert_eq!(names(&found), expected.into(), "{found:#?}");
}

#[tokio::test]
async fn a_run_that_waits_for_nothing_is_counted() {
    let runs = unguarded().await;
    runs.f
        .sql("UPDATE runs SET wake_at = NULL WHERE status = 'pending' AND waiting_kind = 'place'")
        .await;
    // The queued run, and the resumed one.
    assert_eq!(runs.f.store.runs_without_reason(runs.now).await.unwrap(), 2);
    runs.f
        .sql("UPDATE runs SET waiting_kind = NULL WHERE claim_token IS NOT NULL")
        .await;
    assert_eq!(runs.f.store.runs_without_reason(runs.now).await.unwrap(), 3);
}

#[tokio::test]
async fn an_invariant_has_a_hundred_findings_at_most() {
    let runs = Runs::new().await;
    for _ in 0..=FINDINGS_MAX + RUNS_AT_ONCE {
        runs.pending().await;
    }
    runs.f.sql("UPDATE runs SET newest_user = 7").await;
    let found = runs.audit(AuditScope::All).await;
    assert_eq!(found.len(), FINDINGS_MAX);
    assert_eq!(names(&found), ["a_row_agrees_with_its_transcript"].into());
}

#[tokio::test]
async fn a_reference_to_nothing_is_told() {
    let runs = unguarded().await;
    let conn = Connection::open(runs.f.store.dir().join("errand.db")).unwrap();
    conn.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM agents")
        .unwrap();
    let wrong = runs.f.store.integrity().await.unwrap();
    assert!(
        wrong
            .iter()
            .any(|line| line.ends_with("rows of runs refer to rows of agents that do not exist")),
        "{wrong:?}"
    );
}

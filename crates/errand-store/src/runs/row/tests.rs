use errand_core::id::{BootId, ClaimToken, HumanRequestId};

use super::*;
use crate::audit::fixture::Runs;

/// A row in which every column that an UPDATE writes has a value of its own.
fn changed(row: &RunRow, now: Timestamp) -> RunRow {
    let uuid = uuid::Uuid::from_u128;
    RunRow {
        status: Status::Running,
        sandbox: row.sandbox.clone(),
        error: Some(RunError::new("a_code", "a message")),
        updated_at: now.plus_ms(1),
        started_at: Some(now.plus_ms(2)),
        completed_at: Some(now.plus_ms(3)),
        position: 21,
        shown: 22,
        sequence: 23,
        newest_user: 24,
        turn: 25,
        step: 26,
        claim: Some(ClaimToken::from_stored(uuid(27))),
        claim_boot: Some(BootId::from_stored(uuid(28))),
        claimed_at: Some(now.plus_ms(4)),
        wake_at: Some(now.plus_ms(5)),
        deadline: Some(now.plus_ms(6)),
        active_ms: 29,
        waiting_kind: Some(WaitReason::Slot),
        waiting_who: Some("who".to_owned()),
        waiting_since: Some(now.plus_ms(7)),
        waiting_deadline: Some(now.plus_ms(8)),
        request: Some(HumanRequestId::from_stored(uuid(30))),
        steps: 31,
        model_calls: 32,
        tool_calls: 33,
        input_tokens: 34,
        cached_tokens: 35,
        output_tokens: 36,
        cost_usd: 37.5,
        model_ms: 38,
        unpriced_tokens: 39,
        estimated_tokens: 40,
        ..row.clone()
    }
}

#[tokio::test]
async fn the_declared_columns_are_those_of_the_table() {
    let runs = Runs::new().await;
    let columns = runs.f.store.read(|conn| {
        let mut columns = conn.prepare("SELECT name FROM pragma_table_info('runs')")?;
        let columns = columns.query_map([], |row| row.get::<_, String>(0))?;
        Ok(columns.collect::<rusqlite::Result<std::collections::BTreeSet<_>>>()?)
    });
    let mut declared: std::collections::BTreeSet<_> =
        COLUMNS.split(", ").map(str::to_owned).collect();
    // The count of lost claims is not part of the row.
    declared.insert("lost".to_owned());
    assert_eq!(columns.await.unwrap(), declared);
    let parts = FIXED.len() + INDEXED.len() + PROGRESS.len();
    assert_eq!(COLUMNS.split(", ").count(), parts);
}

#[tokio::test]
async fn an_update_writes_every_column_that_changes() {
    let runs = Runs::new().await;
    let run = runs.start(None).await;
    let row = runs.row(run).await;
    let new = changed(&row, runs.now);
    let written = new.clone();
    runs.f
        .store
        .write(move |tx| written.update(tx, &row.as_stored()))
        .await
        .unwrap();
    assert_eq!(format!("{:?}", runs.row(run).await), format!("{new:?}"));
    // Only the progress changes.
    let before = new.as_stored();
    let next = RunRow {
        step: 27,
        steps: 99,
        waiting_kind: None,
        error: None,
        ..new
    };
    let written = next.clone();
    runs.f
        .store
        .write(move |tx| written.update(tx, &before))
        .await
        .unwrap();
    assert_eq!(format!("{:?}", runs.row(run).await), format!("{next:?}"));
}

#[tokio::test]
async fn an_update_of_a_row_that_has_changed_is_refused() {
    let runs = Runs::new().await;
    let run = runs.start(None).await;
    let row = runs.row(run).await;
    let changes: [fn(&mut RunRow); 3] = [
        |row| row.step += 1,
        |row| row.sequence += 1,
        |row| row.claim = Some(ClaimToken::from_stored(uuid::Uuid::from_u128(1))),
    ];
    for change in changes {
        let mut other = row.clone();
        change(&mut other);
        let new = changed(&row, runs.now);
        let refused = runs
            .f
            .store
            .write(move |tx| new.update(tx, &other.as_stored()))
            .await;
        assert!(
            matches!(refused, Err(StoreError::Raced { run: of }) if of == run),
            "{refused:?}"
        );
        assert_eq!(format!("{:?}", runs.row(run).await), format!("{row:?}"));
    }
}

#[tokio::test]
async fn a_damaged_value_names_its_column() {
    for (column, value) in [("step", "-1"), ("sequence", "-1"), ("claim_boot", "x'00'")] {
        let runs = Runs::new().await;
        let run = runs.start(None).await;
        let read = runs.f.store.write(move |tx| {
            tx.execute_batch("PRAGMA ignore_check_constraints = ON")?;
            let damage = format!("UPDATE runs SET {column} = {value}");
            tx.execute_batch(&damage)?;
            tx.execute_batch("PRAGMA ignore_check_constraints = OFF")?;
            let read = tx
                .prepare(&format!("SELECT {COLUMNS} FROM runs WHERE id = ?1"))?
                .query_row(params![Blob(run.as_uuid())], read_row)?;
            Ok(read.map(drop))
        });
        let read = read.await.unwrap();
        assert!(
            matches!(read, Err(StoreError::Corrupt { table: "runs", column: of, .. }) if of == column),
            "{column}: {read:?}"
        );
    }
}

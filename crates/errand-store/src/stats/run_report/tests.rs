use super::*;
use crate::audit::fixture::Runs;

#[tokio::test]
async fn a_summary_counts_starts_and_ends_and_what_is_under_way() {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    let today = runs.now.day();
    let summary = |team| {
        runs.f
            .store
            .runs_summary(team, today.plus(-1), today.plus(1))
    };
    let mine = summary(runs.f.team).await.unwrap();
    assert_eq!(mine.days.len(), 2);
    assert_eq!(mine.days[0], (today.plus(-1), RunSums::default()));
    let counted = |sql: &'static str| {
        runs.f.store.read(move |conn| {
            Ok(conn
                .query_row(sql, [], |row| row.get::<_, i64>(0))
                .map(count)?)
        })
    };
    let (_, sums) = mine.days[1];
    assert_eq!(
        sums.started,
        counted("SELECT count(*) FROM runs").await.unwrap()
    );
    // A run that was resumed has also ended once.
    assert_eq!(
        sums.completed,
        1 + counted("SELECT count(*) FROM runs WHERE status = 'completed'")
            .await
            .unwrap()
    );
    assert_eq!(
        sums.failed,
        counted("SELECT count(*) FROM runs WHERE status = 'failed'")
            .await
            .unwrap()
    );
    assert!(sums.interrupted > 0 && sums.failed > 0);
    assert_eq!(mine.agents.len(), 1);
    assert_eq!(
        (mine.agents[0].agent, mine.agents[0].sums),
        (runs.agent, sums)
    );
    assert!(mine.agents[0].last_run.is_some());
    let open: u64 = mine.now.iter().map(|(_, n)| n).sum();
    assert_eq!(mine.now.len(), 4);
    assert_eq!(
        open,
        counted("SELECT count(*) FROM runs WHERE completed_at IS NULL")
            .await
            .unwrap()
    );
    let theirs = summary(runs.f.other_team).await.unwrap();
    assert_eq!(theirs.agents, []);
    assert!(theirs.now.iter().all(|(_, n)| *n == 0));
    assert!(
        theirs
            .days
            .iter()
            .all(|(_, sums)| *sums == RunSums::default())
    );
    let yesterday = runs
        .f
        .store
        .runs_summary(runs.f.team, Day::from_number(0), Day::from_number(1))
        .await
        .unwrap();
    assert_eq!(yesterday.agents[0].sums, RunSums::default());
    assert!(
        yesterday.agents[0].last_run.is_some(),
        "regardless of its day"
    );
}

#[tokio::test]
async fn a_summary_reads_no_run_that_has_ended() {
    let runs = Runs::new().await;
    let plans = runs
        .f
        .store
        .read(|conn| {
            let mut plans = Vec::new();
            for sql in [
                "SELECT day, sum(completed) FROM run_days WHERE team_id = ?1 AND day >= ?2 AND day < ?3 GROUP BY 1",
                "SELECT id FROM runs WHERE team_id = ?1 AND agent_id = ?2 ORDER BY created_at DESC, id DESC LIMIT 1",
                "SELECT status, count(*) FROM runs INDEXED BY runs_by_status
                 WHERE team_id = ?1 AND status IN ('pending', 'starting', 'running', 'waiting') GROUP BY status",
            ] {
                let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                let count = statement.parameter_count();
                for index in 1..=count {
                    statement.raw_bind_parameter(index, 1)?;
                }
                let mut rows = statement.raw_query();
                while let Some(row) = rows.next()? {
                    plans.push(row.get::<_, String>(3)?);
                }
            }
            Ok(plans)
        })
        .await
        .unwrap();
    assert!(
        plans.iter().all(|plan| !plan.starts_with("SCAN")),
        "{plans:#?}"
    );
}

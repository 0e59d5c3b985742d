use super::*;
use crate::audit::fixture::Runs;

/// Inserts totals of some days directly: two agents, two models, with and without a key.
async fn with_sums(runs: &Runs) {
    runs.f
        .sql(
            "DELETE FROM usage_days;
             INSERT INTO usage_days (team_id, day, agent_id, api_key_id, model, runs, model_calls, input_tokens, cached_tokens, output_tokens, cost_usd, model_ms)
             SELECT t.id, d.day, a.id, k.key, m.model, 1, 2, 30, 4, 5, m.cost, 6
             FROM teams t
             CROSS JOIN (SELECT 20000 AS day UNION ALL SELECT 20001 UNION ALL SELECT 20010) d
             CROSS JOIN (SELECT id FROM agents UNION ALL SELECT x'00000000000000000000000000000001') a
             CROSS JOIN (SELECT x'' AS key UNION ALL SELECT x'00000000000000000000000000000002') k
             CROSS JOIN (SELECT 'a/one' AS model, 0.5 AS cost UNION ALL SELECT 'b/two', 0.25) m",
        )
        .await;
}

fn query(runs: &Runs, by: &[UsageKey], since: i64, until: i64) -> UsageQuery {
    UsageQuery {
        team: runs.f.team,
        by: by.to_vec(),
        since: Day::from_number(since),
        until: Day::from_number(until),
    }
}

#[tokio::test]
async fn sums_are_made_by_each_combination() {
    let runs = Runs::new().await;
    with_sums(&runs).await;
    let usage = async |by: &[UsageKey], since, until| {
        runs.f
            .store
            .usage_by(query(&runs, by, since, until))
            .await
            .unwrap()
    };
    let (lines, sum) = usage(&[], 20_000, 20_002).await;
    let expected = UsageSums {
        runs: 16,
        model_calls: 32,
        input_tokens: 480,
        cached_tokens: 64,
        output_tokens: 80,
        cost_usd: 6.0,
        model_ms: 96,
        ..UsageSums::default()
    };
    assert_eq!((lines.len(), sum, lines[0].sums), (1, expected, expected));

    let (by_day, _) = usage(&[UsageKey::Day], 20_000, 20_011).await;
    let days: Vec<_> = by_day
        .iter()
        .map(|line| (line.day.unwrap().number(), line.sums.runs))
        .collect();
    assert_eq!(days, [(20_000, 8), (20_001, 8), (20_010, 8)]);
    assert!(
        by_day
            .iter()
            .all(|line| line.agent.is_none() && line.api_key.is_none())
    );

    let (by_model, _) = usage(&[UsageKey::Model], 20_000, 20_001).await;
    let models: Vec<_> = by_model
        .iter()
        .map(|line| (line.model.as_deref().unwrap(), line.sums.cost_usd))
        .collect();
    assert_eq!(
        models,
        [("a/one", 2.0), ("b/two", 1.0)],
        "the highest cost comes first"
    );

    let (by_agent, _) = usage(&[UsageKey::Agent], 20_000, 20_001).await;
    let named: Vec<_> = by_agent
        .iter()
        .map(|line| line.agent.as_ref().unwrap().name.as_deref())
        .collect();
    assert_eq!(named.len(), 2);
    assert!(named.contains(&Some("agent")) && named.contains(&None));

    let (by_key, _) = usage(&[UsageKey::ApiKey, UsageKey::Day], 20_000, 20_002).await;
    assert_eq!(by_key.len(), 4);
    let without = by_key.iter().filter(|line| line.api_key == Some(None));
    assert_eq!(without.count(), 2);

    let all = [
        UsageKey::Day,
        UsageKey::Agent,
        UsageKey::Model,
        UsageKey::ApiKey,
    ];
    assert_eq!(usage(&all, 0, 30_000).await.0.len(), 24);
    let (nothing, sum) = usage(&all, 20_002, 20_010).await;
    assert_eq!((nothing.len(), sum), (0, UsageSums::default()));
    let theirs = UsageQuery {
        team: runs.f.other_team,
        ..query(&runs, &[], 20_000, 20_001)
    };
    let (_, theirs) = runs.f.store.usage_by(theirs).await.unwrap();
    assert_eq!(theirs.runs, 8, "another team has its own totals");
}

use errand_core::id::RunId;

use super::*;
use crate::access::fixture::Fixture;
use crate::audit::fixture::Runs;

fn new(f: &Fixture, team: TeamId, by: UserId, url: &str) -> NewWebhook {
    NewWebhook {
        team,
        id: f.ids.webhook(f.now),
        url: url.to_owned(),
        events: WebhookEvent::ALL.to_vec(),
        description: None,
        enabled: true,
        created_by: by,
        now: f.now,
    }
}

async fn make(f: &Fixture, url: &str) -> Webhook {
    let made = f
        .store
        .create_webhook(new(f, f.team, f.owner, url), Once::not_recorded())
        .await;
    made.unwrap().fresh().unwrap()
}

#[tokio::test]
async fn a_team_has_so_many_and_each_address_once() {
    let f = Fixture::new().await;
    for number in 0..WEBHOOKS_MAX {
        make(&f, &format!("https://example.com/{number}")).await;
    }
    let refused = f
        .store
        .create_webhook(
            new(&f, f.team, f.owner, "https://example.com/more"),
            Once::not_recorded(),
        )
        .await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    // Another team has its own count, and may have the same address.
    let theirs = new(&f, f.other_team, f.other_owner, "https://example.com/0");
    f.store
        .create_webhook(theirs, Once::not_recorded())
        .await
        .unwrap();
}

#[tokio::test]
async fn another_teams_webhook_is_not_there() {
    let f = Fixture::new().await;
    let webhook = make(&f, "https://example.com").await;
    let (other, id, now) = (f.other_team, webhook.id, f.now);
    let missing = |result: Result<()>| assert!(matches!(result, Err(StoreError::NotFound)));
    missing(f.store.webhook(other, id).await.map(drop));
    let change = WebhookChange {
        enabled: Some(false),
        ..WebhookChange::default()
    };
    missing(
        f.store
            .change_webhook(other, id, change, now, Once::not_recorded())
            .await
            .map(drop),
    );
    missing(
        f.store
            .delete_webhook(other, id, now, Once::not_recorded())
            .await
            .map(drop),
    );
    let page = PageQuery {
        limit: 10,
        offset: 0,
    };
    missing(f.store.webhook_deliveries(other, id, page).await.map(drop));
    assert_eq!(f.store.webhook(f.team, id).await.unwrap(), webhook);
    assert_eq!(f.store.webhooks(other, page).await.unwrap().items, []);
}

#[tokio::test]
async fn the_audit_knows_webhooks_of_the_team() {
    let runs = Runs::new().await;
    let webhook = make(&runs.f, "http://127.0.0.1/team").await;
    runs.of_each_kind().await;
    assert_eq!(runs.audit(crate::AuditScope::All).await, []);
    let deliveries = |run: RunId| runs.f.store.deliveries_of(runs.f.team, run);
    let run = runs.completed().await;
    let to_it = |row: &DeliveryRow| row.webhook == Some(webhook.id);
    assert_eq!(
        deliveries(run)
            .await
            .unwrap()
            .iter()
            .filter(|row| to_it(row))
            .count(),
        2,
        "its request and its end"
    );
    let twice = "INSERT INTO deliveries (delivery_id, id, run_id, webhook_id, team_id, event, sequence, url, body, created_at, state, attempts)
         SELECT randomblob(16), id, run_id, webhook_id, team_id, event, sequence, 'x', body, created_at, 'dropped', 0
         FROM deliveries WHERE webhook_id IS NOT NULL LIMIT 1";
    let broken = [
        (twice, "events_are_delivered_once"),
        (
            "UPDATE deliveries SET event = 'run_failed' WHERE webhook_id IS NOT NULL AND event = 'human_request'",
            "events_are_delivered_once",
        ),
        (
            "UPDATE webhooks SET deleted_at = 1",
            "a_deleted_webhook_is_owed_nothing",
        ),
    ];
    for (damage, invariant) in broken {
        runs.f.sql("DROP TABLE IF EXISTS kept").await;
        runs.f
            .sql("CREATE TABLE kept AS SELECT number, event FROM deliveries")
            .await;
        runs.f.sql(damage).await;
        let found = runs.audit(crate::AuditScope::All).await;
        assert!(
            found.iter().any(|finding| finding.invariant == invariant)
                && found.iter().all(|finding| finding.invariant == invariant),
            "{damage}: {found:#?}"
        );
        runs.f
            .sql("DELETE FROM deliveries WHERE url = 'x';
                  UPDATE deliveries SET event = (SELECT event FROM kept WHERE kept.number = deliveries.number);
                  UPDATE webhooks SET deleted_at = NULL")
            .await;
    }
    runs.f
        .store
        .delete_webhook(runs.f.team, webhook.id, runs.now, Once::not_recorded())
        .await
        .unwrap();
    assert_eq!(runs.audit(crate::AuditScope::All).await, []);
}

use errand_core::webhook::DeliveryState;

use super::*;
use crate::accounts::fixture::Fixture;
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
        .create_webhook(new(f, f.team, f.owner, url), Idempotent::not_recorded())
        .await;
    made.unwrap().executed().unwrap()
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
            Idempotent::not_recorded(),
        )
        .await;
    assert!(
        matches!(refused, Err(StoreError::Conflict(_))),
        "{refused:?}"
    );
    // Another team is counted separately, and may use the same address.
    let theirs = new(&f, f.other_team, f.other_owner, "https://example.com/0");
    f.store
        .create_webhook(theirs, Idempotent::not_recorded())
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
            .change_webhook(other, id, change, now, Idempotent::not_recorded())
            .await
            .map(drop),
    );
    missing(
        f.store
            .delete_webhook(other, id, now, Idempotent::not_recorded())
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
async fn what_a_deleted_webhook_was_owed_is_dropped_and_nothing_else() {
    let runs = Runs::new().await;
    runs.of_each_kind().await;
    let (store, team) = (&runs.f.store, runs.f.team);
    let webhook = runs.webhook("http://127.0.0.1/second").await;
    let run = runs.completed().await;
    let states = async |of: Option<WebhookId>| {
        let rows = store.deliveries_of(team, run).await.unwrap();
        let of = rows.into_iter().filter(move |row| row.webhook == of);
        of.map(|row| row.state).collect::<Vec<_>>()
    };
    let is = |states: &[DeliveryState], state: DeliveryState| {
        !states.is_empty() && states.iter().all(|found| *found == state)
    };
    assert!(is(&states(Some(webhook)).await, DeliveryState::Pending));
    assert_eq!(runs.audit(crate::AuditScope::All).await, []);
    store
        .delete_webhook(team, webhook, runs.now, Idempotent::not_recorded())
        .await
        .unwrap();
    assert!(is(&states(Some(webhook)).await, DeliveryState::Dropped));
    assert!(
        is(&states(None).await, DeliveryState::Pending),
        "deliveries to the run's own URL continue"
    );
    assert_eq!(runs.audit(crate::AuditScope::All).await, []);
}

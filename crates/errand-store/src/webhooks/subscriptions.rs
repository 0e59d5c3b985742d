//! Webhooks of a team: subscriptions to events of all its runs.
//!
//! # Guarantees
//!
//! An event goes to every webhook that existed, was enabled, and was subscribed to it when the event was committed,
//! and once to each address: if the run itself has the same address, that delivery belongs to the run. Deleting a
//! webhook drops its open deliveries in the same transaction. Open deliveries follow a webhook to a new address. If a
//! receiver answers 410, its webhook is disabled.
//!
//! # Non-goals
//!
//! Deliveries (see `deliveries`), and checking addresses (the API does, and the outbox again at each attempt).

#[cfg(test)]
mod tests;

use errand_core::id::{DeliveryId, EventId, TeamId, UserId, WebhookId};
use errand_core::limits::WEBHOOKS_MAX;
use errand_core::time::Timestamp;
use errand_core::webhook::{WEBHOOK_TEST, WebhookEvent};
use errand_core::wire::TestWebhookBody;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::db::sqlite::{Store, Tx};
use crate::db::types::{Blob, Ms, count, int, to_json, word};
use crate::error::{Result, StoreError};
use crate::idempotency::{Idempotent, Outcome, idempotent};
use crate::model::{DeliveryRow, Page, PageQuery};
use crate::webhooks::deliveries::select_one;

/// A subscription to events of all runs of a team.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    pub id: WebhookId,
    /// Address that receives the events.
    pub url: String,
    /// Subscribed events.
    pub events: Vec<WebhookEvent>,
    pub description: Option<String>,
    /// Whether events are delivered.
    pub enabled: bool,
    /// Why the server disabled it, if it did.
    pub disabled_reason: Option<String>,
    pub created_by: Option<UserId>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A webhook to create. Its address has been checked.
#[derive(Clone, Debug)]
pub struct NewWebhook {
    pub team: TeamId,
    pub id: WebhookId,
    pub url: String,
    /// Subscribed events; at least one.
    pub events: Vec<WebhookEvent>,
    pub description: Option<String>,
    /// Whether events are delivered.
    pub enabled: bool,
    pub created_by: UserId,
    pub now: Timestamp,
}

/// Changes of a webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookChange {
    /// A new address, already checked. Open deliveries go there too.
    pub url: Option<String>,
    /// Subscribed events; at least one.
    pub events: Option<Vec<WebhookEvent>>,
    /// `Some(None)` removes the description.
    pub description: Option<Option<String>>,
    /// Whether events are delivered.
    pub enabled: Option<bool>,
}

/// A test event for a webhook.
#[derive(Clone, Copy, Debug)]
pub struct TestWebhook {
    pub team: TeamId,
    pub webhook: WebhookId,
    pub event: EventId,
    pub delivery: DeliveryId,
    pub now: Timestamp,
}

impl Store {
    /// A page of the team's webhooks, newest first.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a row cannot be read.
    pub async fn webhooks(&self, team: TeamId, page: PageQuery) -> Result<Page<Webhook>> {
        self.read_for(team, move |conn| select_page(conn, team, page))
            .await
    }

    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn webhook(&self, team: TeamId, webhook: WebhookId) -> Result<Webhook> {
        self.read_for(team, move |conn| select_webhook(conn, team, webhook))
            .await
    }

    /// # Errors
    /// [`StoreError::Conflict`] if another webhook of the team has the address, or the team has the maximum number of
    /// webhooks.
    pub async fn create_webhook(
        &self,
        new: NewWebhook,
        recorded: Idempotent<Webhook>,
    ) -> Result<Outcome<Webhook>> {
        self.write(move |tx| idempotent(tx, &recorded, new.now, || insert(tx, &new)))
            .await
    }

    /// Changes a webhook. If the address changes, open deliveries go to the new one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Conflict`] if another webhook of the team has the address.
    pub async fn change_webhook(
        &self,
        team: TeamId,
        webhook: WebhookId,
        change: WebhookChange,
        now: Timestamp,
        recorded: Idempotent<Webhook>,
    ) -> Result<Outcome<Webhook>> {
        self.write(move |tx| {
            idempotent(tx, &recorded, now, || {
                update(tx, team, webhook, &change, now)
            })
        })
        .await
    }

    /// Deletes a webhook and drops its open deliveries.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn delete_webhook(
        &self,
        team: TeamId,
        webhook: WebhookId,
        now: Timestamp,
        recorded: Idempotent<()>,
    ) -> Result<Outcome<()>> {
        self.write(move |tx| idempotent(tx, &recorded, now, || delete(tx, team, webhook, now)))
            .await
    }

    /// Sends the event `webhook_test`, which belongs to no run. Also works for a disabled webhook.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn test_webhook(
        &self,
        test: TestWebhook,
        recorded: Idempotent<DeliveryRow>,
    ) -> Result<Outcome<DeliveryRow>> {
        self.write(move |tx| idempotent(tx, &recorded, test.now, || send_test(tx, &test)))
            .await
    }
}

/// The ids and addresses of the team's webhooks that are subscribed to an event.
pub(crate) fn subscribed(
    conn: &Connection,
    team: TeamId,
    event: &str,
) -> Result<Vec<(WebhookId, String)>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, url, events FROM webhooks WHERE team_id = ?1 AND deleted_at IS NULL AND enabled ORDER BY created_at, id",
    )?;
    let mut rows = statement.query(params![Blob(team.as_uuid())])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let events = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
        if events.split(',').any(|word| word == event) {
            found.push((
                WebhookId::from_stored(row.get::<_, Blob>(0)?.0),
                row.get(1)?,
            ));
        }
    }
    Ok(found)
}

/// Disables the webhook of a delivery after its receiver has answered 410. Does nothing for a run's own address.
pub(crate) fn disable_of(tx: &Connection, delivery: i64, now: Timestamp) -> Result<()> {
    tx.prepare_cached(
        "UPDATE webhooks SET enabled = 0, disabled_reason = ?2, updated_at = ?3
         WHERE id = (SELECT webhook_id FROM deliveries WHERE number = ?1) AND enabled AND deleted_at IS NULL",
    )?
    .execute(params![
        delivery,
        format!("the receiver answered 410 Gone at {now}, which means that it wants no more deliveries"),
        Ms(now)
    ])?;
    Ok(())
}

const COLUMNS: &str =
    "id, url, events, description, enabled, disabled_reason, created_by, created_at, updated_at";

/// A webhook that is not deleted.
pub(crate) fn select_webhook(
    conn: &Connection,
    team: TeamId,
    webhook: WebhookId,
) -> Result<Webhook> {
    conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM webhooks WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL"
    ))?
    .query_and_then(
        params![Blob(webhook.as_uuid()), Blob(team.as_uuid())],
        webhook_row,
    )?
    .next()
    .transpose()?
    .ok_or(StoreError::NotFound)
}

fn select_page(conn: &Connection, team: TeamId, page: PageQuery) -> Result<Page<Webhook>> {
    let items = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM webhooks WHERE team_id = ?1 AND deleted_at IS NULL
             ORDER BY created_at DESC, id DESC LIMIT ?2 OFFSET ?3"
        ))?
        .query_and_then(
            params![Blob(team.as_uuid()), page.limit, int(page.offset)],
            webhook_row,
        )?
        .collect::<Result<_>>()?;
    Ok(Page {
        items,
        total: how_many(conn, team)?,
    })
}

fn how_many(conn: &Connection, team: TeamId) -> Result<u64> {
    let total = conn
        .prepare_cached("SELECT count(*) FROM webhooks WHERE team_id = ?1 AND deleted_at IS NULL")?
        .query_row(params![Blob(team.as_uuid())], |row| row.get(0))?;
    Ok(count(total))
}

fn webhook_row(row: &Row<'_>) -> Result<Webhook> {
    let events: String = row.get(2)?;
    let events = events
        .split(',')
        .map(|text| word("webhooks", "events", text, WebhookEvent::parse))
        .collect::<Result<_>>()?;
    Ok(Webhook {
        id: WebhookId::from_stored(row.get::<_, Blob>(0)?.0),
        url: row.get(1)?,
        events,
        description: row.get(3)?,
        enabled: row.get(4)?,
        disabled_reason: row.get(5)?,
        created_by: row
            .get::<_, Option<Blob>>(6)?
            .map(|user| UserId::from_stored(user.0)),
        created_at: row.get::<_, Ms>(7)?.0,
        updated_at: row.get::<_, Ms>(8)?.0,
    })
}

/// The names of the events, in display order and without duplicates.
fn words(events: &[WebhookEvent]) -> String {
    let listed = WebhookEvent::ALL
        .into_iter()
        .filter(|event| events.contains(event));
    listed
        .map(WebhookEvent::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

fn address_is_free(conn: &Connection, team: TeamId, url: &str, but: WebhookId) -> Result<()> {
    let other = conn
        .prepare_cached(
            "SELECT id FROM webhooks WHERE team_id = ?1 AND url = ?2 AND deleted_at IS NULL AND id <> ?3",
        )?
        .query_row(
            params![Blob(team.as_uuid()), url, Blob(but.as_uuid())],
            |row| row.get::<_, Blob>(0),
        )
        .optional()?;
    match other {
        None => Ok(()),
        Some(other) => Err(StoreError::Conflict(format!(
            "the webhook {} already has this address; change that one, or use another address",
            other.0
        ))),
    }
}

fn insert(tx: &Connection, new: &NewWebhook) -> Result<Webhook> {
    address_is_free(tx, new.team, &new.url, new.id)?;
    if how_many(tx, new.team)? >= WEBHOOKS_MAX {
        return Err(StoreError::Conflict(format!(
            "a team has at most {WEBHOOKS_MAX} webhooks; delete one first"
        )));
    }
    tx.prepare_cached(
        "INSERT INTO webhooks (id, team_id, url, events, description, enabled, created_by, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
    )?
    .execute(params![
        Blob(new.id.as_uuid()),
        Blob(new.team.as_uuid()),
        new.url,
        words(&new.events),
        new.description,
        new.enabled,
        Blob(new.created_by.as_uuid()),
        Ms(new.now)
    ])?;
    select_webhook(tx, new.team, new.id)
}

fn update(
    tx: &Tx<'_>,
    team: TeamId,
    id: WebhookId,
    change: &WebhookChange,
    now: Timestamp,
) -> Result<Webhook> {
    let was = select_webhook(tx, team, id)?;
    let url = change.url.as_ref().unwrap_or(&was.url);
    address_is_free(tx, team, url, id)?;
    let enabled = change.enabled.unwrap_or(was.enabled);
    let description = change.description.as_ref().unwrap_or(&was.description);
    tx.prepare_cached(
        "UPDATE webhooks SET url = ?3, events = ?4, description = ?5, enabled = ?6, updated_at = ?7,
             disabled_reason = CASE WHEN ?8 THEN NULL ELSE disabled_reason END
         WHERE id = ?1 AND team_id = ?2",
    )?
    .execute(params![
        Blob(id.as_uuid()),
        Blob(team.as_uuid()),
        url,
        words(change.events.as_ref().unwrap_or(&was.events)),
        description,
        enabled,
        Ms(now),
        // Whoever sets `enabled` explicitly knows about the reason, so it is cleared.
        change.enabled.is_some()
    ])?;
    if *url != was.url {
        tx.prepare_cached(
            "UPDATE deliveries SET url = ?2 WHERE webhook_id = ?1 AND state = 'pending'",
        )?
        .execute(params![Blob(id.as_uuid()), url])?;
        tx.ring_outbox();
    }
    select_webhook(tx, team, id)
}

fn delete(tx: &Tx<'_>, team: TeamId, id: WebhookId, now: Timestamp) -> Result<()> {
    let deleted = tx
        .prepare_cached(
            "UPDATE webhooks SET deleted_at = ?3, updated_at = ?3, enabled = 0 WHERE id = ?1 AND team_id = ?2 AND deleted_at IS NULL",
        )?
        .execute(params![Blob(id.as_uuid()), Blob(team.as_uuid()), Ms(now)])?;
    if deleted == 0 {
        return Err(StoreError::NotFound);
    }
    tx.prepare_cached(
        "UPDATE deliveries SET state = 'dropped', due_at = NULL WHERE webhook_id = ?1 AND state = 'pending'",
    )?
    .execute(params![Blob(id.as_uuid())])?;
    // Deliveries that waited behind the dropped ones can go out now.
    tx.ring_outbox();
    Ok(())
}

fn send_test(tx: &Tx<'_>, test: &TestWebhook) -> Result<DeliveryRow> {
    let webhook = select_webhook(tx, test.team, test.webhook)?;
    let body = TestWebhookBody {
        id: test.event.as_uuid(),
        event: WEBHOOK_TEST.to_owned(),
        created_at: test.now,
        webhook_id: webhook.id.as_uuid(),
        message: "This is a test event, sent to check that webhooks arrive.".to_owned(),
    };
    tx.prepare_cached(
        "INSERT INTO deliveries (delivery_id, id, webhook_id, team_id, event, sequence, url, body, created_at, state, attempts, due_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, 'pending', 0, ?8)",
    )?
    .execute(params![
        Blob(test.delivery.as_uuid()),
        Blob(test.event.as_uuid()),
        Blob(webhook.id.as_uuid()),
        Blob(test.team.as_uuid()),
        WEBHOOK_TEST,
        webhook.url,
        to_json("deliveries", "body", &body)?.into_bytes(),
        Ms(test.now)
    ])?;
    tx.ring_outbox();
    select_one(tx, test.team, test.delivery)
}

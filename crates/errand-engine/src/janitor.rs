//! Removes sandboxes that have expired. The row goes first, then the directory; what a crash leaves in between is found
//! at the next start.

use errand_store::StoreError;

use crate::dispatch::Parts;

/// How often it looks: expiry is counted in days.
const ROUND_MS: u64 = 60_000;
/// Most sandboxes of one round's transaction.
const BATCH: u32 = 100;

/// Works until the server drains.
pub(crate) async fn run(parts: Parts) {
    if let Err(error) = clear_leftovers(&parts).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "what an earlier start left could not be removed"
        );
    }
    while !parts.draining.is_cancelled() {
        if let Err(error) = round(&parts).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "expired sandboxes could not be removed; trying again later"
            );
        }
        tokio::select! {
            () = parts.clock.sleep_ms(ROUND_MS) => {}
            () = parts.draining.cancelled() => {}
        }
    }
}

/// What a crash left between a row and its directory: directories whose row is gone, and the trash. Rows come first, so a
/// directory that is in use is known.
async fn clear_leftovers(parts: &Parts) -> Result<(), StoreError> {
    let sandboxes = parts.sandboxes.clone();
    let listed = tokio::task::spawn_blocking(move || {
        sandboxes.empty_trash().and_then(|()| sandboxes.list())
    })
    .await;
    let on_disk = match listed {
        Ok(Ok(on_disk)) => on_disk,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the directory of sandboxes could not be looked through");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    for id in on_disk {
        if parts.store.sandbox_is_known(&id).await? {
            continue;
        }
        let sandboxes = parts.sandboxes.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || sandboxes.remove(&id)).await {
            tracing::warn!(%error, "the files of a sandbox that is gone could not be removed");
        }
    }
    Ok(())
}

async fn round(parts: &Parts) -> Result<(), StoreError> {
    let now = parts.clock.now();
    loop {
        let expired = parts.store.expired_sandboxes(now, BATCH).await?;
        let more = expired.len() >= BATCH as usize;
        for id in expired {
            // Used since it was listed: it stays.
            if !parts.store.mark_sandbox_deleted(&id, now).await? {
                continue;
            }
            let sandboxes = parts.sandboxes.clone();
            let removed = tokio::task::spawn_blocking(move || sandboxes.remove(&id)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, "the files of an expired sandbox could not be removed; the next start does it");
            }
        }
        if !more {
            return Ok(());
        }
    }
}

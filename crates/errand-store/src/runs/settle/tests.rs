use errand_core::run::WaitReason;

use crate::audit::fixture::Runs;

#[tokio::test]
async fn a_quarantined_run_passes_the_sandbox_on() {
    let runs = Runs::new().await;
    let (first, claim) = runs.at_work().await;
    let sandbox = runs.row(first).await.sandbox.unwrap();
    runs.stop(first).await;
    let damaged = runs.start(Some(&sandbox)).await;
    runs.f
        .sql(
            "PRAGMA ignore_check_constraints = ON;
             UPDATE runs SET status = 'no status' WHERE waiting_kind = 'sandbox';
             PRAGMA ignore_check_constraints = OFF",
        )
        .await;
    let last = runs.start(Some(&sandbox)).await;
    assert_eq!(runs.row(last).await.waiting_kind, Some(WaitReason::Sandbox));
    runs.f
        .store
        .release_late(first, claim, Vec::new(), runs.now)
        .await
        .unwrap();
    let row = runs.row(damaged).await;
    assert_eq!(row.error.unwrap().code, "unreadable");
    assert_eq!(runs.row(last).await.waiting_kind, Some(WaitReason::Slot));
    runs.claim(last).await;
}

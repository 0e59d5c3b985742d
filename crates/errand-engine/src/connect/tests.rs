//! Tests without a server.

use errand_core::id::IdGen;
use errand_store::OpenOptions;
use errand_store::seal::MasterKey;

use super::*;

fn connections(dir: &std::path::Path, ids: &IdGen) -> Connections {
    let clock = Clock::manual(Timestamp::from_millis(0));
    let store = Store::open(OpenOptions {
        dir: dir.to_owned(),
        boot: ids.boot(clock.now()),
        respond_base: "http://localhost".to_owned(),
        master_key: MasterKey::from_bytes([1; 32]),
        readers: 1,
        cache_kib: 2048,
    });
    Connections::none(store.unwrap(), clock)
}

#[tokio::test]
async fn a_late_driver_does_not_close_newer_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let ids = IdGen::new([1; 32]);
    let now = Timestamp::from_millis(0);
    let connections = connections(dir.path(), &ids);
    let (run, connection) = (ids.run(now), ids.connection(now));
    let (old, new) = (ids.claim_token(now), ids.claim_token(now));
    connections.begin_drive(run, old, |_| true).await;
    connections.slot(run, connection);
    // The run was stopped and is driven again, while the old driver is still cancelling its call.
    connections.begin_drive(run, new, |_| true).await;
    connections.end_drive(run, old, true);
    assert_eq!(connections.open_sessions(), 1);
    // A driver that waits for a person leaves its session to the next driver.
    connections.end_drive(run, new, false);
    assert_eq!(connections.open_sessions(), 1);
    connections.begin_drive(run, old, |_| true).await;
    connections.end_drive(run, old, true);
    assert_eq!(connections.open_sessions(), 0);
}

//! Checks whether the master key decrypts the stored secrets, and whether the next start will find it.

use std::path::{Path, PathBuf};

use errand_core::error_chain::error_chain;
use errand_store::seal::MasterKey;
use errand_store::{SealedKeys, Store};

use super::Check;

const CHECK: &str = "master key";

pub(super) async fn master_key(store: &Store) -> Check {
    let sealed = match store.sealed_keys().await {
        Ok(sealed) => sealed,
        Err(error) => return Check::failed(CHECK, &error),
    };
    let file = store.master_key().file().map(Path::to_owned);
    let current = sealed.current.clone();
    let on_disk = match file {
        None => None,
        Some(file) => tokio::task::spawn_blocking(move || judge_file(file, &current))
            .await
            .unwrap_or_default(),
    };
    on_disk.unwrap_or_else(|| judge_sealed(&sealed))
}

/// Checks whether the next start finds the key that is in use. `None` if it does.
fn judge_file(file: PathBuf, current: &str) -> Option<Check> {
    let shown = file.display();
    match MasterKey::read(&file) {
        Ok(Some(key)) if key.ids().iter().any(|id| id == current) => None,
        Ok(Some(key)) => Some(Check::problem(
            CHECK,
            format!(
                "{shown} holds the key {}, but the stored data is encrypted with {current}",
                key.id()
            ),
            "restore the previous file: the next start refuses this one",
        )),
        Ok(None) => Some(Check::problem(
            CHECK,
            format!(
                "{shown} is missing; it held the key {current}, with which secrets are encrypted"
            ),
            "put the file back before the next start; if there is no copy of it, run `errand secrets rotate` while this server \
             still runs, which encrypts everything with a new key",
        )),
        Err(error) => Some(Check::problem(
            CHECK,
            error_chain(&error),
            "fix this before the next start, which needs the file",
        )),
    }
}

fn judge_sealed(sealed: &SealedKeys) -> Check {
    let SealedKeys {
        current,
        opened,
        lost,
    } = sealed;
    if lost.is_empty() {
        return Check::ok(
            CHECK,
            format!("the key {current} decrypts all {opened} secrets"),
        );
    }
    let count: u64 = lost.values().sum();
    let ids = lost.keys().map(String::as_str).collect::<Vec<_>>();
    Check::problem(
        CHECK,
        format!(
            "{count} secrets are encrypted with the key {}, but the key in use is {current}, which decrypts {opened}",
            ids.join(" or ")
        ),
        "start with the key with which they were encrypted, or discard them: `errand serve --discard-secrets`",
    )
}

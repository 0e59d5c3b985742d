//! The master key: whether it opens what is sealed, and whether the next start will find it.

use std::path::{Path, PathBuf};

use errand_core::cause::chain;
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

/// Whether the next start finds the key that is in use now. None: it does.
fn judge_file(file: PathBuf, current: &str) -> Option<Check> {
    let shown = file.display();
    match MasterKey::read(&file) {
        Ok(Some(key)) if key.ids().iter().any(|id| id == current) => None,
        Ok(Some(key)) => Some(Check::problem(
            CHECK,
            format!(
                "{shown} holds the key {}, and what is stored is sealed under {current}",
                key.id()
            ),
            "put the file back that was there: the next start refuses this one",
        )),
        Ok(None) => Some(Check::problem(
            CHECK,
            format!("{shown} is gone; it holds the key {current}, under which secrets are sealed"),
            "put the file back before the next start; if there is no copy of it, run `errand secrets rotate` while this server \
             still runs, which seals everything under a new key",
        )),
        Err(error) => Some(Check::problem(
            CHECK,
            chain(&error),
            "set this right before the next start, which needs the file",
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
            format!("the key {current} opens all {opened} secrets"),
        );
    }
    let count: u64 = lost.values().sum();
    let ids = lost.keys().map(String::as_str).collect::<Vec<_>>();
    Check::problem(
        CHECK,
        format!(
            "{count} secrets are sealed under the key {}, and the key in use is {current}, which opens {opened}",
            ids.join(" or ")
        ),
        "start with the key that they were sealed under, or give them up: `errand serve --discard-secrets`",
    )
}

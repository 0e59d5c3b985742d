//! The checks of `errand doctor`: whether the server can work on this machine and with this data.
//!
//! # Guarantees
//!
//! - Nothing is changed.
//! - Each check yields `ok`, `warning` (it works, but should be looked at) or `problem` (something does not work, or
//!   soon will not), with a sentence about the finding and, unless it is `ok`, advice.
//! - A check that cannot be performed is reported too, and does not prevent the others.
//!
//! # Non-goals
//!
//! Repairing anything, and findings that the API shows.

pub(crate) mod disk;
mod isolation;
mod keys;
mod locks;
mod system;

use std::path::Path;

use errand_core::error_chain::error_chain;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_engine::sandboxes::Sandboxes;
use errand_store::{AuditScope, Late, Overdue, Store, StoreError, Trouble};
use serde::{Deserialize, Serialize};

pub use isolation::isolation;

/// Invariants that apply only while a server runs.
const OF_THIS_START: [&str; 2] = ["an_open_run_has_a_reason", "a_claim_is_of_this_start"];
/// Tolerance for due work. It is normally started within moments.
const LATE_MS: i64 = 60_000;
/// Tolerance for due deliveries. A receiver that does not answer gets one attempt at a time, so its deliveries queue
/// up.
const DELIVERY_LATE_MS: i64 = 10 * 60_000;
/// The age of a claim that is worth a warning. No step normally takes this long.
const CLAIM_LONG_MS: u64 = 24 * 3_600_000;
/// Tolerance between two clocks.
const CLOCK_APART_MS: u64 = 5_000;
/// Advice about a damaged database.
const DAMAGED: &str = "stop the server, keep a copy of the data directory, and restore a backup; what `sqlite3 errand.db .recover` \
     salvages is not fit for a server";
/// Maximum number of findings of one check that are shown.
const SENTENCES_MAX: usize = 20;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It works, but should be looked at.
    Warning,
    /// Something does not work, or soon will not.
    Problem,
}

impl Level {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// The finding of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The subject of the check, in one or two words.
    pub check: String,
    pub level: Level,
    /// The finding, as a sentence.
    pub found: String,
    /// What to do. `None` for [`Level::Ok`].
    pub advice: Option<String>,
}

impl Check {
    #[must_use]
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found, None)
    }

    #[must_use]
    pub fn warning(check: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, Level::Warning, found, Some(advice))
    }

    #[must_use]
    pub fn problem(check: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, Level::Problem, found, Some(advice))
    }

    fn new(check: &str, level: Level, found: impl Into<String>, advice: Option<&str>) -> Self {
        Self {
            check: check.to_owned(),
            level,
            found: found.into(),
            advice: advice.map(str::to_owned),
        }
    }

    /// A finding about a database whose content is not what SQLite wrote.
    #[must_use]
    pub fn damaged(check: &str, found: &str) -> Self {
        Self::problem(check, format!("the database is damaged: {found}"), DAMAGED)
    }

    /// A check that failed because of the store.
    fn failed(check: &str, error: &StoreError) -> Self {
        if let StoreError::Trouble {
            what: Trouble::Damaged,
            source,
        } = error
        {
            return Self::damaged(check, &source.to_string());
        }
        Self::problem(
            check,
            format!("this could not be checked: {}", error_chain(error)),
            "see the server's log and check the disk; `errand doctor` can be repeated",
        )
    }
}

/// What [`examine`] checks.
pub struct Subject {
    pub store: Store,
    /// The clock that produces the store's timestamps.
    pub clock: Clock,
    /// Maximum number of concurrent runs.
    pub places: u32,
    /// Whether a server runs on the store. If not, nothing processes due work, which is not a problem.
    pub is_served: bool,
}

/// Runs all checks. The duration is proportional to the size of the database and the number of files.
pub async fn examine(subject: &Subject) -> Vec<Check> {
    let now = subject.clock.now();
    let dir = subject.store.dir().to_owned();
    let mut checks = vec![server(subject), integrity(&subject.store).await];
    checks.push(invariants(subject, now).await);
    checks.extend(poisoned(subject).await);
    checks.extend(claims(subject, now).await);
    checks.extend(stuck(subject, now).await);
    checks.push(clock(&subject.store, now).await);
    checks.push(keys::master_key(&subject.store).await);
    checks.push(locks::foreign(&subject.store).await);
    let sandboxes = Sandboxes::beneath(&dir);
    checks.extend(disk::sandboxes(&subject.store, &sandboxes).await);
    let sizes = tokio::task::spawn_blocking(move || disk::sizes(&dir, &sandboxes)).await;
    checks.extend(sizes.unwrap_or_default());
    checks.extend(machine(subject.store.dir()).await);
    checks
}

/// Runs the checks that need no store, for the machine on which `dir` is.
pub async fn machine(dir: &Path) -> Vec<Check> {
    let dir = dir.to_owned();
    let space = tokio::task::spawn_blocking(move || disk::machine(&dir)).await;
    let mut checks = space.unwrap_or_default();
    checks.push(system::file_descriptors());
    checks
}

fn server(subject: &Subject) -> Check {
    let found = if subject.is_served {
        "a server runs on the directory and answers"
    } else {
        "no server runs on the directory; its files were checked directly"
    };
    Check::ok("server", found)
}

async fn integrity(store: &Store) -> Check {
    const CHECK: &str = "database file";
    match store.integrity().await {
        Ok(wrong) if wrong.is_empty() => Check::ok(
            CHECK,
            "SQLite finds the file complete and all references valid",
        ),
        Ok(wrong) => Check::damaged(CHECK, &listed(&wrong)),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// Violated invariants of the stored data, one sentence for each place.
async fn audit(subject: &Subject, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let found = subject.store.audit(AuditScope::All, now).await?;
    let reported = found.into_iter().filter(|finding| {
        // The next start releases the claims of the last one.
        subject.is_served || !OF_THIS_START.contains(&finding.invariant)
    });
    Ok(reported
        .map(|finding| {
            let run = finding.run.map(|run| format!("run {run}: "));
            format!(
                "{}{} ({})",
                run.unwrap_or_default(),
                finding.what,
                finding.sentence
            )
        })
        .collect())
}

async fn invariants(subject: &Subject, now: Timestamp) -> Check {
    const CHECK: &str = "invariants";
    match audit(subject, now).await {
        Ok(broken) if broken.is_empty() => Check::ok(CHECK, "the stored data is consistent"),
        Ok(broken) => Check::problem(
            CHECK,
            listed(&broken),
            "repair these runs (`errand runs repair ID`), and report the problem",
        ),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// Runs that are parked because they may have crashed the server repeatedly.
async fn poisoned(subject: &Subject) -> Option<Check> {
    const CHECK: &str = "poisoned runs";
    match subject.store.poisoned_runs().await {
        Ok((_, 0)) => None,
        Ok((runs, count)) => {
            let runs: Vec<String> = runs.iter().map(ToString::to_string).collect();
            Some(Check::warning(
                CHECK,
                format!(
                    "{count} runs are parked, because the server ended repeatedly while it worked on them: {}",
                    runs.join(", ")
                ),
                "find the cause in the server's log of that time and report it; `errand runs retry --force ID` continues one",
            ))
        }
        Err(error) => Some(Check::failed(CHECK, &error)),
    }
}

async fn claims(subject: &Subject, now: Timestamp) -> Vec<Check> {
    const CHECK: &str = "active runs";
    let figures = match subject.store.figures(now).await {
        Ok(figures) => figures,
        Err(error) => return vec![Check::failed(CHECK, &error)],
    };
    let places = subject.places;
    let (claims, others) = (figures.claims, figures.claims_of_others);
    if !subject.is_served {
        let found = format!(
            "{claims} runs were active when the server ended; the next start continues them"
        );
        return vec![Check::ok(CHECK, found)];
    }
    let oldest = figures.oldest_claim.map_or(0, |at| now.ms_since(at));
    let found = format!("{claims} runs are active, of at most {places}");
    let mut checks = vec![if oldest > CLAIM_LONG_MS {
        Check::warning(
            CHECK,
            format!("{found}; one has been active for {}", duration(oldest)),
            "check it with `errand runs list --status running`, and stop it if it hangs",
        )
    } else if claims > 0 {
        Check::ok(
            CHECK,
            format!("{found}; the oldest for {}", duration(oldest)),
        )
    } else {
        Check::ok(CHECK, found)
    }];
    if others > 0 {
        checks.push(Check::problem(
            "claims",
            format!(
                "{others} runs are claimed by a driver of an earlier start, which is impossible"
            ),
            "restart the server, which releases them, and report the problem",
        ));
    }
    checks
}

async fn stuck(subject: &Subject, now: Timestamp) -> Vec<Check> {
    const CHECK: &str = "waiting work";
    let before = |ms: i64| Timestamp::from_millis(now.as_millis().saturating_sub(ms));
    let store = &subject.store;
    let late = async {
        let mut late = store.overdue(before(LATE_MS)).await?;
        late.deliveries = store.overdue(before(DELIVERY_LATE_MS)).await?.deliveries;
        // Slots that are reserved for other keys may be free while runs of one key wait.
        let reserve = errand_core::fair::reserve_of(subject.places as usize);
        let claims = store.figures(now).await?.claims;
        let free = u64::from(subject.places) > claims.saturating_add(reserve as u64);
        Ok((late, free))
    };
    match late.await {
        Ok((late, places_free)) => judge_late(late, places_free, subject.is_served, now),
        Err(error) => vec![Check::failed(CHECK, &error)],
    }
}

/// Judges delayed work.
fn judge_late(late: Overdue, places_free: bool, is_served: bool, now: Timestamp) -> Vec<Check> {
    const CHECK: &str = "waiting work";
    const HANGS: &str = "restart the server, and report the problem with its log";
    let Overdue {
        places,
        timers,
        requests,
        deliveries,
    } = late;
    let count = places.count + timers.count + requests.count + deliveries.count;
    if count == 0 {
        return vec![Check::ok(CHECK, "no due work is delayed")];
    }
    if !is_served {
        let found = format!(
            "{count} items became due after the server ended; the next start processes them"
        );
        return vec![Check::ok(CHECK, found)];
    }
    let since = |late: Late| late.since.map_or(0, |at| now.ms_since(at));
    let line = |late: Late, what: &str| {
        format!(
            "{} {what}, the first for {}",
            late.count,
            duration(since(late))
        )
    };
    let mut checks = Vec::new();
    // If all slots are taken, runs and timers legitimately wait for one.
    for (late, what) in [
        (places, "runs wait for a slot"),
        (timers, "runs wait although their timer has expired"),
    ] {
        match (late.count, places_free) {
            (0, _) => {}
            (_, true) => checks.push(Check::problem(
                CHECK,
                format!("{}, although slots are free", line(late, what)),
                HANGS,
            )),
            (_, false) => checks.push(Check::warning(
                CHECK,
                format!("{}, and all slots are taken or reserved", line(late, what)),
                "raise engine.max_concurrent_runs if the machine has spare capacity, or stop runs",
            )),
        }
    }
    if requests.count > 0 {
        checks.push(Check::problem(
            CHECK,
            line(requests, "human requests have expired and are still open"),
            HANGS,
        ));
    }
    if deliveries.count > 0 {
        checks.push(Check::warning(
            CHECK,
            line(deliveries, "webhook deliveries are due and were not attempted"),
            "check what the receivers answer: one that times out gets one attempt at a time; raise webhooks.max_concurrent_deliveries if they are slow",
        ));
    }
    checks
}

async fn clock(store: &Store, now: Timestamp) -> Check {
    const CHECK: &str = "clock";
    match store.newest_moment().await {
        Ok(Some(newest)) if newest.ms_since(now) > CLOCK_APART_MS => Check::problem(
            CHECK,
            format!(
                "the clock shows {now}, but the newest stored timestamp is {newest}, {} later: the clock was set back",
                duration(newest.ms_since(now))
            ),
            "correct the machine's clock; due work waits until the stored time",
        ),
        Ok(_) => Check::ok(
            CHECK,
            format!("the clock shows {now}, and no stored timestamp is later"),
        ),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// Joins sentences, up to a readable number.
fn listed(sentences: &[String]) -> String {
    let shown: Vec<&str> = sentences
        .iter()
        .take(SENTENCES_MAX)
        .map(String::as_str)
        .collect();
    let more = sentences.len().saturating_sub(shown.len());
    let shown = shown.join("; ");
    if more > 0 {
        format!("{shown}; and {more} more")
    } else {
        shown
    }
}

/// A duration for people, in its largest unit.
fn duration(ms: u64) -> String {
    let (minutes, hours) = (ms / 60_000, ms / 3_600_000);
    match (hours / 24, hours, minutes) {
        (days, ..) if days > 1 => format!("{days} days"),
        (_, hours, _) if hours > 1 => format!("{hours} hours"),
        (.., minutes) if minutes > 1 => format!("{minutes} minutes"),
        _ => format!("{} seconds", ms / 1000),
    }
}

/// A size for people.
fn bytes(count: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    UNITS.iter().find(|(_, size)| count >= *size).map_or_else(
        || format!("{count} bytes"),
        |(unit, size)| {
            let tenths = u128::from(count) * 10 / u128::from(*size);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        },
    )
}

#[cfg(test)]
mod tests;

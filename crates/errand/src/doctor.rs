//! What `errand doctor` looks at: whether the server can do its work on this machine and with this data.
//!
//! Promised: nothing is changed. Each check gives one line: `ok`, `warning` (it works, and somebody should look) or
//! `problem` (something does not work, or soon will not), with a sentence of what was found and, where it is not `ok`,
//! what to do. A check that cannot be made is a line as well, and keeps none of the others from being made.
//!
//! Left out: setting anything right, and what a request to the API would show.

pub(crate) mod disk;
mod isolation;
mod keys;
mod locks;
mod system;

use std::path::Path;

use errand_core::cause::chain;
use errand_core::time::Timestamp;
use errand_engine::clock::Clock;
use errand_engine::sandboxes::Sandboxes;
use errand_store::{AuditScope, Late, Overdue, Store, StoreError, Trouble};
use serde::{Deserialize, Serialize};

pub use isolation::isolation;

/// Invariants that speak of this start of the server.
const OF_THIS_START: [&str; 2] = ["an_open_run_has_a_reason", "a_claim_is_of_this_start"];
/// How late something may be: what is due is taken up within moments.
const LATE_MS: i64 = 60_000;
/// How late a delivery may be: of a receiver that does not answer, one is tried at a time.
const DELIVERY_LATE_MS: i64 = 10 * 60_000;
/// How long a claim may be held before it is worth a look: no step takes so long in ordinary work.
const CLAIM_LONG_MS: u64 = 24 * 3_600_000;
/// How far two clocks may be apart.
const CLOCK_APART_MS: u64 = 5_000;
/// What to do about a damaged database.
const DAMAGED: &str = "stop the server, keep a copy of the data directory, and restore a backup; what `sqlite3 errand.db .recover` \
     salvages is no store that a server should work with";
/// Most sentences of one check that finds many things.
const SENTENCES_MAX: usize = 20;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Warning,
    /// Something does not work, or soon will not.
    Problem,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub check: String,
    /// How it went.
    pub level: Level,
    /// What was found: one sentence.
    pub found: String,
    /// What to do; none where nothing is to be done.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    #[must_use]
    pub fn ok(check: &str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found, None)
    }

    /// Somebody should look.
    #[must_use]
    pub fn warning(check: &str, found: impl Into<String>, advice: &str) -> Self {
        Self::new(check, Level::Warning, found, Some(advice))
    }

    /// Something does not work.
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

    /// The database is not what SQLite wrote.
    #[must_use]
    pub fn damaged(check: &str, found: &str) -> Self {
        Self::problem(check, format!("the database is damaged: {found}"), DAMAGED)
    }

    /// A check that the store did not let be made.
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
            format!("this could not be looked at: {}", chain(error)),
            "look at the server's log and at the disk; `errand doctor` can be repeated",
        )
    }
}

/// What is looked at.
pub struct Subject {
    /// The store.
    pub store: Store,
    /// The clock that the store's moments are of.
    pub clock: Clock,
    /// How many runs may work at once.
    pub places: u32,
    /// Whether a server works on the store now: without one nothing is taken up, and that is no fault.
    pub is_served: bool,
}

/// Looks at everything. Takes time in proportion to the database and to the number of files.
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

/// What can be looked at without a store: the machine that `dir` is on.
pub async fn machine(dir: &Path) -> Vec<Check> {
    let dir = dir.to_owned();
    let space = tokio::task::spawn_blocking(move || disk::machine(&dir)).await;
    let mut checks = space.unwrap_or_default();
    checks.push(system::file_descriptors());
    checks
}

fn server(subject: &Subject) -> Check {
    let found = if subject.is_served {
        "a server works on the directory and answers"
    } else {
        "no server works on the directory; it was looked at itself"
    };
    Check::ok("server", found)
}

async fn integrity(store: &Store) -> Check {
    const CHECK: &str = "database file";
    match store.integrity().await {
        Ok(wrong) if wrong.is_empty() => Check::ok(
            CHECK,
            "SQLite finds its file whole and all references in place",
        ),
        Ok(wrong) => Check::damaged(CHECK, &listed(&wrong)),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// The invariants of what is stored that do not hold: a sentence for each place.
async fn audit(subject: &Subject, now: Timestamp) -> Result<Vec<String>, StoreError> {
    let found = subject.store.audit(AuditScope::All, now).await?;
    let told = found.into_iter().filter(|finding| {
        // Claims of the last start are given back by the next.
        subject.is_served || !OF_THIS_START.contains(&finding.invariant)
    });
    Ok(told
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
        Ok(broken) if broken.is_empty() => Check::ok(CHECK, "what is stored is sound"),
        Ok(broken) => Check::problem(
            CHECK,
            listed(&broken),
            "set these runs right (`errand runs repair ID`), and report how it came about",
        ),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// Runs that are parked, since they may be what ended the server again and again.
async fn poisoned(subject: &Subject) -> Option<Check> {
    const CHECK: &str = "poisoned runs";
    match subject.store.poisoned_runs().await {
        Ok((_, 0)) => None,
        Ok((runs, count)) => {
            let runs: Vec<String> = runs.iter().map(ToString::to_string).collect();
            Some(Check::warning(
                CHECK,
                format!(
                    "{count} runs are parked, since the server ended again and again while it worked on them: {}",
                    runs.join(", ")
                ),
                "find out why with the server's log of that time and report it; `errand runs retry --force ID` lets one go on",
            ))
        }
        Err(error) => Some(Check::failed(CHECK, &error)),
    }
}

async fn claims(subject: &Subject, now: Timestamp) -> Vec<Check> {
    const CHECK: &str = "runs at work";
    let figures = match subject.store.figures(now).await {
        Ok(figures) => figures,
        Err(error) => return vec![Check::failed(CHECK, &error)],
    };
    let places = subject.places;
    let (claims, others) = (figures.claims, figures.claims_of_others);
    if !subject.is_served {
        let found =
            format!("{claims} runs were at work when the server ended; a start goes on with them");
        return vec![Check::ok(CHECK, found)];
    }
    let oldest = figures.oldest_claim.map_or(0, |at| now.ms_since(at));
    let found = format!("{claims} runs are at work, of at most {places}");
    let mut checks = vec![if oldest > CLAIM_LONG_MS {
        Check::warning(
            CHECK,
            format!("{found}; one has been for {}", duration(oldest)),
            "look at it with `errand runs list --status running`, and stop it if it hangs",
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
            format!("{others} runs are held by a driver of an earlier start, which cannot be"),
            "restart the server, which takes them back, and report how it came about",
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
        // What is kept for others is free while runs of one key wait, as it should be.
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

/// What follows from what is late.
fn judge_late(late: Overdue, places_free: bool, is_served: bool, now: Timestamp) -> Vec<Check> {
    const CHECK: &str = "waiting work";
    const HANGS: &str = "restart the server, and report how it came about with its log";
    let Overdue {
        places,
        timers,
        requests,
        deliveries,
    } = late;
    let count = places.count + timers.count + requests.count + deliveries.count;
    if count == 0 {
        return vec![Check::ok(CHECK, "nothing that is due waits for long")];
    }
    if !is_served {
        let found =
            format!("{count} things have become due since the server ended; a start takes them up");
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
    // With all places taken, runs and timers wait for one, as they should.
    for (late, what) in [
        (places, "runs wait for a place"),
        (timers, "runs wait though their timer is over"),
    ] {
        match (late.count, places_free) {
            (0, _) => {}
            (_, true) => checks.push(Check::problem(
                CHECK,
                format!("{}, while places are free", line(late, what)),
                HANGS,
            )),
            (_, false) => checks.push(Check::warning(
                CHECK,
                format!(
                    "{}, and all places are taken, or kept for others",
                    line(late, what)
                ),
                "raise engine.max_concurrent_runs if the machine has room, or stop runs",
            )),
        }
    }
    if requests.count > 0 {
        checks.push(Check::problem(
            CHECK,
            line(requests, "human requests have lapsed and are still open"),
            HANGS,
        ));
    }
    if deliveries.count > 0 {
        checks.push(Check::warning(
            CHECK,
            line(deliveries, "deliveries to webhooks are due and not tried"),
            "look at what the receivers answer: one that lets its attempts time out gets one at a time; raise webhooks.max_concurrent_deliveries if they are slow",
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
                "it is {now} by the clock, and the newest thing stored is of {newest}, {} later: the clock was set back",
                duration(newest.ms_since(now))
            ),
            "set the machine's clock right; what is due by the clock waits until then",
        ),
        Ok(_) => Check::ok(
            CHECK,
            format!("it is {now}, and nothing stored is of a later moment"),
        ),
        Err(error) => Check::failed(CHECK, &error),
    }
}

/// Sentences in one, as many as a person reads.
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

/// A time for people: its largest unit.
fn duration(ms: u64) -> String {
    let (minutes, hours) = (ms / 60_000, ms / 3_600_000);
    match (hours / 24, hours, minutes) {
        (days, ..) if days > 1 => format!("{days} days"),
        (_, hours, _) if hours > 1 => format!("{hours} hours"),
        (.., minutes) if minutes > 1 => format!("{minutes} minutes"),
        _ => format!("{} seconds", ms / 1000),
    }
}

/// Bytes for people.
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

//! How many files and connections the process may have open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// The soft limit is raised up to this: more is of no use, and some systems have a hard limit in the billions.
const RAISED_TO_MAX: u64 = 1 << 20;
/// Fewer are used up by some hundred streams and runs.
pub(crate) const ENOUGH: u64 = 4096;
/// What a server needs beside its store: the log, listeners, sockets, the runtime, and a file or two of a run.
const BESIDE_THE_STORE: u64 = 24;
/// A connection of SQLite has its database and its log open.
const OF_A_CONNECTION: u64 = 2;
/// Connections beside those of the setting: the writer's, the checkpoints', and those for short reads.
const CONNECTIONS: u64 = 6;

/// Raises the soft limit to the hard one. What a command or a parser may open has limits of its own.
pub(crate) fn raise() -> Option<u64> {
    let limits = getrlimit(Resource::Nofile);
    let most = limits.maximum.unwrap_or(RAISED_TO_MAX).min(RAISED_TO_MAX);
    let current = limits.current?;
    if current >= most {
        return Some(current);
    }
    let raised = Rlimit {
        current: Some(most),
        maximum: limits.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => Some(most),
        Err(error) => {
            tracing::warn!(%error, limit = current, "the limit of open files could not be raised");
            Some(current)
        }
    }
}

/// Whether a server can work with so many: the error says how many it needs.
pub(crate) fn check(limit: Option<u64>, config: &Config) -> Result<(), String> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let connections = u64::from(config.store.read_connections) + CONNECTIONS;
    let needed = connections * OF_A_CONNECTION + BESIDE_THE_STORE;
    if limit < needed {
        return Err(format!(
            "at most {limit} files and connections can be open at once, and a server needs {needed} to start: raise the limit, \
             to 65536 if the system allows it (`ulimit -n 65536`, or LimitNOFILE= of the service)"
        ));
    }
    if limit < ENOUGH {
        tracing::warn!(
            limit,
            "few files and connections can be open at once: what needs more of them waits; raise the limit to 4096 or more (`ulimit -n`, or LimitNOFILE= of the service)"
        );
    }
    Ok(())
}

//! The limit of open file descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::app::STORE_READERS;

/// The soft limit is raised up to this. More is useless, and some systems have hard limits in the billions.
const RAISED_TO_MAX: u64 = 1 << 20;
/// Below this, some hundred streams and runs use up all descriptors, so the server warns.
pub(crate) const ENOUGH: u64 = 4096;
/// Descriptors a server needs in addition to its store: log, listeners, sockets, runtime, and one or two files of a
/// run.
const BESIDE_THE_STORE: u64 = 24;
/// A SQLite connection opens its database and its write-ahead log.
const OF_A_CONNECTION: u64 = 2;
/// Connections of the store in addition to its pooled readers: the writer's, the one for checkpoints, and those for short reads.
const CONNECTIONS: u64 = 6;

/// Raises the soft limit to the hard limit, up to [`RAISED_TO_MAX`]. Commands and parsers have their own limits.
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

/// Whether the limit is sufficient for a server. The error says how many descriptors it needs.
pub(crate) fn check(limit: Option<u64>) -> Result<(), String> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let connections = u64::from(STORE_READERS) + CONNECTIONS;
    let needed = connections * OF_A_CONNECTION + BESIDE_THE_STORE;
    if limit < needed {
        return Err(format!(
            "the limit of open files is {limit}, but a server needs {needed} to start: raise the limit, \
             to 65536 if the system allows it (`ulimit -n 65536`, or LimitNOFILE= of the service)"
        ));
    }
    if limit < ENOUGH {
        tracing::warn!(
            limit,
            "the limit of open files is low, so work may have to wait; raise it to 4096 or more (`ulimit -n`, or LimitNOFILE= of the service)"
        );
    }
    Ok(())
}

//! Errors as one text, for logs and for people: each layer says its own part only.

use std::error::Error;
use std::io;

/// What the system says where descriptors, memory or processes have run out: ENOMEM, EAGAIN (of a new process or thread),
/// ENFILE, EMFILE, ENOBUFS.
const EXHAUSTED: [i32; 5] = [12, 11, 23, 24, 105];

/// The error and its causes, from the outside in, separated by colons. A cause that says what was said already is left
/// out.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(Some(error), |&error| error.source()) {
        let part = cause.to_string();
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

/// Whether an error, or one of its causes, says that the machine or the process has run out of descriptors, memory or
/// processes for now: what failed can be done later, and nobody is to blame for it.
#[must_use]
pub fn is_exhausted(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|cause| {
        let Some(cause) = cause.downcast_ref::<io::Error>() else {
            return false;
        };
        let wrapped = cause.get_ref().is_some_and(|inner| {
            let inner: &(dyn Error + 'static) = inner;
            is_exhausted(inner)
        });
        wrapped
            || cause
                .raw_os_error()
                .is_some_and(|code| EXHAUSTED.contains(&code))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the tool could not {0}")]
    struct Outer(&'static str, #[source] io::Error);

    #[test]
    fn what_has_run_out_is_found_however_deep_it_is() {
        let of = io::Error::from_raw_os_error;
        assert!(is_exhausted(&Outer("open", of(24))));
        assert!(is_exhausted(&Outer("open", io::Error::other(of(23)))));
        assert!(is_exhausted(&of(12)));
        assert!(!is_exhausted(&Outer("open", of(2))));
        assert!(!is_exhausted(&Outer(
            "open",
            io::Error::other("Too many open files")
        )));
    }
}

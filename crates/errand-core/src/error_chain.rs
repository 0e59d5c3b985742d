//! Error chains as one line of text, for logs and for people.
//!
//! Each error type prints only its own part and leaves its source out; [`error_chain`] joins the parts once, at the edge.

use std::error::Error;
use std::io;

/// Error numbers (Linux) of resources that have run out: ENOMEM, EAGAIN (from `fork` or `clone`), ENFILE, EMFILE,
/// ENOBUFS.
const EXHAUSTED: [i32; 5] = [12, 11, 23, 24, 105];

/// Formats an error and its sources, outermost first, separated by colons. A source whose text the chain already ends
/// with is omitted, because some libraries repeat their source in `Display`.
#[must_use]
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    error_chain_with(error, |_| None)
}

/// Like [`error_chain`], with advice for some of the errors, each after the error's own text and a semicolon.
#[must_use]
pub fn error_chain_with(
    error: &(dyn Error + 'static),
    advice: impl Fn(&(dyn Error + 'static)) -> Option<&'static str>,
) -> String {
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
        if let Some(advice) = advice(cause) {
            text.push_str("; ");
            text.push_str(advice);
        }
    }
    text
}

/// Whether an error or one of its sources says that file descriptors, memory or processes have run out for now. Such
/// a failure is temporary and not the caller's fault, so it is worth a retry.
#[must_use]
pub fn is_exhausted(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|cause| {
        let Some(cause) = cause.downcast_ref::<io::Error>() else {
            return false;
        };
        let wrapped = cause.get_ref().is_some_and(|inner| {
            // `io::Error::source` skips the wrapped error itself and returns that error's source, so look inside.
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
    fn exhaustion_is_found_at_any_depth_of_the_chain() {
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

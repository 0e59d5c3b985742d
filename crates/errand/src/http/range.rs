//! The `Range` header. Only a single range of bytes is supported; for anything else, the complete file is returned.

use http::header;
use http::{HeaderMap, HeaderValue};

/// The part of a file to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// From the first to the last byte, inclusive. Both are inside the file.
    Bytes {
        first: u64,
        last: u64,
    },
    /// The range is outside the file.
    Unsatisfiable,
}

/// The part that the headers request. `etag`: the file's current tag.
pub(crate) fn asked_for(headers: &HeaderMap, size_bytes: u64, etag: &HeaderValue) -> Part {
    // If the client's tag is outdated, or it sent a date instead of a tag, the complete file is returned.
    if let Some(condition) = headers.get(header::IF_RANGE)
        && condition != etag
    {
        return Part::Whole;
    }
    match headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok())
    {
        Some(text) => parse(text, size_bytes),
        None => Part::Whole,
    }
}

/// Whether the client already has the version with this tag (`If-None-Match`).
pub(crate) fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let plain = |tag: &[u8]| tag.strip_prefix(b"W/").unwrap_or(tag).to_vec();
    let etag = plain(etag.as_bytes());
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|tag| plain(tag.trim_ascii()))
        .any(|tag| tag == b"*" || tag == etag)
}

fn parse(text: &str, size_bytes: u64) -> Part {
    let Some((unit, range)) = text.split_once('=') else {
        return Part::Whole;
    };
    let Some((first, last)) = range.trim().split_once('-') else {
        return Part::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Part::Whole;
    }
    match (number(first), number(last)) {
        (Number::Is(first), Number::Is(last)) if first > last => Part::Whole,
        (Number::Is(first), last @ (Number::Is(_) | Number::Absent)) => {
            let end = size_bytes.saturating_sub(1);
            let last = if let Number::Is(last) = last {
                last.min(end)
            } else {
                end
            };
            if first < size_bytes {
                Part::Bytes { first, last }
            } else {
                Part::Unsatisfiable
            }
        }
        (Number::Absent, Number::Is(length)) if length == 0 || size_bytes == 0 => {
            Part::Unsatisfiable
        }
        (Number::Absent, Number::Is(length)) => Part::Bytes {
            first: size_bytes.saturating_sub(length),
            last: size_bytes - 1,
        },
        _ => Part::Whole,
    }
}

enum Number {
    Is(u64),
    Absent,
    Bad,
}

fn number(text: &str) -> Number {
    let text = text.trim();
    match text {
        "" => Number::Absent,
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Number::Is(text.parse().unwrap_or(u64::MAX))
        }
        _ => Number::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: HeaderValue = HeaderValue::from_static("\"a\"");

    #[test]
    fn ranges() {
        let bytes = |first, last| Part::Bytes { first, last };
        for (text, size, part) in [
            ("bytes=0-0", 10, bytes(0, 0)),
            ("bytes=2-5", 10, bytes(2, 5)),
            ("bytes=2-", 10, bytes(2, 9)),
            ("bytes=2-99", 10, bytes(2, 9)),
            ("bytes=-3", 10, bytes(7, 9)),
            ("bytes=-99", 10, bytes(0, 9)),
            ("Bytes = 1-2", 10, bytes(1, 2)),
            ("bytes=9-18446744073709551616", 10, bytes(9, 9)),
            ("bytes=10-", 10, Part::Unsatisfiable),
            ("bytes=18446744073709551616-", 10, Part::Unsatisfiable),
            ("bytes=-0", 10, Part::Unsatisfiable),
            ("bytes=0-", 0, Part::Unsatisfiable),
            ("bytes=-1", 0, Part::Unsatisfiable),
            ("bytes=5-2", 10, Part::Whole),
            ("bytes=0-1,3-4", 10, Part::Whole),
            ("bytes=", 10, Part::Whole),
            ("bytes=-", 10, Part::Whole),
            ("bytes=a-b", 10, Part::Whole),
            ("bytes=+1-2", 10, Part::Whole),
            ("lines=1-2", 10, Part::Whole),
            ("nonsense", 10, Part::Whole),
        ] {
            assert_eq!(parse(text, size), part, "{text} of {size}");
        }
    }

    #[test]
    fn a_failed_condition_returns_the_complete_file() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, "bytes=1-2".parse().unwrap());
        assert_eq!(
            asked_for(&headers, 10, &TAG),
            Part::Bytes { first: 1, last: 2 }
        );
        headers.insert(header::IF_RANGE, "\"x\"".parse().unwrap());
        assert_eq!(asked_for(&headers, 10, &TAG), Part::Whole);
        assert_eq!(asked_for(&HeaderMap::new(), 10, &TAG), Part::Whole);
    }
}

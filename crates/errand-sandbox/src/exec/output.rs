//! Keeps the beginning and the end of an output, and counts what is dropped in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Maximum bytes kept of one output, half of them from its end. The two outputs of a command together are 1 MB.
pub const OUTPUT_BYTES_MAX: usize = 500_000;

/// Size of one read.
const READ_BYTES: usize = 64 * 1024;

/// An output, as far as it was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The text. Bytes that are not UTF-8 are replaced, and a mark shows where bytes were dropped.
    pub text: String,
    /// Bytes written in total.
    pub total_bytes: u64,
    /// Whether bytes were dropped.
    pub truncated: bool,
}

/// Collects an output of any length in bounded memory.
pub(super) struct Collector {
    half: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    total: u64,
}

impl Collector {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            half: bytes_max / 2,
            head: Vec::new(),
            tail: VecDeque::new(),
            total: 0,
        }
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.total += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let room = self.half.saturating_sub(self.head.len());
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(head);
        // Only the last bytes of a long part can be in the tail.
        let rest = rest
            .get(rest.len().saturating_sub(self.half)..)
            .unwrap_or_default();
        let over = (self.tail.len() + rest.len()).saturating_sub(self.half);
        self.tail.drain(..over.min(self.tail.len()));
        self.tail.extend(rest);
    }

    pub(super) fn finish(self) -> Output {
        let Self {
            half,
            head,
            mut tail,
            total,
        } = self;
        let kept = head.len() + tail.len();
        let left_out = total.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX));
        let tail = tail.make_contiguous();
        if left_out == 0 {
            let mut all = head;
            all.extend_from_slice(tail);
            let (text, shortened) = bounded(&all, half * 2, End::Head);
            return Output {
                text,
                total_bytes: total,
                truncated: shortened,
            };
        }
        let (mut text, _) = bounded(&head, half, End::Head);
        let (tail, _) = bounded(tail, half, End::Tail);
        text.push_str(&format!("\n[… {left_out} bytes left out …]\n"));
        text.push_str(&tail);
        Output {
            text,
            total_bytes: total,
            truncated: true,
        }
    }
}

/// Which end of a text to keep.
#[derive(Clone, Copy)]
enum End {
    Head,
    Tail,
}

/// Converts to text of at most `bytes_max` bytes. The limit is needed because an invalid byte becomes three.
fn bounded(bytes: &[u8], bytes_max: usize, end: End) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.len() <= bytes_max {
        return (text, false);
    }
    let kept = match end {
        End::Head => text.get(..text.floor_char_boundary(bytes_max)),
        End::Tail => text.get(text.ceil_char_boundary(text.len() - bytes_max)..),
    };
    (kept.unwrap_or_default().to_owned(), true)
}

/// Reads an output to its end.
pub(super) async fn collect(pipe: impl AsyncRead + Unpin) -> Output {
    collect_counted(pipe, Arc::default()).await
}

/// Like [`collect`], and adds the number of bytes read to `read` as it goes.
pub(super) async fn collect_counted(
    mut pipe: impl AsyncRead + Unpin,
    read: Arc<AtomicU64>,
) -> Output {
    let mut collector = Collector::new(OUTPUT_BYTES_MAX);
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count) = pipe.read(&mut buffer).await
        && count > 0
    {
        collector.take(buffer.get(..count).unwrap_or_default());
        read.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
    collector.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(parts: &[&[u8]], bytes_max: usize) -> Output {
        let mut collector = Collector::new(bytes_max);
        for part in parts {
            collector.take(part);
        }
        collector.finish()
    }

    #[test]
    fn a_short_output_is_kept_whole() {
        let whole = collected(&[b"abcd", b"", b"efgh", b"ij"], 10);
        assert_eq!(
            (whole.text.as_str(), whole.total_bytes, whole.truncated),
            ("abcdefghij", 10, false)
        );
        // A character that arrives in two parts, across the middle.
        let split = collected(&[b"aaaa\xc3", b"\xa9bbbb"], 10);
        assert_eq!(split.text, "aaaaébbbb");
    }

    #[test]
    fn the_middle_is_left_out_and_counted() {
        let long = collected(&[b"0123456789abcdefghijklmnopqrstuvwxyz"], 10);
        assert_eq!(long.text, "01234\n[… 26 bytes left out …]\nvwxyz");
        assert_eq!((long.total_bytes, long.truncated), (36, true));
        let bytewise: Vec<&[u8]> = b"0123456789abcdefghijklmnopqrstuvwxyz".chunks(1).collect();
        assert_eq!(collected(&bytewise, 10), long);
    }

    #[test]
    fn invalid_utf8_is_replaced_within_the_bound() {
        let binary = collected(&[&[0xff; 3]], 100);
        assert_eq!(binary.text, "\u{fffd}\u{fffd}\u{fffd}");
        let much = collected(&[&[0xff; 100]], 100);
        assert!(much.text.len() <= 100 && much.truncated, "{much:?}");
    }
}

//! Pages that are bounded by number and by bytes.
//!
//! Guarantees: a page holds no more than its bounds, but for one entry that is larger than a page by itself; that one is
//! read only by a caller that asks for it (`whole`). Sizes are those of the stored text.

use errand_core::limits::MESSAGES_PAGE_BYTES_MAX;

/// How much one page may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBounds {
    /// Most entries.
    pub entries: u32,
    /// Most bytes of stored text.
    pub bytes: u64,
    /// Whether a first entry that is larger than `bytes` is read all the same, alone.
    pub whole: bool,
}

impl PageBounds {
    /// Those of a page of messages: it always moves forward.
    pub(crate) fn messages(limit: u32) -> Self {
        Self {
            entries: limit,
            bytes: MESSAGES_PAGE_BYTES_MAX,
            whole: true,
        }
    }

    pub(crate) fn filling(self) -> Filling {
        Filling {
            bounds: self,
            entries: 0,
            bytes: 0,
        }
    }
}

/// A page while it is read.
pub(crate) struct Filling {
    bounds: PageBounds,
    entries: u32,
    bytes: u64,
}

/// Whether an entry belongs to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fits {
    Yes,
    /// It begins the next page.
    No,
    /// It is larger than a page, and would be alone on it.
    Never,
}

impl Filling {
    /// Whether an entry of this size is on the page; counts it if so.
    pub(crate) fn add(&mut self, bytes: u64) -> Fits {
        let sum = self.bytes.saturating_add(bytes);
        let is_within = sum <= self.bounds.bytes && self.entries < self.bounds.entries;
        let is_first = self.entries == 0;
        if !is_within && !is_first {
            return Fits::No;
        }
        if !is_within && !self.bounds.whole {
            return Fits::Never;
        }
        self.entries += 1;
        self.bytes = sum;
        Fits::Yes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_bytes_and_always_holds_one() {
        let bounds = |whole| PageBounds {
            entries: 3,
            bytes: 10,
            whole,
        };
        let mut filling = bounds(false).filling();
        assert_eq!(
            [4, 6, 1].map(|bytes| filling.add(bytes)),
            [Fits::Yes, Fits::Yes, Fits::No]
        );
        let mut filling = bounds(false).filling();
        assert_eq!(
            [1, 1, 1, 1].map(|bytes| filling.add(bytes)),
            [Fits::Yes, Fits::Yes, Fits::Yes, Fits::No]
        );
        assert_eq!(bounds(false).filling().add(11), Fits::Never);
        let mut filling = bounds(true).filling();
        assert_eq!(
            [11, 0].map(|bytes| filling.add(bytes)),
            [Fits::Yes, Fits::No]
        );
    }
}

//! Pages that are limited by number and by bytes.
//!
//! # Guarantees
//!
//! A page never exceeds its limits, except for a single entry that is larger than a page. Such an entry is only read
//! for a caller that asks for it (`whole`). Sizes are those of the stored text.

use errand_core::limits::MESSAGES_PAGE_BYTES_MAX;

/// Limits of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBounds {
    /// Maximum number of entries.
    pub entries: u32,
    /// Maximum bytes of stored text.
    pub bytes: u64,
    /// Whether to read a first entry that is larger than `bytes`. It is then alone on the page.
    pub whole: bool,
}

impl PageBounds {
    /// Limits for pages of messages, which must always advance.
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

/// A page that is being read.
pub(crate) struct Filling {
    bounds: PageBounds,
    entries: u32,
    bytes: u64,
}

/// Whether an entry belongs on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fits {
    Yes,
    /// It begins the next page.
    No,
    /// It is larger than a page.
    Never,
}

impl Filling {
    /// Checks whether an entry of this size fits, and counts it if it does.
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
    fn a_page_is_limited_by_bytes_but_holds_at_least_one_entry() {
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

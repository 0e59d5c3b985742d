//! Reproducible random choices: the same seed gives the same choices on every machine.

/// A sequence of numbers from a seed (splitmix64). Not for secrets.
pub(super) struct Seeded(u64);

impl Seeded {
    /// A separate sequence for each topic and number, so that changing one does not affect the others.
    pub(super) fn new(seed: u64, topic: &str, number: u64) -> Self {
        let mut row = Self(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for byte in topic.bytes() {
            row.0 = row.0.rotate_left(8) ^ u64::from(byte);
            row.0 = row.next();
        }
        row
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    /// True once in `times` calls on average.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(length).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_another_topic_differs() {
        let row = |topic, number| Seeded::new(7, topic, number).bytes(32);
        assert_eq!(row("upload", 1), row("upload", 1));
        assert_ne!(row("upload", 1), row("upload", 2));
        assert_ne!(row("upload", 1), row("choice", 1));
        assert_eq!(Seeded::new(7, "upload", 1).bytes(13).len(), 13);
    }
}

//! `[store]`: how the embedded store works.

use super::kinds::whole;
use super::reader::section;

section! {
    /// How the embedded store works.
    pub struct StoreConfig["store"] {
        /// How many connections read at the same time, beside the one that writes.
        read_connections: u32 = whole(4, 1..=64).unit("connections"),
        /// How much of the database each connection that reads keeps in memory; the one that writes keeps eight times that.
        cache_kib: u32 = whole(2_048, 256..=1_048_576).unit("KiB"),
    }
}

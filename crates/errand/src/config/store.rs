//! `[store]`: the embedded store.

use super::kinds::whole;
use super::reader::section;

section! {
    /// The embedded store.
    pub struct StoreConfig["store"] {
        /// Number of connections for reading, in addition to the one that writes.
        read_connections: u32 = whole(4, 1..=64).unit("connections"),
        /// Size of the database cache of each connection for reading; that of the writing connection is eight times as
        /// large.
        cache_kib: u32 = whole(2_048, 256..=1_048_576).unit("KiB"),
    }
}

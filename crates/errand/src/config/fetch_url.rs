//! `[fetch_url]`: pages that assignments read.

use super::kinds::boolean;
use super::reader::section;

section! {
    /// Pages that assignments read.
    pub struct FetchUrlConfig["fetch_url"] {
        /// Whether pages in private networks may be read, the server's own machine among them.
        allow_private_networks: bool = boolean(false),
    }
}

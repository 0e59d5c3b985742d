//! `[fetch_url]`: web pages that assignments read.

use super::kinds::boolean;
use super::reader::section;

section! {
    /// Web pages that assignments read.
    pub struct FetchUrlConfig["fetch_url"] {
        /// Whether pages in private networks, including this machine, can be read.
        allow_private_networks: bool = boolean(false),
    }
}

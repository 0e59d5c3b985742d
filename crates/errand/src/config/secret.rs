//! Values that must not be displayed.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::kinds::{Setting, optional};

/// A value that cannot be printed, logged or serialized by accident: it has no `Debug`, `Display` or `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Callers must not disclose it.
    pub fn expose(&self) -> &T {
        &self.0
    }
}

/// Name of the setting. Its variable is `ERRAND_MASTER_KEY`, without a section.
pub(super) const MASTER_KEY: &str = "master_key";

/// 32 bytes as 64 hexadecimal digits or in base64. Messages never quote the value.
pub(super) fn master_key() -> Setting<Option<Secret<[u8; 32]>>> {
    let parse = |text: &str| {
        let bytes = if text.len() == 64 {
            hex::decode(text).ok()
        } else {
            from_base64(text)
        };
        let key = bytes
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Secret::new);
        key.ok_or_else(|| {
            "is not 32 bytes, written as 64 hexadecimal digits or in base64".to_owned()
        })
    };
    let show = |value: &Option<Secret<[u8; 32]>>| {
        Some(
            if value.is_some() {
                "(set)"
            } else {
                "(not set)"
            }
            .to_owned(),
        )
    };
    let setting = optional("32 bytes in hexadecimal or base64", parse, show);
    Setting {
        environment_only: true,
        ..setting
    }
}

/// Accepts both alphabets, with and without padding.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) {
        &alphabet::URL_SAFE
    } else {
        &alphabet::STANDARD
    };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

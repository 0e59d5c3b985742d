//! Generates secrets: API keys, set-up tokens, webhook secrets.
//!
//! Guarantees: all of them come from the system's random source, without bias. An API key is `dv_` and 32 characters of
//! `[0-9A-Za-z]` (190 bits). No secret can be printed by accident. The SHA-256 of a key or token is stored; with this
//! many random bits, neither a salt nor a slow hash is needed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

/// Prefix of API keys.
const KEY_PREFIX: &str = "dv_";
/// Random characters of an API key, and length of a set-up token.
const RANDOM_CHARS: usize = 32;
/// Characters of a key that may be displayed to identify it. The rest keeps 155 bits.
const SHOWN_CHARS: usize = KEY_PREFIX.len() + 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The largest multiple of the alphabet's length that fits in a byte. Bytes from here on are drawn again, because their
/// remainders would make the first characters of the alphabet more likely.
const UNBIASED_BELOW: u8 = 248;
const _: () = assert!(UNBIASED_BELOW as usize == 256 - 256 % ALPHABET.len());

/// The system provided no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system provides no random bytes")]
pub struct NoRandomness(#[source] getrandom::Error);

/// Random bytes from the system.
///
/// # Errors
/// [`NoRandomness`].
pub fn random_bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(NoRandomness)?;
    Ok(bytes)
}

/// An API key. Has no `Debug` and no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeySecret(String);

impl ApiKeySecret {
    /// Generates a key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        Ok(Self(format!("{KEY_PREFIX}{}", random_text(random_bytes)?)))
    }

    /// Parses a key. `None` if the text does not have the form of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let random = text.strip_prefix(KEY_PREFIX)?;
        is_random_text(random).then(|| Self(text.to_owned()))
    }

    /// The key itself. Callers must disclose it only to the person it was created for.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest that is stored.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// The first nine characters, which identify the key in lists.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.0.get(..SHOWN_CHARS).unwrap_or_default()
    }
}

/// The token of a set-up link, 32 characters. Has no `Debug` and no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct SetUpToken(String);

impl SetUpToken {
    /// Generates a token.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate() -> Result<Self, NoRandomness> {
        random_text(random_bytes).map(Self)
    }

    /// Parses a token. `None` if the text does not have the form of one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_random_text(text).then(|| Self(text.to_owned()))
    }

    /// The token itself, for the link.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The digest that is stored.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

/// Generates a webhook secret: `whsec_` and 32 random bytes in base64, as in the Standard Webhooks specification.
///
/// # Errors
/// [`NoRandomness`].
pub fn webhook_secret() -> Result<String, NoRandomness> {
    Ok(format!("whsec_{}", STANDARD.encode(random_bytes::<32>()?)))
}

/// 32 characters, each uniformly chosen from 62. `draw` returns random bytes.
fn random_text<E>(mut draw: impl FnMut() -> Result<[u8; 64], E>) -> Result<String, E> {
    let mut text = String::with_capacity(RANDOM_CHARS);
    while text.len() < RANDOM_CHARS {
        let bytes = draw()?;
        let unbiased = bytes.into_iter().filter(|byte| *byte < UNBIASED_BELOW);
        let chars = unbiased
            .filter_map(|byte| ALPHABET.get(usize::from(byte) % ALPHABET.len()))
            .map(|byte| char::from(*byte));
        text.extend(chars.take(RANDOM_CHARS - text.len()));
    }
    Ok(text)
}

fn is_random_text(text: &str) -> bool {
    text.len() == RANDOM_CHARS && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn a_key_has_the_contracts_form() {
        let key = ApiKeySecret::generate().unwrap();
        assert_eq!(key.expose().len(), 35);
        assert!(key.expose().starts_with("dv_"));
        assert!(ApiKeySecret::parse(key.expose()).is_some_and(|read| read == key));
        assert_eq!(key.prefix().len(), 9);
        assert!(key.expose().starts_with(key.prefix()));
        assert!(key != ApiKeySecret::generate().unwrap());
    }

    #[test]
    fn what_is_no_key_is_not_read() {
        let letters = "a".repeat(32);
        for text in [
            String::new(),
            "dv_".to_owned(),
            letters.clone(),
            format!("dv_{letters}a"),
            format!("DV_{letters}"),
            format!("dv_{}-", "a".repeat(31)),
            format!("dv_{}é", "a".repeat(30)),
            format!(" dv_{letters}"),
        ] {
            assert!(ApiKeySecret::parse(&text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn random_characters_are_uniform() {
        let mut counts = BTreeMap::<char, u32>::new();
        for byte in 0..=u8::MAX {
            let mut draws = 0;
            let text = random_text(|| {
                draws += 1;
                // The second draw returns only 0, so the result shows how many draws were made.
                Ok::<_, Infallible>([if draws == 1 { byte } else { 0 }; 64])
            });
            if draws == 1 {
                *counts
                    .entry(text.unwrap().chars().next().unwrap())
                    .or_default() += 1;
            } else {
                assert!(byte >= 248, "{byte}");
            }
        }
        assert_eq!(counts.len(), 62);
        assert!(counts.values().all(|count| *count == 4), "{counts:?}");
    }

    #[test]
    fn the_hash_is_that_of_the_whole_text() {
        let key = ApiKeySecret::parse("dv_00000000000000000000000000000000").unwrap();
        let expected: [u8; 32] = Sha256::digest(b"dv_00000000000000000000000000000000").into();
        assert_eq!(key.hash(), expected);
    }

    #[test]
    fn a_webhook_secret_is_one_of_the_specification() {
        let secret = webhook_secret().unwrap();
        assert!(secret.starts_with("whsec_"));
        assert!(standardwebhooks::Webhook::new(&secret).is_ok());
    }

    #[test]
    fn a_token_is_safe_in_a_path() {
        let token = SetUpToken::generate().unwrap();
        assert!(SetUpToken::parse(token.expose()).is_some_and(|read| read == token));
        assert!(SetUpToken::parse("../../../../../../../../../../..").is_none());
    }
}

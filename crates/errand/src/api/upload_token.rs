//! The token of an upload URL: signed data about team, sandbox, path, limit and expiry.
//!
//! A token permits writing one file at one path until it expires, and nothing else. The signature covers everything, so
//! nothing is stored. The key is derived from the master key, so URLs survive a restart.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use errand_core::id::{SandboxId, TeamId};
use errand_core::path::SandboxPath;
use errand_core::time::Timestamp;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Distinguishes these signatures from others with keys of the same master key.
const PURPOSE: &[u8] = b"upload-url.v1.";

/// The permission in a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    pub(crate) team: TeamId,
    pub(crate) sandbox: SandboxId,
    /// The destination of the file.
    pub(crate) path: SandboxPath,
    /// Maximum size of the file.
    pub(crate) limit_bytes: u64,
    /// The time before which the upload must begin, in milliseconds since the epoch.
    pub(crate) expires_at_ms: i64,
}

/// Creates the token. It is safe in a URL path without escaping.
pub(crate) fn sign(key: &[u8; 32], grant: &Grant) -> Result<String, serde_json::Error> {
    let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(grant)?);
    let signature = URL_SAFE_NO_PAD.encode(mac(key, &payload).finalize().into_bytes());
    Ok(format!("{payload}.{signature}"))
}

/// Verifies a token. `None` if the signature is invalid or the token has expired.
pub(crate) fn verify(key: &[u8; 32], token: &str, now: Timestamp) -> Option<Grant> {
    let (payload, signature) = token.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    // This comparison takes constant time.
    mac(key, payload).verify_slice(&signature).ok()?;
    let grant: Grant = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    (now < Timestamp::from_millis(grant.expires_at_ms)).then_some(grant)
}

fn mac(key: &[u8; 32], payload: &str) -> Hmac<Sha256> {
    // HMAC pads a key that is shorter than a block with zeros. Doing it here avoids a fallible constructor.
    let mut block = [0; 64];
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(PURPOSE);
    mac.update(payload.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    fn grant() -> Grant {
        Grant {
            team: "0198f2a4-7c1e-7000-8000-000000000001".parse().unwrap(),
            sandbox: SandboxId::parse(&format!("sb_{}", "0".repeat(32))).unwrap(),
            path: SandboxPath::parse("/workspace/a b/ü.csv").unwrap(),
            limit_bytes: 5,
            expires_at_ms: 1000,
        }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_signed_token_is_valid_until_it_expires() {
        let token = sign(&KEY, &grant()).unwrap();
        assert_eq!(verify(&KEY, &token, at(999)), Some(grant()));
        assert_eq!(verify(&KEY, &token, at(1000)), None);
        assert!(
            token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        );
    }

    #[test]
    fn a_modified_token_is_invalid() {
        let token = sign(&KEY, &grant()).unwrap();
        assert_eq!(verify(&[8; 32], &token, at(0)), None);
        let (payload, signature) = token.split_once('.').unwrap();
        let other = sign(
            &KEY,
            &Grant {
                limit_bytes: 6,
                ..grant()
            },
        )
        .unwrap();
        let (other_payload, _) = other.split_once('.').unwrap();
        for forged in [
            format!("{other_payload}.{signature}"),
            payload.to_owned(),
            format!("{payload}."),
            format!("{payload}.{}", &signature[..20]),
            format!("{token}x"),
            String::new(),
            ".".to_owned(),
        ] {
            assert_eq!(verify(&KEY, &forged, at(0)), None, "{forged}");
        }
    }

    #[test]
    fn every_changed_character_counts() {
        let token = sign(&KEY, &grant()).unwrap();
        for at_byte in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at_byte] = if bytes[at_byte] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(bytes).unwrap();
            assert_eq!(verify(&KEY, &forged, at(0)), None, "{at_byte}");
        }
    }
}

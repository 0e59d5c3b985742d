//! The permission that an upload URL is: signed over team, sandbox, path, limit and expiry.
//!
//! Whoever has the token may put one file at one place until it expires, and nothing else. The signature covers all of
//! it, so that nothing about it is stored. Its key is derived from the master key: URLs outlive a restart.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use errand_core::id::{SandboxId, TeamId};
use errand_core::path::SandboxPath;
use errand_core::time::Timestamp;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Told apart from other things that are signed with keys of the same master.
const PURPOSE: &[u8] = b"upload-url.v1.";

/// What a token permits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// Whose sandbox.
    pub(crate) team: TeamId,
    /// Which.
    pub(crate) sandbox: SandboxId,
    /// Where the file goes.
    pub(crate) path: SandboxPath,
    /// Most bytes of it.
    pub(crate) limit_bytes: u64,
    /// The upload must begin before.
    pub(crate) expires_at_ms: i64,
}

/// Makes the token, which is safe in a path as it stands.
pub(crate) fn sign(key: &[u8; 32], grant: &Grant) -> Result<String, serde_json::Error> {
    let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(grant)?);
    let signature = URL_SAFE_NO_PAD.encode(mac(key, &payload).finalize().into_bytes());
    Ok(format!("{payload}.{signature}"))
}

/// What the token permits now. None where it was not signed here, or has expired.
pub(crate) fn verify(key: &[u8; 32], token: &str, now: Timestamp) -> Option<Grant> {
    let (payload, signature) = token.split_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    // Compares in constant time.
    mac(key, payload).verify_slice(&signature).ok()?;
    let grant: Grant = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    (now < Timestamp::from_millis(grant.expires_at_ms)).then_some(grant)
}

fn mac(key: &[u8; 32], payload: &str) -> Hmac<Sha256> {
    // A key that is shorter than a block of the hash is filled up with zeros: so says HMAC.
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
    fn what_was_signed_is_read_until_it_expires() {
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
    fn what_was_changed_is_not() {
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

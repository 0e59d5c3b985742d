//! Passwords of users: which are accepted, and how they are stored.
//!
//! Guarantees: a password is stored as argon2id (19 MiB, two passes) with its own salt, as a PHC string. Hashing takes
//! tens of milliseconds and 19 MiB, so do it on a blocking thread, and only for someone who is permitted to set a
//! password.

use argon2::Argon2;
use argon2::password_hash::PasswordHasher as _;

/// Minimum length of a password in characters.
pub const PASSWORD_CHARS_MIN: usize = 12;
/// Maximum length of a password in bytes, far above anything that people or password managers create.
pub const PASSWORD_BYTES_MAX: usize = 1024;

/// Why a password was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("the password has {chars} characters; it must have at least {PASSWORD_CHARS_MIN}")]
    TooShort { chars: usize },
    #[error("the password is longer than {PASSWORD_BYTES_MAX} bytes; choose a shorter one")]
    TooLong,
    /// The system provided no random bytes or no memory.
    #[error("the password could not be hashed")]
    Hash(#[source] argon2::password_hash::Error),
}

/// Hashes a password for storage, as a PHC string that begins with `$argon2id$`.
///
/// # Errors
/// [`PasswordError::TooShort`], [`PasswordError::TooLong`]; [`PasswordError::Hash`] if the system provides no random
/// bytes or no memory.
pub fn hash_password(password: &str) -> Result<String, PasswordError> {
    let chars = password.chars().count();
    if chars < PASSWORD_CHARS_MIN {
        return Err(PasswordError::TooShort { chars });
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    let hash = Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(PasswordError::Hash)?.to_string())
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::PasswordVerifier as _;
    use argon2::password_hash::phc::PasswordHash;

    use super::*;

    #[test]
    fn a_password_is_hashed_with_argon2id_and_a_salt_of_its_own() {
        let hash = hash_password("correct horse battery").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$"), "{hash}");
        assert_ne!(hash, hash_password("correct horse battery").unwrap());
        let parsed = PasswordHash::new(&hash).unwrap();
        let verify = |text: &str| {
            Argon2::default()
                .verify_password(text.as_bytes(), &parsed)
                .is_ok()
        };
        assert!(verify("correct horse battery"));
        assert!(!verify("correct horse batterx"));
    }

    #[test]
    fn the_bounds_are_characters_and_bytes() {
        assert!(matches!(
            hash_password("elevenchars"),
            Err(PasswordError::TooShort { chars: 11 })
        ));
        assert!(matches!(
            hash_password("ééééé"),
            Err(PasswordError::TooShort { chars: 5 })
        ));
        assert!(hash_password("twelve chars").is_ok());
        assert!(matches!(
            hash_password(&"x".repeat(1025)),
            Err(PasswordError::TooLong)
        ));
    }
}

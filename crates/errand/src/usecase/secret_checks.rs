//! Checks a secret before it is stored.

use errand_core::secret::{self, NAME_CHARS_MAX, VALUE_BYTES_MAX, VALUE_CHARS_MIN};

use super::UseCaseError;

/// Validates the name and the value of a secret.
pub(crate) fn check_secret(name: &str, value: &str) -> Result<(), UseCaseError> {
    if !secret::is_name(name) {
        return Err(UseCaseError::invalid(
            "name",
            format!(
                "must have 1 to {NAME_CHARS_MAX} letters, digits and `_`, and must not begin with a digit"
            ),
        ));
    }
    if value.chars().count() < VALUE_CHARS_MIN {
        return Err(UseCaseError::invalid(
            "value",
            format!(
                "must have at least {VALUE_CHARS_MIN} characters: a shorter value could not be distinguished from other text when it is masked"
            ),
        ));
    }
    if value.len() > VALUE_BYTES_MAX {
        return Err(UseCaseError::invalid(
            "value",
            format!("must be at most {VALUE_BYTES_MAX} bytes long"),
        ));
    }
    Ok(())
}

//! Alternative names of models: the operator's aliases, and names of the hosted product with a suffix.
//!
//! # Guarantees
//!
//! The name sent to a provider is one of the provider's own. Aliases are replaced; the suffix `[1m]` (a larger context
//! window, whose size this server takes from its own table) is removed; any other suffix in brackets is an error.

use std::collections::BTreeMap;

use super::ModelName;

/// The operator's aliases, from name to model. An alias cannot refer to another alias.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelAliases(BTreeMap<String, ModelName>);

/// Known suffixes that are not part of the provider's name.
const SUFFIXES: [&str; 1] = ["[1m]"];

impl ModelAliases {
    /// Adds an alias for `provider/name`, or for a bare name whose prefix identifies the provider.
    ///
    /// # Errors
    /// A message, if the alias is empty or contains a slash, or if the model does not identify a provider.
    pub fn add(&mut self, alias: &str, model: &str) -> Result<(), String> {
        if alias.trim().is_empty() || alias.contains('/') {
            return Err("an alias must be a name without a slash".to_owned());
        }
        let model = plain(model).and_then(ModelName::parse).ok_or_else(|| {
            format!(
                "{model:?} does not identify a provider; use <provider>/<model>, not another alias"
            )
        })?;
        self.0.insert(alias.to_owned(), model);
        Ok(())
    }

    /// Resolves `text`, an alias or a model's own name, to a model. `None` if it is neither.
    pub(super) fn model(&self, text: &str) -> Option<ModelName> {
        if let Some(model) = self.0.get(text) {
            return Some(model.clone());
        }
        let plain = plain(text)?;
        self.0
            .get(plain)
            .cloned()
            .or_else(|| ModelName::parse(plain))
    }
}

/// Removes a known suffix. `None`: the suffix is unknown, or nothing precedes it.
fn plain(text: &str) -> Option<&str> {
    let plain = SUFFIXES
        .iter()
        .find_map(|suffix| text.strip_suffix(suffix))
        .map_or(text, |name| name.trim_end_matches(' '));
    let is_whole = !plain.is_empty() && !plain.ends_with(']');
    let is_clean = !plain.chars().any(|c| c.is_whitespace() || c.is_control());
    (is_whole && is_clean).then_some(plain)
}

/// Whether a model's name has a suffix that [`plain`] removes.
#[must_use]
pub(super) fn has_suffix(model: &str) -> bool {
    SUFFIXES.iter().any(|suffix| model.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(aliases: &ModelAliases, text: &str) -> Option<String> {
        aliases.model(text).map(|model| model.to_string())
    }

    #[test]
    fn names_are_resolved_or_rejected_and_suffixes_removed() {
        let mut aliases = ModelAliases::default();
        aliases.add("d1-max", "anthropic/claude-opus-4-1").unwrap();
        aliases.add("small", "gpt-5-mini").unwrap();
        for (text, model) in [
            ("claude-sonnet-4-6[1m]", "anthropic/claude-sonnet-4-6"),
            (
                "anthropic/claude-sonnet-4-6[1m]",
                "anthropic/claude-sonnet-4-6",
            ),
            ("claude-sonnet-4-6 [1m]", "anthropic/claude-sonnet-4-6"),
            ("d1-max", "anthropic/claude-opus-4-1"),
            ("d1-max[1m]", "anthropic/claude-opus-4-1"),
            ("small", "openai/gpt-5-mini"),
            ("local/qwen2.5:7b", "local/qwen2.5:7b"),
        ] {
            assert_eq!(name(&aliases, text).as_deref(), Some(model), "{text}");
        }
        for text in [
            "claude-sonnet-4-6[2m]",
            "claude-sonnet-4-6[1m][1m]",
            "anthropic/[1m]",
            "[1m]",
            "duvo-1-max",
            "claude x",
            "claude-\n",
        ] {
            assert_eq!(name(&aliases, text), None, "{text}");
        }
    }

    #[test]
    fn an_alias_cannot_refer_to_another_alias() {
        let mut aliases = ModelAliases::default();
        assert!(aliases.add("a", "nothing").is_err());
        assert!(aliases.add("a/b", "gpt-5").is_err());
        assert!(aliases.add(" ", "gpt-5").is_err());
    }
}

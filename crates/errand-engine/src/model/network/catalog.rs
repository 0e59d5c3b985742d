//! Known properties of models: prices, context windows, image input.
//!
//! The table holds what the providers had published when this version was released. The operator's settings take
//! precedence. A model that is not in the table has no price, unless the operator has set a default, and gets a small
//! window.

use std::collections::BTreeMap;

use errand_core::config::ModelName;

/// Prices in US dollars per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Input that was not in the provider's cache.
    pub input: f64,
    /// Input that was read from the cache.
    pub cached_input: f64,
    /// Input that was written to the cache.
    pub cache_write: f64,
    pub output: f64,
}

/// Token counts of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// All input, including `cached` and `cache_write`.
    pub input: u64,
    /// Input that was read from the cache.
    pub cached: u64,
    /// Input that was written to the cache.
    pub cache_write: u64,
    pub output: u64,
}

impl Price {
    /// The cost in US dollars.
    #[must_use]
    pub fn of(&self, tokens: Tokens) -> f64 {
        let plain = tokens
            .input
            .saturating_sub(tokens.cached)
            .saturating_sub(tokens.cache_write);
        let part = |tokens: u64, price: f64| {
            #[expect(clippy::cast_precision_loss, reason = "no answer has 2^52 tokens")]
            let millions = tokens as f64 / 1_000_000.0;
            millions * price
        };
        part(plain, self.input)
            + part(tokens.cached, self.cached_input)
            + part(tokens.cache_write, self.cache_write)
            + part(tokens.output, self.output)
    }
}

/// The properties of one model, after the operator's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) price: Option<Price>,
    /// The context window in tokens, including the answer.
    pub(super) window: u64,
    /// Maximum number of answer tokens that we request.
    pub(super) answer: u64,
    /// Whether it accepts images.
    pub(super) sees: bool,
}

/// The operator's settings for models. They take precedence over `TABLE`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Keyed by `provider/name`, or by the name alone.
    pub prices: BTreeMap<String, Price>,
    /// The price of models without another price. `None`: their price is unknown.
    pub default_price: Option<Price>,
    /// Context windows in tokens, with the same keys.
    pub windows: BTreeMap<String, u64>,
    /// Models that accept images, with the same keys.
    pub vision: Vec<String>,
}

struct Row(&'static str, [f64; 4], u64, u64);

/// Name prefix (the longest match counts); prices (input, cached, cache write, output); window; answer.
const TABLE: &[Row] = &[
    Row("claude-opus-4-5", [5.0, 0.5, 6.25, 25.0], 200_000, 32_000),
    Row("claude-opus-4-6", [5.0, 0.5, 6.25, 25.0], 200_000, 32_000),
    Row("claude-opus-4", [15.0, 1.5, 18.75, 75.0], 200_000, 32_000),
    Row("claude-sonnet", [3.0, 0.3, 3.75, 15.0], 200_000, 32_000),
    Row("claude-haiku", [1.0, 0.1, 1.25, 5.0], 200_000, 32_000),
    Row("claude-3-7-sonnet", [3.0, 0.3, 3.75, 15.0], 200_000, 32_000),
    Row("claude-3-5-sonnet", [3.0, 0.3, 3.75, 15.0], 200_000, 8_192),
    Row("claude-3-5-haiku", [0.8, 0.08, 1.0, 4.0], 200_000, 8_192),
    Row("claude-3-haiku", [0.25, 0.03, 0.3, 1.25], 200_000, 4_096),
    Row("claude-3-opus", [15.0, 1.5, 18.75, 75.0], 200_000, 4_096),
    Row("gpt-5-mini", [0.25, 0.025, 0.25, 2.0], 272_000, 32_000),
    Row("gpt-5-nano", [0.05, 0.005, 0.05, 0.4], 272_000, 32_000),
    Row("gpt-5-pro", [15.0, 15.0, 15.0, 120.0], 272_000, 32_000),
    Row("gpt-5.2", [1.75, 0.175, 1.75, 14.0], 272_000, 32_000),
    Row("gpt-5", [1.25, 0.125, 1.25, 10.0], 272_000, 32_000),
    Row("gpt-4.1-mini", [0.4, 0.1, 0.4, 1.6], 1_000_000, 32_000),
    Row("gpt-4.1-nano", [0.1, 0.025, 0.1, 0.4], 1_000_000, 32_000),
    Row("gpt-4.1", [2.0, 0.5, 2.0, 8.0], 1_000_000, 32_000),
    Row("gpt-4o-mini", [0.15, 0.075, 0.15, 0.6], 128_000, 16_000),
    Row("gpt-4o", [2.5, 1.25, 2.5, 10.0], 128_000, 16_000),
    Row("o4-mini", [1.1, 0.275, 1.1, 4.4], 200_000, 32_000),
    Row("o3-mini", [1.1, 0.55, 1.1, 4.4], 200_000, 32_000),
    Row("o3", [2.0, 0.5, 2.0, 8.0], 200_000, 32_000),
    Row("o1", [15.0, 7.5, 15.0, 60.0], 200_000, 32_000),
    Row("gemini-3-pro", [2.0, 0.2, 2.0, 12.0], 1_000_000, 32_000),
    Row(
        "gemini-2.5-pro",
        [1.25, 0.125, 1.25, 10.0],
        1_000_000,
        32_000,
    ),
    Row(
        "gemini-2.5-flash-lite",
        [0.1, 0.01, 0.1, 0.4],
        1_000_000,
        32_000,
    ),
    Row("gemini-2.5-flash", [0.3, 0.03, 0.3, 2.5], 1_000_000, 32_000),
    Row("gemini-2.0-flash", [0.1, 0.025, 0.1, 0.4], 1_000_000, 8_192),
];

/// Providers to which the table applies. Other servers may use the same names for other models.
const OF_THE_TABLE: [&str; 3] = ["anthropic", "openai", "gemini"];
/// The window of a model that nobody has described.
const UNKNOWN_WINDOW: u64 = 32_000;
/// The window of a model that the table does not list, from one of the three providers: probably a new model.
const NEW_WINDOW: u64 = 128_000;

impl Overrides {
    pub(super) fn known(&self, name: &ModelName) -> Known {
        let full = name.to_string();
        let listed = OF_THE_TABLE.contains(&name.provider.as_str());
        let row = TABLE
            .iter()
            .filter(|row| listed && name.name.starts_with(row.0))
            .max_by_key(|row| row.0.len());
        let window = self
            .windows
            .get(&full)
            .or_else(|| self.windows.get(&name.name))
            .copied()
            .or(row.map(|row| row.2))
            .unwrap_or(if listed { NEW_WINDOW } else { UNKNOWN_WINDOW });
        let price = self
            .prices
            .get(&full)
            .or_else(|| self.prices.get(&name.name));
        let price = price.copied().or_else(|| {
            row.map(
                |Row(_, [input, cached_input, cache_write, output], ..)| Price {
                    input: *input,
                    cached_input: *cached_input,
                    cache_write: *cache_write,
                    output: *output,
                },
            )
        });
        Known {
            price: price.or(self.default_price),
            window,
            answer: row.map_or(16_000, |row| row.3).min(window / 4).max(1),
            sees: listed || self.vision.iter().any(|v| *v == full || *v == name.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(provider: &str, name: &str) -> ModelName {
        ModelName {
            provider: provider.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn the_longest_prefix_counts_and_settings_win() {
        let mut overrides = Overrides::default();
        let price = |o: &Overrides, n: &str| o.known(&name("openai", n)).price.unwrap().input;
        assert!((price(&overrides, "gpt-5-mini-2025") - 0.25).abs() < 1e-9);
        assert!((price(&overrides, "gpt-5.1") - 1.25).abs() < 1e-9);
        overrides.prices.insert(
            "openai/gpt-5.1".to_owned(),
            Price {
                input: 9.0,
                ..Price::default()
            },
        );
        assert!((price(&overrides, "gpt-5.1") - 9.0).abs() < 1e-9);
    }

    #[test]
    fn a_default_price_applies_to_models_without_one() {
        let price = |input| Price {
            input,
            ..Price::default()
        };
        let mut overrides = Overrides {
            default_price: Some(price(7.0)),
            ..Overrides::default()
        };
        assert_eq!(overrides.known(&name("local", "x")).price, Some(price(7.0)));
        let listed = overrides.known(&name("openai", "gpt-4o")).price;
        assert_ne!(listed, Some(price(7.0)));
        overrides.prices.insert("local/x".to_owned(), price(1.0));
        assert_eq!(overrides.known(&name("local", "x")).price, Some(price(1.0)));
    }

    #[test]
    fn an_unknown_model_has_a_small_window_and_no_images() {
        let mut overrides = Overrides::default();
        let local = name("local", "gpt-5");
        let known = overrides.known(&local);
        assert_eq!(known.price, None);
        assert_eq!(known.window, UNKNOWN_WINDOW);
        assert!(!known.sees);
        overrides.windows.insert("local/gpt-5".to_owned(), 8_000);
        overrides.vision.push("local/gpt-5".to_owned());
        let known = overrides.known(&local);
        assert_eq!(
            (known.window, known.answer, known.sees),
            (8_000, 2_000, true)
        );
    }

    #[test]
    fn a_cost_is_the_sum_of_its_parts() {
        let price = Price {
            input: 3.0,
            cached_input: 0.3,
            cache_write: 3.75,
            output: 15.0,
        };
        let cost = price.of(Tokens {
            input: 1_000_000,
            cached: 600_000,
            cache_write: 200_000,
            output: 100_000,
        });
        assert!((cost - (0.6 + 0.18 + 0.75 + 1.5)).abs() < 1e-9, "{cost}");
    }
}

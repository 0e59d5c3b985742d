use super::*;
use crate::config::{Config, ConfigErrors, Flags, SettingsFile, load};

fn of(file: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let file = SettingsFile {
        path: "errand.toml".into(),
        text: file.to_owned(),
    };
    load(&Flags::default(), &env, Some(&file))
}

fn named<'c>(config: &'c Config, name: &str) -> &'c ProviderSettings {
    let mut providers = config.model_tables.providers.iter();
    &providers.find(|(n, _)| n == name).unwrap().1
}

#[test]
fn providers_come_from_file_and_environment() {
    let file = r#"
        [models.providers.local]
        kind = "openai_compatible"
        base_url = "http://127.0.0.1:11434/v1"
        [models.providers.anthropic]
        api_key_env = "MY_KEY"
        [models.providers.gemini]
        base_url = "http://proxy.internal"
        api_key = "in the file"
    "#;
    let env = [
        ("MY_KEY", "mine"),
        ("GEMINI_API_KEY", "in the environment"),
        ("OPENAI_API_KEY", "sk"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1"),
    ];
    let config = of(file, &env).unwrap();
    let key = |name: &str| named(&config, name).key.clone().map(|key| key.0);
    assert_eq!(key("local"), None);
    assert_eq!(key("anthropic").as_deref(), Some("mine"));
    assert_eq!(key("gemini").as_deref(), Some("in the environment"));
    assert_eq!(key("openai").as_deref(), Some("sk"));
    let base = |name: &str| named(&config, name).base_url.clone();
    assert_eq!(base("gemini").as_deref(), Some("http://proxy.internal"));
    assert_eq!(base("openai").as_deref(), Some("http://127.0.0.1:1/v1"));
    assert!(!format!("{config:?}").contains("mine"));
}

#[test]
fn a_default_price_is_read_whole() {
    let config = of("[models.default_price]\ninput = 3\noutput = 15.0\n", &[]);
    let price = config.unwrap().model_tables.default_price.unwrap();
    assert!((price.input - 3.0).abs() < 1e-9 && (price.cached_input - 3.0).abs() < 1e-9);
    assert!((price.output - 15.0).abs() < 1e-9);
    for wrong in [
        "input = 3",
        "input = 3\noutput = -1",
        "input = 3\noutput = 1\nmore = 1",
    ] {
        let file = format!("[models.default_price]\n{wrong}\n");
        let errors = of(&file, &[]).unwrap_err().to_string();
        assert!(errors.contains("models.default_price"), "{errors}");
    }
}

#[test]
fn prices_and_windows_are_by_model() {
    let file = r#"
        [models.prices."local/llama-3.3"]
        input = 0.2
        output = 0.4
        [models.windows]
        "local/llama-3.3" = 8192
    "#;
    let config = of(file, &[]).unwrap();
    let price = config.model_tables.prices["local/llama-3.3"];
    assert!((price.cached_input - 0.2).abs() < 1e-9);
    assert_eq!(config.model_tables.windows["local/llama-3.3"], 8192);
}

#[test]
fn all_problems_are_reported_at_once_without_keys() {
    let file = r#"
        [models.providers.local]
        base_url = "ftp://x"
        [models.providers.other]
        kind = "openai_compatible"
        [models.providers.anthropic]
        api_key_env = "NOT_THERE"
        [models.providers.gemini]
        api_kye = "sk-secret"
        [models.prices.a]
        input = -1.0
        output = 1.0
        [models.windows]
        b = "many"
    "#;
    let error = of(file, &[("OPENAI_BASE_URL", "here")]).unwrap_err();
    let text = error.to_string();
    for part in [
        "errand.toml: models.providers.local: kind is missing",
        "errand.toml: models.providers.other: base_url is missing",
        "models.providers.anthropic: api_key_env names the variable NOT_THERE",
        "models.providers.gemini: unknown field `api_kye`",
        "models.prices.\"a\": a price must be",
        "models.windows.\"b\": must be a number of tokens",
        "OPENAI_BASE_URL: base_url must be",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

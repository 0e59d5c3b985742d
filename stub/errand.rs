pub mod config {
  pub struct SettingLine { pub name: &'static str, pub env: String, pub value: Option<String>, pub default: Option<String>, pub unit: &'static str, pub allowed: String, pub doc: &'static str }
  #[derive(Default)] pub struct Config(Vec<SettingLine>);
  pub fn table(c: &Config) -> &[SettingLine] { &c.0 }
}

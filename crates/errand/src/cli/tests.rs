//! The command line's form, and its commands on a server's own directory.

use clap::CommandFactory as _;

use super::out::tests::memory;
use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("errand").chain(line.split(' ')))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_commands_are_read() {
    for line in [
        "serve --listen 127.0.0.1:8700 --data-dir ./errand-data --config errand.toml",
        "config --json",
        "demo --yes --keep",
        "keys create --name N --data-dir D --expires-in 30d",
        "keys list",
        "keys delete 0193b0e2-0000-7000-8000-000000000000",
        "users link ann@example.com --role owner",
        "users set-password ann@example.com",
        "webhooks secret",
        "agents create FILE.yaml",
        "agents list --limit 5",
        "runs start AGENT --file a --file b --message M --sandbox S --webhook http://x --follow",
        "runs list --status waiting --status running --agent A",
        "runs get R",
        "runs messages R",
        "runs follow R",
        "runs message R hello",
        "runs stop R",
        "runs retry R",
        "runs respond R --approve",
        "runs respond R Q --deny --reason no",
        "runs respond R --answer a=b --answer c=d",
        "sandboxes upload S a b --to /workspace/in/",
        "sandboxes ls S",
        "sandboxes download S /workspace/a -o -",
        "sandboxes rm S",
        "builds create A f.yaml",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn a_wrong_command_line_is_refused_as_such() {
    for line in [
        "runs respond R",
        "runs respond R --approve --deny",
        "runs respond R --approve --answer a=b",
        "runs list --status done",
        "keys create",
        "keys create --name N --expires-in soon",
        "sandboxes upload S",
        "users link a --role king",
        "nonsense",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

/// Runs a command line on a data directory of its own; gives what it printed on standard output.
async fn printed(line: &str, dir: &std::path::Path) -> Result<String> {
    let cli = parse(line)?;
    let (out, stdout, _) = memory(cli.json);
    let data_dir = dir.to_str().unwrap().to_owned();
    let env = [("ERRAND_SERVER__DATA_DIR".to_owned(), data_dir)].into();
    dispatch(cli.command, &Surroundings { out, env }).await?;
    Ok(stdout.text())
}

#[tokio::test]
async fn a_key_is_printed_alone_and_listed_without_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let key = printed("keys create --name first --expires-in 30d", dir.path()).await.unwrap();
    let secret = key.strip_suffix('\n').unwrap();
    assert!(crate::secret_key::ApiKeySecret::parse(secret).is_some(), "{key}");

    let list = printed("keys list", dir.path()).await.unwrap();
    assert!(list.contains("first") && list.contains(&secret[..9]) && !list.contains(secret), "{list}");
    let list: serde_json::Value =
        serde_json::from_str(&printed("keys list --json", dir.path()).await.unwrap()).unwrap();
    assert_eq!(list["total"], 1);

    let id = list["api_keys"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(printed(&format!("keys delete {id}"), dir.path()).await.unwrap(), "");
    let again = printed(&format!("keys delete {id}"), dir.path()).await.unwrap_err();
    assert!(again.to_string().contains("errand keys list"), "{again}");
}

#[tokio::test]
async fn a_link_begins_with_the_outer_address_and_the_webhook_secret_stays() {
    let dir = tempfile::tempdir().unwrap();
    let link = printed("users link ann@example.com", dir.path()).await.unwrap();
    assert!(link.starts_with("http://127.0.0.1:8700/set-up/") && link.lines().count() == 1, "{link}");
    let secret = printed("webhooks secret", dir.path()).await.unwrap();
    assert!(secret.starts_with("whsec_"), "{secret}");
    assert_eq!(printed("webhooks secret", dir.path()).await.unwrap(), secret);
}

#[tokio::test]
async fn every_setting_is_listed_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let table = printed("config", dir.path()).await.unwrap();
    let line = table.lines().find(|line| line.starts_with("server.data_dir")).unwrap();
    assert!(line.contains("ERRAND_SERVER__DATA_DIR") && line.contains("./errand-data"), "{line}");
    let json: serde_json::Value =
        serde_json::from_str(&printed("config --json", dir.path()).await.unwrap()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), table.lines().count() - 1);
}

#[tokio::test]
async fn a_command_for_the_api_says_how_to_get_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let error = printed("runs list", dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("errand keys create"), "{error}");
}

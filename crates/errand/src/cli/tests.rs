//! Tests of the command-line syntax, and of commands on a directory and against a server.

use clap::CommandFactory as _;
use errand_core::id::IdGen;
use errand_core::time::Timestamp;
use errand_store::data_dir::Making;

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
fn the_documented_commands_are_valid() {
    for line in [
        "serve --listen 127.0.0.1:8700 --data-dir ./errand-data --config errand.toml",
        "config --json",
        "demo --yes --keep",
        "selftest --kills 50 --stops 3 --runs 300 --dir D --seed 7 --keep --json",
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
        "runs start AGENT --message M --untrusted",
        "runs message R hello",
        "runs message R hello --untrusted",
        "runs stop R",
        "runs retry R",
        "runs stop --all --dry-run",
        "runs stop --status waiting --status pending --agent A --source api --limit 5",
        "runs retry --since 2026-11-23T09:30:00Z --until 2026-11-24T00:00:00Z",
        "runs repair R",
        "runs repair R --resume --data-dir D",
        "runs repair R --fail",
        "runs repair R --fork",
        "runs respond R --approve",
        "runs respond R Q --deny --reason no",
        "runs respond R --answer a=b --answer c=d",
        "sandboxes upload S a b --to /workspace/in/",
        "sandboxes ls S",
        "sandboxes download S /workspace/a -o -",
        "sandboxes rm S",
        "builds create A f.yaml",
        "builds create A f.yaml --draft",
        "builds promote B",
        "builds promote B --name N --description D",
        "connections list --limit 5",
        "connections get mail",
        "connections probe mail",
        "connections set-tool mail search --trusted no",
        "connections set-tool mail mail__search --trusted yes --open-world default",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn an_invalid_command_line_exits_with_2() {
    for line in [
        "runs respond R",
        "runs respond R --approve --deny",
        "runs respond R --approve --answer a=b",
        "runs list --status done",
        "runs start AGENT --untrusted",
        "connections set-tool mail search",
        "connections set-tool mail search --trusted maybe",
        "runs stop",
        "runs stop --dry-run",
        "runs stop R --all",
        "runs stop R --dry-run",
        "runs retry R --limit 3",
        "runs retry --since yesterday",
        "runs repair R --fail --fork",
        "keys create",
        "keys create --name N --expires-in soon",
        "sandboxes upload S",
        "selftest --kills many",
        "selftest --runs 0",
        "users link a --role king",
        "nonsense",
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

/// Runs a command line on a data directory, and returns its standard output.
async fn printed(line: &str, dir: &std::path::Path) -> Result<String> {
    let cli = parse(line)?;
    let (out, stdout, _) = memory(cli.json);
    let data_dir = dir.to_str().unwrap().to_owned();
    let env = [("ERRAND_SERVER__DATA_DIR".to_owned(), data_dir)].into();
    dispatch(cli.command, &CommandContext { out, env }).await?;
    Ok(stdout.text())
}

/// A data directory with a store, as a server leaves it.
fn stored() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let setup = crate::app::StoreSetup {
        dir: dir.path().to_owned(),
        url: "http://127.0.0.1:8700".to_owned(),
        readers: 1,
        key: None,
        opening: crate::app::Opening {
            making: Making::BY_ITSELF,
            discards_secrets: false,
        },
    };
    let boot = IdGen::new([3; 32]).boot(Timestamp::from_millis(1_800_000_000_000));
    drop(setup.open(boot, errand_store::Trial::default()).unwrap());
    dir
}

#[tokio::test]
async fn a_key_is_printed_alone_and_listed_without_its_secret() {
    let dir = stored();
    let key = printed("keys create --name first --expires-in 30d", dir.path())
        .await
        .unwrap();
    let secret = key.strip_suffix('\n').unwrap();
    assert!(
        crate::secret_key::ApiKeySecret::parse(secret).is_some(),
        "{key}"
    );

    let list = printed("keys list", dir.path()).await.unwrap();
    assert!(
        list.contains("first") && list.contains(&secret[..9]) && !list.contains(secret),
        "{list}"
    );
    let list: serde_json::Value =
        serde_json::from_str(&printed("keys list --json", dir.path()).await.unwrap()).unwrap();
    assert_eq!(list["total"], 1);

    let id = list["api_keys"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        printed(&format!("keys delete {id}"), dir.path())
            .await
            .unwrap(),
        ""
    );
    let again = printed(&format!("keys delete {id}"), dir.path())
        .await
        .unwrap_err();
    assert!(again.to_string().contains("errand keys list"), "{again}");
}

#[tokio::test]
async fn a_repair_without_a_server_works_on_the_directory() {
    let dir = stored();
    for way in ["", " --fail", " --fork"] {
        let line = format!("runs repair 0193b0e2-0000-7000-8000-000000000000{way}");
        let error = printed(&line, dir.path()).await.unwrap_err();
        assert!(error.to_string().contains("there is no run"), "{error}");
    }
}

#[tokio::test]
async fn links_use_the_public_url_and_the_secret_stays() {
    let dir = stored();
    let link = printed("users link ann@example.com", dir.path())
        .await
        .unwrap();
    assert!(
        link.starts_with("http://127.0.0.1:8700/set-up/") && link.lines().count() == 1,
        "{link}"
    );
    let secret = printed("webhooks secret", dir.path()).await.unwrap();
    assert!(secret.starts_with("whsec_"), "{secret}");
    assert_eq!(
        printed("webhooks secret", dir.path()).await.unwrap(),
        secret
    );
}

#[tokio::test]
async fn every_setting_is_listed_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let table = printed("config", dir.path()).await.unwrap();
    let line = table
        .lines()
        .find(|line| line.starts_with("server.data_dir"))
        .unwrap();
    assert!(
        line.contains("ERRAND_SERVER__DATA_DIR") && line.contains("./errand-data"),
        "{line}"
    );
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_a_complete_run() {
    let dir = tempfile::tempdir().unwrap();
    let shown = printed("demo --yes", dir.path()).await.unwrap();
    for part in [
        "→ read_file  path: /workspace/invoices.csv",
        "? Pay 5280 EUR for 5 invoices?",
        "✓ approved",
        "● completed",
        "webhook run_completed received, signature verified",
        "│ | 2026-1062 | Harbour Office Rent | 2026-12-05 | 2950 |",
        "│ All of them are released for payment.",
        "curl -sS",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let line = shown.lines().find(|line| line.starts_with("run ")).unwrap();
    assert!(
        line.contains(" completed in ") && line.ends_with(" ms"),
        "{line}"
    );
    assert!(
        !shown.contains('\x1b'),
        "no colors where there is no terminal: {shown}"
    );
}

/// A server, and the environment variables that select it.
async fn server(dir: &std::path::Path) -> (crate::app::App, BTreeMap<String, String>) {
    use crate::admin::{Admin, AdminAnswer, AdminRequest};
    use crate::app::{App, Ingredients};

    let flags = Flags {
        data_dir: Some(dir.to_str().unwrap().to_owned()),
        ..Flags::default()
    };
    let config = settings::load(&flags, &BTreeMap::new(), None).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let app = App::start(config, listener, Ingredients::of_system().unwrap())
        .await
        .unwrap();
    let clock = errand_engine::clock::Clock::System;
    let admin = Admin::new(app.store().clone(), [1; 32], clock, app.url().to_owned());
    let request = AdminRequest::CreateKey {
        name: "test".to_owned(),
        expires_in_ms: None,
        team: None,
    };
    let Ok(AdminAnswer::Key { secret, .. }) = admin.execute(request).await else {
        panic!("a key")
    };
    let url = app.url().to_owned();
    (
        app,
        [("ERRAND_URL", url), ("ERRAND_API_KEY", secret)]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
    )
}

/// Runs a command line against a server, and returns its standard output.
async fn called(words: &[&str], env: &BTreeMap<String, String>) -> Result<String> {
    let cli = Cli::try_parse_from(std::iter::once(&"errand").chain(words))?;
    let (out, stdout, _) = memory(cli.json);
    dispatch(
        cli.command,
        &CommandContext {
            out,
            env: env.clone(),
        },
    )
    .await?;
    Ok(stdout.text())
}

fn example(name: &str) -> String {
    format!("{}/../../examples/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_started_answered_and_read_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (app, env) = server(dir.path()).await;
    let agent = called(&["agents", "create", &example("invoices.yaml")], &env)
        .await
        .unwrap();
    assert!(
        called(&["agents", "list"], &env)
            .await
            .unwrap()
            .contains(agent.trim())
    );
    let csv = example("invoices.csv");
    let run = called(
        &[
            "runs",
            "start",
            "Pay invoices",
            "--file",
            &csv,
            "--message",
            "Pay.",
        ],
        &env,
    )
    .await
    .unwrap();
    let run = run.trim();

    // The stream shows when the run asks; another command answers.
    let (out, ..) = memory(false);
    let client = CommandContext {
        out,
        env: env.clone(),
    }
    .client(&RemoteServer::default())
    .unwrap();
    let mut events = client.events(&run.into());
    while events.next().await.unwrap().unwrap().name != "human_request.created" {}
    let get = called(&["runs", "get", run], &env).await.unwrap();
    assert!(get.contains("Pay 5280 EUR for 5 invoices?"), "{get}");
    called(
        &["runs", "respond", run, "--approve", "--reason", "fine"],
        &env,
    )
    .await
    .unwrap();

    let followed = called(&["runs", "follow", run], &env).await.unwrap();
    assert!(
        followed.contains("✓ approved: fine") && followed.ends_with("● completed\n"),
        "{followed}"
    );
    let messages = called(&["runs", "messages", run], &env).await.unwrap();
    assert!(
        messages.starts_with("     0 ms  › Pay.\n") && messages.contains("• Released 5280 EUR."),
        "{messages}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&called(&["--json", "runs", "get", run], &env).await.unwrap())
            .unwrap();
    let sandbox = json["run"]["sandbox_id"].as_str().unwrap();
    let report = called(
        &["sandboxes", "download", sandbox, "report.md", "-o", "-"],
        &env,
    )
    .await
    .unwrap();
    assert!(report.starts_with("# Invoices\n"), "{report}");
    let late = called(&["runs", "respond", run, "--deny"], &env)
        .await
        .unwrap_err();
    assert!(
        late.to_string()
            .contains("has no open request; its status is completed"),
        "{late}"
    );
    app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_runs_are_stopped_and_retried_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (app, env) = server(dir.path()).await;
    called(&["agents", "create", &example("invoices.yaml")], &env)
        .await
        .unwrap();
    let mut runs = Vec::new();
    for _ in 0..2 {
        // The run fails without its file.
        let run = called(&["runs", "start", "Pay invoices"], &env).await;
        let run = run.unwrap().trim().to_owned();
        let failed = called(&["runs", "follow", &run], &env).await;
        assert!(failed.unwrap_err().to_string().contains("failed"));
        runs.push(run);
    }
    let both = format!("{}\n{}\n", runs[0], runs[1]);
    let line = ["runs", "retry", "--agent", "Pay invoices", "--dry-run"];
    assert_eq!(called(&line, &env).await.unwrap(), both);
    let line = ["--json", "runs", "retry", "--all", "--limit", "1"];
    let json: serde_json::Value =
        serde_json::from_str(&called(&line, &env).await.unwrap()).unwrap();
    assert_eq!(json["changed"], 1);
    assert_eq!(json["more"], true);
    assert_eq!(json["runs"][0], runs[0]);
    let failed = called(&["runs", "follow", &runs[0]], &env).await;
    assert!(failed.is_err(), "it fails again");
    assert_eq!(
        called(&["runs", "stop", "--all"], &env).await.unwrap(),
        "",
        "none is on its way"
    );
    let refused = called(&["runs", "stop", "--status", "failed"], &env).await;
    assert!(refused.unwrap_err().to_string().contains("pending"));
    app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_draft_is_promoted_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (app, env) = server(dir.path()).await;
    let file = example("invoices.yaml");
    called(&["agents", "create", &file], &env).await.unwrap();
    let draft = called(
        &["builds", "create", "Pay invoices", &file, "--draft"],
        &env,
    )
    .await;
    let draft = draft.unwrap().trim().to_owned();
    let state = async || {
        let list = called(&["--json", "builds", "list", "Pay invoices"], &env).await;
        let list: serde_json::Value = serde_json::from_str(&list.unwrap()).unwrap();
        let states = list["builds"].as_array().unwrap().iter();
        states
            .map(|build| build["status"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(state().await, ["draft", "live"]);
    let table = called(&["builds", "list", "Pay invoices"], &env).await;
    assert!(table.unwrap().contains("draft"));
    let line = ["builds", "promote", &draft, "--name", "Second"];
    assert_eq!(called(&line, &env).await.unwrap(), "");
    assert_eq!(state().await, ["live", "historic"]);
    let build = called(&["--json", "builds", "get", &draft], &env).await;
    let build: serde_json::Value = serde_json::from_str(&build.unwrap()).unwrap();
    assert_eq!(build["build"]["name"], "Second");
    app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_marked_as_untrusted_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (app, env) = server(dir.path()).await;
    let file = example("invoices.yaml");
    called(&["agents", "create", &file], &env).await.unwrap();
    let start = ["runs", "start", "Pay invoices", "--message", "Pay."];
    let marked: &[&str] = &["--untrusted"];
    let run = called(&[&start[..], marked].concat(), &env).await;
    let run = run.unwrap().trim().to_owned();
    let say = ["--json", "runs", "message", &run, "More."];
    for untrusted in [false, true] {
        let words = if untrusted { marked } else { &[] };
        let sent = called(&[&say[..], words].concat(), &env).await.unwrap();
        let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["message"]["untrusted"] == true, untrusted, "{sent}");
    }
    let messages = called(&["--json", "runs", "messages", &run, "--limit", "1"], &env).await;
    let messages: serde_json::Value = serde_json::from_str(&messages.unwrap()).unwrap();
    assert_eq!(messages["messages"][0]["untrusted"], true, "{messages}");
    called(&["runs", "stop", &run], &env).await.unwrap();
    app.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_are_trusted_one_by_one_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let (app, env) = server(dir.path()).await;
    let empty = called(&["connections", "get", "mail"], &env).await;
    assert!(empty.unwrap_err().to_string().contains("connections list"));
    let transport = serde_json::json!({"type": "http", "url": "https://mcp.invalid/mcp"});
    let made = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([])
        .build()
        .unwrap()
        .post(format!("{}/v1/connections", env["ERRAND_URL"]))
        .bearer_auth(&env["ERRAND_API_KEY"])
        .json(&serde_json::json!({"name": "mail", "transport": transport}))
        .send()
        .await
        .unwrap();
    assert_eq!(made.status(), 201);
    let list = called(&["connections", "list"], &env).await.unwrap();
    assert!(list.contains("http https://mcp.invalid/mcp"), "{list}");
    let set = async |tool: &str, words: &[&str]| {
        let line = ["--json", "connections", "set-tool", "mail", tool];
        let changed = called(&[&line[..], words].concat(), &env).await.unwrap();
        let changed: serde_json::Value = serde_json::from_str(&changed).unwrap();
        changed["connection"]["tool_settings"].clone()
    };
    assert_eq!(
        set("search", &["--trusted", "no"]).await,
        serde_json::json!({"mail__search": {"trusted": false}})
    );
    assert_eq!(
        set("mail__send", &["--trusted", "yes", "--open-world", "no"]).await,
        serde_json::json!({
            "mail__search": {"trusted": false}, "mail__send": {"open_world": false, "trusted": true}
        })
    );
    assert_eq!(
        set("search", &["--trusted", "default"]).await,
        serde_json::json!({"mail__send": {"open_world": false, "trusted": true}})
    );
    let shown = called(&["connections", "get", "mail"], &env).await.unwrap();
    assert!(shown.contains("never"), "{shown}");
    app.shut_down().await;
}

//! The hostile checklist: more than a hundred actions of hostile code, from inside the real tool. As a positive
//! control, the same list runs without isolation, which shows that it detects what it should.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use serde_json::json;
use tempfile::TempDir;

use super::{Bench, is_root};

const SOURCE: &str = include_str!("hostile.c");
/// Minimum number of actions.
const ACTIONS_MIN: usize = 100;

/// Compiles the checklist.
fn compiled(dir: &Path) -> PathBuf {
    compile(dir, SOURCE)
}

/// Compiles a C program in a directory.
pub(super) fn compile(dir: &Path, source_text: &str) -> PathBuf {
    let (source, program) = (dir.join("program.c"), dir.join("program"));
    fs::write(&source, source_text).unwrap();
    let done = Command::new("cc")
        .args(["-O1", "-w", "-o"])
        .arg(&program)
        .arg(&source)
        .status();
    assert!(done.unwrap().success(), "a C compiler is needed");
    program
}

/// Objects that must not be accessible from inside.
struct Targets {
    config: String,
    bystander: std::process::Child,
    _kept: (TcpListener, UnixListener, UnixListener, fs::File),
    shm: PathBuf,
}

impl Targets {
    /// Creates the objects in a data directory.
    fn make(data: &Path) -> Self {
        fs::write(data.join("master.key"), "the key").unwrap();
        if !data.join("errand.db").exists() {
            fs::write(data.join("errand.db"), "the database").unwrap();
        }
        fs::create_dir_all(data.join("sandboxes/other")).unwrap();
        fs::write(data.join("sandboxes/other/secret"), "theirs").unwrap();
        let name = data.file_name().unwrap().to_str().unwrap().replace('.', "");
        let (shm, canary) = (
            PathBuf::from(format!("/dev/shm/hostile-{name}")),
            format!("canary-{name}"),
        );
        fs::write(&shm, "theirs").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let hidden =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(&canary).unwrap()).unwrap();
        let socket = data.join("sock");
        let visible = UnixListener::bind(&socket).unwrap();
        // Open in this process, which is the server, and inherited by child processes that do not prevent it.
        let leaked = fs::File::open(data.join("master.key")).unwrap();
        rustix::io::fcntl_setfd(leaked.as_fd(), FdFlags::empty()).unwrap();
        let bystander = Command::new("/bin/sh")
            .args(["-c", "read -r _; :", &canary])
            .env("CANARY", &canary)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let config = format!(
            "data {}\nserver {}\nport {}\nabstract {canary}\nunix {}\ncanary {canary}\nshm {}\ntmp {}\n",
            data.display(),
            std::process::id(),
            tcp.local_addr().unwrap().port(),
            socket.display(),
            shm.display(),
            data.join("master.key").display(),
        );
        Self {
            config,
            bystander,
            _kept: (tcp, hidden, visible, leaked),
            shm,
        }
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
        let _ = fs::remove_file(&self.shm);
    }
}

/// The outcome of each action: what is expected without isolation, whether it succeeded, and the line.
fn outcomes(said: &str) -> BTreeMap<String, (char, bool, String)> {
    said.lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, control, result) = (
                words.next().unwrap(),
                words.next().unwrap(),
                words.next().unwrap(),
            );
            (
                name.to_owned(),
                (
                    control.chars().next().unwrap(),
                    result == "yes",
                    line.to_owned(),
                ),
            )
        })
        .collect()
}

#[tokio::test]
async fn nothing_on_the_hostile_list_succeeds() {
    let bench = Bench::start().await;
    let targets = Targets::make(bench.app.dir());
    let build = TempDir::new().unwrap();
    bench
        .put("hostile", fs::read(compiled(build.path())).unwrap())
        .await;
    bench.put("config", targets.config.clone()).await;
    let result = bench
        .call(json!({"command": "cp hostile /tmp/h; chmod 700 /tmp/h; /tmp/h config", "timeout_s": 300}))
        .await
        .unwrap();
    assert_eq!(result["exit_code"], 0, "{result:#}");
    let outcomes = outcomes(result["stdout"].as_str().unwrap());
    assert!(outcomes.len() >= ACTIONS_MIN, "{} actions", outcomes.len());
    let succeeded: Vec<&String> = outcomes
        .values()
        .filter(|(_, yes, _)| *yes)
        .map(|(.., line)| line)
        .collect();
    assert!(succeeded.is_empty(), "{succeeded:#?}");
    // Again in the shell that was started in advance, which has the same isolation.
    let again = json!([
        {"tool": "run_command", "with": {"command": "true"}},
        {"tool": "run_command", "with": {"command": "cp hostile /tmp/h; chmod 700 /tmp/h; /tmp/h config | grep -c ' yes '", "timeout_s": 300}},
        {"finish": "x"}
    ]);
    let run = bench.begin(again).await;
    bench.ended(&run).await;
    let results = bench.results(&run).await;
    assert_eq!(
        results[1].as_ref().unwrap()["stdout"],
        "0\n",
        "{results:#?}"
    );
    drop(targets);
    bench.finish().await;
}

/// Whether this process has the capabilities of root, which it lacks in some containers.
fn is_almighty() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    let has = u64::from_str_radix(line.trim(), 16).unwrap();
    // CAP_SYS_ADMIN and CAP_SYS_PTRACE, on which the rows for root depend.
    is_root() && has & (1 << 21) != 0 && has & (1 << 19) != 0
}

#[test]
fn without_isolation_the_hostile_list_succeeds() {
    let dir = TempDir::new().unwrap();
    let targets = Targets::make(dir.path());
    let build = TempDir::new().unwrap();
    let program = compiled(build.path());
    let config = build.path().join("config");
    fs::write(&config, &targets.config).unwrap();
    let place = dir.path().join("sandboxes/mine");
    fs::create_dir_all(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
    let said = Command::new(&program)
        .arg(&config)
        .current_dir(&place)
        .env("HOSTILE_CONTROL", "1")
        .env("HOSTILE_CANARY", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let outcomes = outcomes(&String::from_utf8_lossy(&said.stdout));
    assert!(outcomes.len() >= ACTIONS_MIN, "{} actions", outcomes.len());
    let unseen: Vec<&String> = outcomes
        .values()
        .filter(|(control, yes, _)| !yes && (*control == 'a' || (*control == 'r' && is_almighty())))
        .map(|(.., line)| line)
        .collect();
    assert!(unseen.is_empty(), "{unseen:#?}");
    let seen = outcomes.values().filter(|(_, yes, _)| *yes).count();
    let least = if is_almighty() { 80 } else { 35 };
    assert!(seen >= least, "only {seen} are seen to succeed");
}

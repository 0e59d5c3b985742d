//! `sandbox.root`: commands that see the programs of another root directory instead of the machine's.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;

use super::Bench;

/// The libraries of a program of this machine, including the loader.
fn libraries(of: &str) -> Vec<PathBuf> {
    let said = Command::new("ldd").arg(of).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    said.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Makes a root directory with bash, cat and a mark.
fn make_root(root: &Path) {
    for of in ["/bin/bash", "/bin/cat"] {
        let mut files = libraries(of);
        files.push(PathBuf::from(of));
        for file in files {
            // Handles machines where `/lib` and `/bin` are links into `/usr`.
            let name = file
                .strip_prefix("/usr")
                .or(file.strip_prefix("/"))
                .unwrap();
            let copy = root.join("usr").join(name);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(&file, copy).unwrap();
        }
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/of-the-root"), "yes").unwrap();
}

#[tokio::test]
async fn commands_see_the_programs_of_another_root() {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.path().join("root");
    make_root(&root);
    let bench = Bench::start_with(&[("ERRAND_SANDBOX__ROOT", root.to_str().unwrap())]).await;
    let tool = bench
        .app
        .get(&bench.team.key, "/v1/tools")
        .await
        .expect(200);
    let tool = tool["tools"]
        .as_array()
        .unwrap()
        .iter()
        .find(|tool| tool["name"] == "run_command")
        .unwrap()
        .clone();
    assert_eq!(tool["available"], true, "{tool:#}");
    let said = bench
        .stdout(
            "cat /etc/of-the-root; echo; echo /usr/bin/*; [ -e /usr/share ] || echo 'nothing else'",
        )
        .await;
    assert_eq!(said, "yes\n/usr/bin/bash /usr/bin/cat\nnothing else\n");
    let result = bench
        .call(json!({"command": "echo x > /usr/bin/x; echo x > /etc/x; echo x > file; cat file"}))
        .await
        .unwrap();
    assert_eq!(result["stdout"], "x\n", "{result:#}");
    assert!(!root.join("usr/bin/x").exists() && !root.join("etc/x").exists());
    bench.finish().await;
}

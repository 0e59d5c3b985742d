//! `sandbox.root`: commands that see the programs of an image instead of the machine's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::{Bench, program};

/// The libraries of a program of this machine, including the loader.
fn libraries(of: &str) -> Vec<PathBuf> {
    let said = Command::new("ldd").arg(of).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    said.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// An image with bash, cat and a mark, in the form of `docker save`.
fn image(to: &Path) {
    let mut layer = Builder::new(Vec::new());
    let mut names: Vec<String> = Vec::new();
    for of in ["/bin/bash", "/bin/cat"] {
        let mut files = libraries(of);
        files.push(PathBuf::from(of));
        for file in files {
            // Handles machines where `/lib` and `/bin` are links into `/usr`.
            let name = file
                .strip_prefix("/usr")
                .or(file.strip_prefix("/"))
                .unwrap();
            let name = format!("usr/{}", name.display());
            if !names.contains(&name) {
                let mut file = File::open(fs::canonicalize(&file).unwrap()).unwrap();
                layer.append_file(&name, &mut file).unwrap();
                names.push(name);
            }
        }
    }
    let mut header = Header::new_gnu();
    for name in ["bin", "lib", "lib64"] {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer
            .append_link(&mut header, name, format!("usr/{name}"))
            .unwrap();
    }
    let add = |builder: &mut Builder<Vec<u8>>, name: &str, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    add(&mut layer, "etc/of-the-image", b"yes");
    let layer = layer.into_inner().unwrap();
    let mut archive = Builder::new(Vec::new());
    add(&mut archive, "layer.tar", &layer);
    add(
        &mut archive,
        "manifest.json",
        json!([{"Layers": ["layer.tar"]}]).to_string().as_bytes(),
    );
    fs::write(to, archive.into_inner().unwrap()).unwrap();
}

fn build_root(arguments: &[&str]) -> (bool, String) {
    let done = Command::new(program())
        .args(["sandbox", "build-root"])
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("TMPDIR", std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (
        done.status.success(),
        String::from_utf8_lossy(&done.stderr).into_owned(),
    )
}

#[tokio::test]
async fn commands_see_the_programs_of_an_image() {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let (archive, root) = (dir.path().join("image.tar"), dir.path().join("root"));
    image(&archive);
    let (archive, root) = (archive.to_str().unwrap(), root.to_str().unwrap());
    let (went_well, said) = build_root(&[root, "--oci", archive]);
    assert!(went_well && said.contains("is ready"), "{said}");
    let bench = Bench::start_with(&[("ERRAND_SANDBOX__ROOT", root)]).await;
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
    let said = bench.stdout("cat /etc/of-the-image; echo; echo /usr/bin/*; [ -e /usr/share ] || echo 'nothing else'").await;
    assert_eq!(said, "yes\n/usr/bin/bash /usr/bin/cat\nnothing else\n");
    let result = bench
        .call(json!({"command": "echo x > /usr/bin/x; echo x > /etc/x; echo x > file; cat file"}))
        .await
        .unwrap();
    assert_eq!(result["stdout"], "x\n", "{result:#}");
    assert!(!Path::new(root).join("usr/bin/x").exists() && !Path::new(root).join("etc/x").exists());
    bench.finish().await;
}

#[test]
fn a_root_is_made_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("root");
    let text = dir.path().join("text");
    fs::write(&text, "no archive").unwrap();
    let (root_text, text) = (root.to_str().unwrap(), text.to_str().unwrap());
    let (went_well, said) = build_root(&[root_text, "--oci", text]);
    assert!(!went_well && !said.is_empty());
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing is left"
    );
    fs::create_dir(&root).unwrap();
    let (went_well, said) = build_root(&[root_text, "--oci", text]);
    assert!(!went_well && said.contains("already exists"), "{said}");
    let (went_well, _) = build_root(&[root_text]);
    assert!(!went_well);
}

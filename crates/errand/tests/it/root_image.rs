//! `scripts/root-image`, with programs in place of the tools that it calls: the real ones download packages and images.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/root-image");

/// The programs that the script needs besides the tools that build the root.
const COMMANDS: [&str; 15] = [
    "bash", "basename", "cat", "chmod", "cut", "dirname", "du", "find", "mkdir", "mktemp", "mv",
    "tail", "realpath", "rm", "timeout",
];

/// Writes a root directory with files that are not harmless to the archive that it is given.
const MMDEBSTRAP: &str = r#"#!/usr/bin/env bash
set -e
for argument; do case $argument in */root.tar) archive=$argument ;; esac; done
root=$(dirname "$archive")/files
mkdir -p "$root/usr/bin" "$root/etc/apt"
ln -s usr/bin "$root/bin"
echo "$*" >"$root/etc/arguments"
echo program >"$root/usr/bin/bash"
echo program >"$root/usr/bin/passwd"
chmod 6755 "$root/usr/bin/passwd"
mkfifo "$root/etc/pipe"
echo 'deb http://user:password@mirror' >"$root/etc/apt/sources.list"
tar --create --file "$archive" --directory "$root" .
rm -r "$root"
"#;

/// A directory for the result, and another with the only programs that the script finds.
struct Place {
    dir: TempDir,
    programs: TempDir,
}

impl Place {
    fn new() -> Self {
        let programs = TempDir::new().unwrap();
        for name in COMMANDS.into_iter().chain(["ln", "mkfifo", "tar"]) {
            let found = ["/usr/bin", "/bin"]
                .map(|dir| Path::new(dir).join(name))
                .into_iter()
                .find(|path| path.exists());
            symlink(found.expect(name), programs.path().join(name)).unwrap();
        }
        Self {
            dir: TempDir::new().unwrap(),
            programs,
        }
    }

    fn add(&self, name: &str, program: &str) {
        let path = self.programs.path().join(name);
        fs::write(&path, program).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Runs the script with the directory of the result and these arguments. Returns whether it succeeded, and standard
    /// error.
    fn build(&self, arguments: &[&str]) -> (bool, String) {
        let done = Command::new("/usr/bin/env")
            .args(["bash", SCRIPT])
            .arg(self.root())
            .args(arguments)
            .env_clear()
            .env("PATH", self.programs.path())
            .current_dir(self.programs.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        (done.status.success(), said)
    }

    /// Asserts that a build fails with a message, and leaves nothing.
    fn fails(&self, arguments: &[&str], message: &str) {
        let before = fs::read_dir(self.dir.path()).unwrap().count();
        let (went_well, said) = self.build(arguments);
        assert!(!went_well && said.contains(message), "{said}");
        let after = fs::read_dir(self.dir.path()).unwrap().count();
        assert_eq!(before, after, "something is left: {said}");
    }
}

#[test]
fn a_root_of_packages_is_complete_and_harmless() {
    let place = Place::new();
    place.add("mmdebstrap", MMDEBSTRAP);
    let wanted = [
        "--debian",
        "bookworm",
        "--include",
        "file,less",
        "--mirror",
        "http://mirror",
    ];
    let (went_well, said) = place.build(&wanted);
    assert!(went_well && said.contains("is ready"), "{said}");
    let root = place.root();
    let arguments = fs::read_to_string(root.join("etc/arguments")).unwrap();
    assert!(arguments.contains(",file,less bookworm "), "{arguments}");
    assert!(
        arguments.trim_end().ends_with(" http://mirror"),
        "{arguments}"
    );
    let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("."), mode("usr/bin/passwd")), (0o755, 0o755));
    assert!(root.join("bin/bash").exists());
    assert!(!root.join("etc/pipe").exists() && !root.join("etc/apt/sources.list").exists());
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 1);
    place.fails(&wanted, "already exists");
}

#[test]
fn a_root_that_cannot_be_built_leaves_nothing() {
    let place = Place::new();
    place.fails(&[], "give --debian SUITE or --oci IMAGE");
    place.fails(&["--debian", "bookworm"], "apt-get install mmdebstrap");
    place.fails(&["--oci", "docker://image"], "apt-get install skopeo");
    place.add("skopeo", "#!/usr/bin/env bash\nexit 3\n");
    place.fails(&["--oci", "docker://image"], "apt-get install umoci");
    place.add("umoci", "#!/usr/bin/env bash\nexit 3\n");
    place.fails(&["--oci", "docker://image"], "skopeo failed with status 3");
    place.fails(&["--oci", "/no/such/file"], "there is no file");
    let shell = "echo program >\"$root/usr/bin/bash\"";
    place.add("mmdebstrap", &MMDEBSTRAP.replace(shell, ""));
    place.fails(&["--debian", "bookworm"], "contains no shell");
}

#[test]
fn layers_of_an_image_are_unpacked() {
    let place = Place::new();
    // skopeo writes the image where umoci reads it; the last argument of umoci is the directory to create.
    place.add(
        "skopeo",
        "#!/usr/bin/env bash\nset -e\nfor last; do :; done\nlast=${last#oci:}\nmkdir \"${last%:latest}\"\necho \"$3\" >\"${last%:latest}/source\"\n",
    );
    place.add(
        "umoci",
        "#!/usr/bin/env bash\nset -e\nfor last; do :; done\nmkdir -p \"$last/bin\"\necho program >\"$last/bin/sh\"\ncat \"$(dirname \"$last\")/image/source\" >\"$last/source\"\n",
    );
    let archive = place.programs.path().join("image.tar");
    fs::write(&archive, "an archive").unwrap();
    let (went_well, said) = place.build(&["--oci", archive.to_str().unwrap()]);
    assert!(went_well, "{said}");
    let source = fs::read_to_string(place.root().join("source")).unwrap();
    assert_eq!(
        source.trim_end(),
        format!("docker-archive:{}", archive.display())
    );
}

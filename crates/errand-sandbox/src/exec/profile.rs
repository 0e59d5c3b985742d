//! The arguments for bubblewrap: what the world inside looks like.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::order::Arg;
use super::service::ServiceSpec;

const MIB: u64 = 1 << 20;
/// Sizes of the in-memory file systems. They count as memory of the command.
const TMP_BYTES: u64 = 256 * MIB;
const SHM_BYTES: u64 = 64 * MIB;
const HOME_BYTES: u64 = 64 * MIB;
/// Larger than for a command, because services may download programs to their home.
const SERVICE_HOME_BYTES: u64 = 512 * MIB;

/// Home directory inside.
const HOME: &str = "/home";
/// In-memory file systems that a command can write to, with their sizes in bytes.
pub(super) const IN_MEMORY: [(&str, u64); 3] = [
    ("/tmp", TMP_BYTES),
    ("/dev/shm", SHM_BYTES),
    (HOME, HOME_BYTES),
];
/// User id inside, regardless of the one outside.
const INSIDE_ID: &str = "1000";
/// `PATH` inside.
pub(super) const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Top-level directories that belong to `/usr`, some of them as links into it.
const USR_DIRS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Files of the host's /etc that programs need. No names, no addresses, no settings of services.
const ETC_FILES: [&str; 4] = ["alternatives", "ld.so.cache", "localtime", "mime.types"];
/// Directories of a custom root that are visible beside its programs.
const IMAGE_DIRS: [&str; 3] = ["etc", "opt", "srv"];
/// Files of the host's /etc that a service needs to resolve names and verify certificates.
const NETWORK_FILES: [&str; 6] = [
    "ssl/certs",
    "resolv.conf",
    "hosts",
    "nsswitch.conf",
    "gai.conf",
    "services",
];

const PASSWD: &str = "root:x:0:0:root:/root:/usr/sbin/nologin\nsandbox:x:1000:1000:sandbox:/home:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nsandbox:x:1000:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost sandbox\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Features that depend on the installed bubblewrap and on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// bubblewrap supports `--disable-userns`.
    pub(super) disables_user_namespaces: bool,
    /// A separate `/proc` can be mounted.
    pub(super) own_proc: bool,
}

/// Describes the world inside.
pub(super) struct Profile<'a> {
    pub(super) abilities: Abilities,
    /// A root directory other than the host's.
    pub(super) root: Option<&'a Path>,
    /// The service, which sees the host's network. `None` for a command, which sees the order's workspace as
    /// `/workspace`.
    pub(super) service: Option<&'a ServiceSpec>,
    /// Index of the descriptor with the system call filter.
    pub(super) filter: usize,
    /// Index of the descriptor to which bubblewrap reports its status.
    pub(super) status: usize,
}

/// Builds the argument list.
#[derive(Default)]
struct Args(Vec<Arg>);

impl Args {
    fn add<'a>(&mut self, args: impl IntoIterator<Item = &'a str>) {
        self.0
            .extend(args.into_iter().map(|arg| Arg::Text(arg.to_owned())));
    }

    fn tmpfs(&mut self, at: &str, bytes: u64, perms: &str) {
        self.add([
            "--size",
            &bytes.to_string(),
            "--perms",
            perms,
            "--tmpfs",
            at,
        ]);
    }

    fn file(&mut self, at: &str, content: &str) {
        self.add(["--perms", "0644", "--file"]);
        self.0.push(Arg::Data(content.to_owned()));
        self.add([at]);
    }
}

impl Profile<'_> {
    /// The arguments, without the command.
    ///
    /// # Errors
    /// If the root directory cannot be examined.
    pub(super) fn args(&self) -> io::Result<Vec<Arg>> {
        let mut args = Args::default();
        args.add(["--unshare-all", "--unshare-user"]);
        if self.abilities.disables_user_namespaces {
            args.add(["--disable-userns"]);
        }
        if self.service.is_some() {
            args.add(["--share-net"]);
        }
        args.add(["--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
        args.add([
            "--uid",
            INSIDE_ID,
            "--gid",
            INSIDE_ID,
            "--hostname",
            "sandbox",
        ]);
        args.add([
            "--clearenv",
            "--setenv",
            "PATH",
            PATH,
            "--setenv",
            "HOME",
            HOME,
        ]);
        args.add(["--setenv", "LANG", "C.UTF-8", "--setenv", "TMPDIR", "/tmp"]);
        args.add(["--setenv", "TERM", "dumb", "--setenv", "USER", "sandbox"]);
        for (name, value) in self.service.into_iter().flat_map(|service| &service.env) {
            args.add(["--setenv", name, value]);
        }
        self.root(&mut args)?;
        if self.abilities.own_proc {
            args.add(["--proc", "/proc"]);
        }
        args.add(["--dev", "/dev"]);
        args.tmpfs("/dev/shm", SHM_BYTES, "1777");
        args.tmpfs("/tmp", TMP_BYTES, "1777");
        let home_bytes = if self.service.is_some() {
            SERVICE_HOME_BYTES
        } else {
            HOME_BYTES
        };
        args.tmpfs(HOME, home_bytes, "0755");
        for path in self
            .service
            .into_iter()
            .flat_map(|service| &service.read_only)
        {
            let path = path_str(path)?;
            args.add(["--ro-bind", path, path]);
        }
        if self.service.is_none() {
            args.add(["--bind"]);
            args.0.push(Arg::Workspace);
            args.add(["/workspace"]);
        }
        args.add(["--remount-ro", "/dev", "--remount-ro", "/"]);
        args.add([
            "--chdir",
            if self.service.is_none() {
                "/workspace"
            } else {
                HOME
            },
        ]);
        args.add(["--seccomp"]);
        args.0.push(Arg::Reopened(self.filter));
        args.add(["--json-status-fd"]);
        args.0.push(Arg::Descriptor(self.status));
        Ok(args.0)
    }

    /// Makes the programs visible, read-only: the host's, or those of a custom root.
    fn root(&self, args: &mut Args) -> io::Result<()> {
        let base = self.root.unwrap_or(Path::new("/"));
        args.add(["--perms", "0755", "--dir", "/etc"]);
        args.add(["--ro-bind", path_str(&base.join("usr"))?, "/usr"]);
        for name in USR_DIRS {
            let path = base.join(name);
            let inside = format!("/{name}");
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_symlink() => {
                    args.add(["--symlink", path_str(&fs::read_link(&path)?)?, &inside]);
                }
                Ok(_) => args.add(["--ro-bind", path_str(&path)?, &inside]),
                Err(_) => {}
            }
        }
        if self.root.is_some() {
            for name in IMAGE_DIRS {
                args.add([
                    "--ro-bind-try",
                    path_str(&base.join(name))?,
                    &format!("/{name}"),
                ]);
            }
        } else {
            let network = NETWORK_FILES.iter().filter(|_| self.service.is_some());
            for name in ETC_FILES.iter().chain(network) {
                let path = format!("/etc/{name}");
                // Each mount adds a sixth of a millisecond to every start. A link into /usr works without one.
                match in_usr(&path) {
                    Some(place) => args.add(["--symlink", path_str(&place)?, &path]),
                    None => args.add(["--ro-bind-try", &path, &path]),
                }
            }
            args.file("/etc/passwd", PASSWD);
            args.file("/etc/group", GROUP);
            if self.service.is_none() {
                args.file("/etc/hosts", HOSTS);
                args.file("/etc/nsswitch.conf", NSSWITCH);
            }
        }
        args.add([
            "--dir",
            "/run",
            "--dir",
            "/var",
            "--symlink",
            "../tmp",
            "/var/tmp",
        ]);
        Ok(())
    }
}

/// The path in `/usr` to which a symbolic link leads, if it does.
fn in_usr(path: &str) -> Option<PathBuf> {
    if !fs::symlink_metadata(path).ok()?.is_symlink() {
        return None;
    }
    let place = fs::canonicalize(path).ok()?;
    place.starts_with("/usr").then_some(place)
}

/// Converts a path to an argument.
fn path_str(path: &Path) -> io::Result<&str> {
    path.to_str()
        .ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

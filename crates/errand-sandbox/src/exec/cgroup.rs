//! Cgroups, which count and limit the memory, processes and processor time of a sandbox as a whole.
//!
//! The available version is determined once: version 2 if this server may create groups beneath its own (delegation),
//! otherwise version 1 if it may (as root), per controller. Limits that no cgroup enforces are left to per-process
//! limits and the watcher.
//!
//! Groups are named `errand-INSTANCE/NUMBER` beneath the server's own group, so that leftovers of a dead server are
//! found by name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Limits;

/// Length of the interval in which processor time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Tries, and the pause between them, to remove a group whose processes are still exiting.
const REMOVALS_MAX: u32 = 100;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);
/// Group for the server itself. Version 2 does not allow a group to contain both processes and limited groups.
const OWN_LEAF: &str = "errand-server";

/// The mechanism that enforces a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// Cgroup version 2.
    CgroupV2,
    /// Cgroup version 1.
    CgroupV1,
    /// Per-process limits, and regular checks by the server.
    Watcher,
}

/// Where groups can be created.
#[derive(Clone, Debug, Default)]
pub(super) struct Cgroups {
    /// Version 1: the server's own group, by controller.
    v1: BTreeMap<&'static str, PathBuf>,
    /// Version 2: the group beneath which groups are created.
    v2: Option<PathBuf>,
    /// Name of this server's groups.
    name: String,
}

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

impl Cgroups {
    /// Finds out where groups can be created. `name` is a plain name for this server's groups.
    pub(super) fn find(name: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::beneath(
            name,
            &read("/proc/self/mountinfo"),
            &read("/proc/self/cgroup"),
        )
    }

    fn beneath(name: &str, mounts: &str, own: &str) -> Self {
        let mut found = Self {
            name: name.to_owned(),
            ..Self::default()
        };
        for mount in mounts.lines().filter_map(Mount::parse) {
            if mount.kind == "cgroup2" {
                let dir = mount.own_group_dir(own, |controllers| controllers.is_empty());
                found.v2 = dir.filter(|dir| delegates(dir)).or(found.v2);
                continue;
            }
            for controller in CONTROLLERS {
                if mount.options.contains(&controller)
                    && let Some(dir) = mount
                        .own_group_dir(own, |list| list.split(',').any(|one| one == controller))
                    && may_make_groups(&dir)
                {
                    found.v1.insert(controller, dir);
                }
            }
        }
        // A single version for all limits: their counts are separate.
        if found.v2.is_some() {
            found.v1.clear();
        }
        found
    }

    /// The mechanism that enforces the limit of a controller.
    pub(super) fn keeper(&self, controller: &str) -> Keeper {
        if self.v2.is_some() {
            Keeper::CgroupV2
        } else if self.v1.contains_key(controller) {
            Keeper::CgroupV1
        } else {
            Keeper::Watcher
        }
    }

    /// Prepares version 2: moves the server into a group of its own, because a group with limited subgroups must not
    /// contain processes.
    pub(super) fn prepare(&self) -> io::Result<()> {
        let Some(dir) = &self.v2 else { return Ok(()) };
        let leaf = dir.join(OWN_LEAF);
        create_dir(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), "0")?;
        fs::write(dir.join("cgroup.subtree_control"), "+memory +pids +cpu")?;
        let server_dirs = dir.join(self.group_name());
        create_dir(&server_dirs)?;
        fs::write(
            server_dirs.join("cgroup.subtree_control"),
            "+memory +pids +cpu",
        )
    }

    fn group_name(&self) -> String {
        format!("errand-{}", self.name)
    }

    /// Directories that hold this server's groups.
    fn server_dirs(&self) -> Vec<PathBuf> {
        let dirs = self.v2.iter().chain(self.v1.values());
        let mut dirs: Vec<PathBuf> = dirs.map(|dir| dir.join(self.group_name())).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }

    /// Creates a group with these limits.
    pub(super) fn create(&self, limits: &Limits) -> io::Result<Group> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let child = format!("{}-{number}", std::process::id());
        let mut group = Group {
            dirs: Vec::new(),
            files: Files::default(),
        };
        for server_dirs in self.server_dirs() {
            let dir = server_dirs.join(&child);
            create_dir(&server_dirs)?;
            create_dir(&dir)?;
            group.dirs.push(dir);
        }
        // From here on, dropping the group removes what has been created.
        if let Some(dir) = &self.v2 {
            let dir = dir.join(self.group_name()).join(&child);
            set_limits_v2(&dir, limits)?;
            group.files = Files {
                memory_events: Some(dir.join("memory.events")),
                pids_events: Some(dir.join("pids.events")),
                join: vec![dir.join("cgroup.procs")],
            };
            return Ok(group);
        }
        for (controller, dir) in &self.v1 {
            let dir = dir.join(self.group_name()).join(&child);
            set_limits_v1(controller, &dir, limits)?;
            let join = dir.join("tasks");
            if !group.files.join.contains(&join) {
                group.files.join.push(join);
            }
            match *controller {
                "memory" => group.files.memory_events = Some(dir.join("memory.oom_control")),
                "pids" => group.files.pids_events = Some(dir.join("pids.events")),
                _ => {}
            }
        }
        Ok(group)
    }

    /// Processes in the groups of an earlier server with this name. Call this before creating groups.
    pub(super) fn leftover_pids(&self) -> Vec<u32> {
        let groups = self
            .server_dirs()
            .into_iter()
            .flat_map(|server_dirs| subdirectories(&server_dirs));
        let mut pids: Vec<u32> = groups.flat_map(|group| processes_in(&group)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Removes the directories that hold this server's groups, if they are empty.
    pub(super) fn remove_empty(&self) {
        for server_dirs in self.server_dirs() {
            let _ = fs::remove_dir(server_dirs);
        }
    }

    /// Removes the empty groups of an earlier server with this name.
    pub(super) fn remove_leftover_groups(&self) {
        for server_dirs in self.server_dirs() {
            for group in subdirectories(&server_dirs) {
                remove(&group);
            }
            let _ = fs::remove_dir(&server_dirs);
        }
    }
}

/// The cgroup of one sandbox. Removed when it is dropped, if its processes are gone.
#[derive(Debug)]
pub(super) struct Group {
    dirs: Vec<PathBuf>,
    files: Files,
}

#[derive(Debug, Default)]
struct Files {
    memory_events: Option<PathBuf>,
    pids_events: Option<PathBuf>,
    join: Vec<PathBuf>,
}

impl Group {
    /// The files through which a process joins the group.
    pub(super) fn join(&self) -> impl Iterator<Item = &Path> {
        self.files.join.iter().map(PathBuf::as_path)
    }

    /// Whether a process was killed because the group was out of memory.
    pub(super) fn was_out_of_memory(&self) -> bool {
        let file = self.files.memory_events.as_deref();
        file.is_some_and(|file| read_counter(file, "oom_kill") > 0)
    }

    /// Whether a process could not be started because there were too many.
    pub(super) fn was_out_of_processes(&self) -> bool {
        let file = self.files.pids_events.as_deref();
        file.is_some_and(|file| read_counter(file, "max") > 0)
    }

    /// Removes the group after its processes are gone. Blocks for two seconds at most.
    pub(super) fn remove(&self) {
        for dir in &self.dirs {
            remove(dir);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A single try without waiting. The next start of the server removes what is left.
        for dir in &self.dirs {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Reads a number from a file of `name number` lines. 0 if it is missing.
fn read_counter(file: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let number = text.lines().find_map(|line| {
        let (found, number) = line.split_once(' ')?;
        (found == name).then(|| number.trim().parse().ok())?
    });
    number.unwrap_or(0)
}

fn set_limits_v2(dir: &Path, limits: &Limits) -> io::Result<()> {
    fs::write(dir.join("memory.max"), limits.memory_bytes_max.to_string())?;
    // These files are missing on machines without swap.
    let _ = fs::write(dir.join("memory.swap.max"), "0");
    let _ = fs::write(dir.join("memory.oom.group"), "1");
    fs::write(dir.join("pids.max"), limits.cgroup_tasks_max().to_string())?;
    let quota = cpu_quota_us(limits);
    fs::write(dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))
}

fn set_limits_v1(controller: &str, dir: &Path, limits: &Limits) -> io::Result<()> {
    match controller {
        "memory" => {
            let bytes = limits.memory_bytes_max.to_string();
            fs::write(dir.join("memory.limit_in_bytes"), &bytes)?;
            // Memory and swap together. The file exists only if the kernel accounts for swap.
            let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), &bytes);
            Ok(())
        }
        "pids" => fs::write(dir.join("pids.max"), limits.cgroup_tasks_max().to_string()),
        _ => {
            fs::write(dir.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
            fs::write(
                dir.join("cpu.cfs_quota_us"),
                cpu_quota_us(limits).to_string(),
            )
        }
    }
}

fn cpu_quota_us(limits: &Limits) -> u64 {
    u64::from(limits.cpu_percent_max) * CPU_PERIOD_US / 100
}

fn create_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Removes a group, waiting until its processes are gone.
fn remove(dir: &Path) {
    for _ in 0..REMOVALS_MAX {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(REMOVAL_PAUSE);
            }
            _ => return,
        }
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn processes_in(group: &Path) -> Vec<u32> {
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    list.lines()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| *pid > 1)
        .collect()
}

/// Whether groups with limits can be created beneath a group of version 2.
fn delegates(dir: &Path) -> bool {
    let offered = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| offered.split_ascii_whitespace().any(|one| one == name);
    CONTROLLERS.iter().all(|name| has(name))
        && may_make_groups(dir)
        && is_writable(&dir.join("cgroup.subtree_control"))
}

fn may_make_groups(dir: &Path) -> bool {
    is_writable(dir)
}

fn is_writable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// A mounted cgroup hierarchy, parsed from a line of `mountinfo`.
struct Mount<'a> {
    kind: &'a str,
    /// The part of the hierarchy that is mounted.
    root: &'a str,
    at: &'a str,
    options: Vec<&'a str>,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let (root, at) = (front.next()?, front.next()?);
        let mut back = back.split(' ');
        let kind = back
            .next()
            .filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
        let options = back.nth(1).unwrap_or_default().split(',').collect();
        Some(Self {
            kind,
            root,
            at,
            options,
        })
    }

    /// Directory of the server's own group, according to `/proc/self/cgroup`.
    fn own_group_dir(&self, own: &str, is_of: impl Fn(&str) -> bool) -> Option<PathBuf> {
        let path = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            is_of(controllers).then_some(path)
        })?;
        let beneath = path
            .strip_prefix(self.root.trim_end_matches('/'))
            .unwrap_or("");
        let dir = Path::new(self.at).join(beneath.trim_start_matches('/'));
        // In a container, the path may be that of the host and not exist here.
        Some(if dir.is_dir() {
            dir
        } else {
            PathBuf::from(self.at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory_bytes_max: 1 << 20,
            processes_max: 10,
            cpu_percent_max: 150,
            ..Limits::default()
        }
    }

    fn hierarchy(dir: &Path, kind: &str, options: &str) -> String {
        format!(
            "30 20 0:26 / {} rw,relatime shared:9 - {kind} none rw,{options}",
            dir.display()
        )
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn version_1_is_found_and_limited_per_controller() {
        let dir = tempfile::tempdir().unwrap();
        let (memory, cpu) = (dir.path().join("memory"), dir.path().join("cpu"));
        fs::create_dir_all(memory.join("own")).unwrap();
        fs::create_dir_all(&cpu).unwrap();
        let mounts = [
            hierarchy(&memory, "cgroup", "memory"),
            hierarchy(&cpu, "cgroup", "cpu,cpuacct"),
            "31 20 0:5 / /proc rw - proc proc rw".to_owned(),
        ]
        .join("\n");
        let own = "4:memory:/own\n3:cpu,cpuacct:/gone\n0::/\n";
        let found = Cgroups::beneath("x", &mounts, own);
        assert_eq!(found.keeper("memory"), Keeper::CgroupV1);
        assert_eq!(found.keeper("cpu"), Keeper::CgroupV1);
        assert_eq!(found.keeper("pids"), Keeper::Watcher);
        let group = found.create(&limits()).unwrap();
        let made = group.dirs.clone();
        assert!(
            made.iter()
                .any(|made| made.starts_with(memory.join("own/errand-x"))),
            "{made:?}"
        );
        for made in made {
            if made.starts_with(&memory) {
                assert_eq!(read(made.join("memory.limit_in_bytes")), "1048576");
            } else {
                assert_eq!(read(made.join("cpu.cfs_quota_us")), "150000");
            }
        }
        assert_eq!(group.join().count(), 2);
    }

    #[test]
    fn version_2_needs_all_controllers_and_moves_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("service");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        fs::write(own.join("cgroup.subtree_control"), "").unwrap();
        let mounts = hierarchy(dir.path(), "cgroup2", "nsdelegate");
        let find = || Cgroups::beneath("x", &mounts, "0::/service\n");
        assert_eq!(find().keeper("memory"), Keeper::Watcher);
        fs::write(
            own.join("cgroup.controllers"),
            "cpuset cpu io memory pids\n",
        )
        .unwrap();
        let found = find();
        assert_eq!(found.keeper("memory"), Keeper::CgroupV2);
        found.prepare().unwrap();
        assert_eq!(read(own.join("errand-server/cgroup.procs")), "0");
        assert_eq!(
            read(own.join("cgroup.subtree_control")),
            "+memory +pids +cpu"
        );
        let group = found.create(&limits()).unwrap();
        let made = group.dirs.first().unwrap().clone();
        assert_eq!(read(made.join("memory.max")), "1048576");
        assert_eq!(read(made.join("cpu.max")), "150000 100000");
        assert!(!group.was_out_of_memory() && !group.was_out_of_processes());
        fs::write(
            made.join("memory.events"),
            "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n",
        )
        .unwrap();
        fs::write(made.join("pids.events"), "max 12\n").unwrap();
        assert!(group.was_out_of_memory() && group.was_out_of_processes());
        fs::write(made.join("cgroup.procs"), "4711\n4712\n1\n").unwrap();
        assert_eq!(found.leftover_pids(), [4711, 4712]);
    }

    #[test]
    fn without_hierarchies_the_watcher_enforces_all_limits() {
        let group = Cgroups::default().create(&limits()).unwrap();
        assert!(group.dirs.is_empty() && group.join().next().is_none());
        assert_eq!(Cgroups::default().keeper("memory"), Keeper::Watcher);
    }
}

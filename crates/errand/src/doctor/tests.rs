use super::disk::{Space, judge_file_clock, judge_file_system, judge_space, open_to_others};
use super::isolation::judge as judge_isolation;
use super::system::judge_descriptors;
use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn little_free_space_is_reported_in_time() {
    const MIB: u64 = 1 << 20;
    let space = |free_mib: u64, total_mib: u64, free_inodes, total_inodes| Space {
        free_bytes: free_mib * MIB,
        total_bytes: total_mib * MIB,
        free_inodes,
        total_inodes,
    };
    for (space, level) in [
        (space(500_000, 1_000_000, 900, 1000), Level::Ok),
        // Some file systems do not count inodes.
        (space(500_000, 1_000_000, 0, 0), Level::Ok),
        (space(49_999, 1_000_000, 900, 1000), Level::Warning),
        (space(1023, 2000, 900, 1000), Level::Warning),
        (space(500_000, 1_000_000, 49, 1000), Level::Warning),
        (space(99, 2000, 900, 1000), Level::Problem),
        (space(500_000, 1_000_000, 0, 1000), Level::Problem),
    ] {
        let check = judge_space(space);
        assert_eq!(check.level, level, "{space:?}: {check:?}");
        assert_eq!(check.advice.is_some(), level != Level::Ok);
    }
}

#[test]
fn memory_and_network_file_systems_are_reported() {
    for (kind, level) in [
        (0xef53, Level::Ok),
        (0x5846_5342, Level::Ok),
        (0x794c_7630, Level::Ok),
        (0x0102_1994, Level::Warning),
        (0x6969, Level::Warning),
        (0xff53_4d42, Level::Warning),
    ] {
        assert_eq!(judge_file_system(kind).level, level, "{kind:x}");
    }
}

#[test]
fn different_clocks_are_reported() {
    let now = at("2026-11-23T09:30:00Z");
    for (file, level) in [
        ("2026-11-23T09:30:00.004Z", Level::Ok),
        ("2026-11-23T09:29:55.000Z", Level::Ok),
        ("2026-11-23T09:29:54.999Z", Level::Warning),
        ("2026-11-23T09:31:00.000Z", Level::Warning),
    ] {
        assert_eq!(judge_file_clock(at(file), now).level, level, "{file}");
    }
}

#[test]
fn a_low_limit_of_open_files_is_reported() {
    assert_eq!(judge_descriptors(None).level, Level::Ok);
    assert_eq!(judge_descriptors(Some(4096)).level, Level::Ok);
    assert_eq!(judge_descriptors(Some(1024)).level, Level::Warning);
}

#[test]
fn isolation_reports_why_it_is_off_and_its_mechanism() {
    use errand_sandbox::exec::{Keeper, Keepers, Unavailable};
    let why = Unavailable {
        reason: "bubblewrap (bwrap) is not installed".to_owned(),
        remedy: "install it".to_owned(),
    };
    let off = judge_isolation(Err(why));
    assert_eq!(off.len(), 1);
    assert_eq!(
        (
            off[0].level,
            off[0].found.as_str(),
            off[0].advice.as_deref()
        ),
        (
            Level::Warning,
            "run_command is off: bubblewrap (bwrap) is not installed",
            Some("install it")
        )
    );
    let keepers = |memory, cpu| Keepers {
        memory,
        processes: Keeper::CgroupV1,
        cpu,
    };
    let on = judge_isolation(Ok((keepers(Keeper::CgroupV2, Keeper::CgroupV1), true)));
    assert_eq!((on[0].level, on[1].level), (Level::Ok, Level::Ok));
    assert_eq!(
        on[1].found,
        "memory is limited by cgroup v2, processes by cgroup v1, processor time by cgroup v1"
    );
    let watched = judge_isolation(Ok((keepers(Keeper::Watcher, Keeper::Watcher), false)));
    assert!(watched[0].found.contains("without its own /proc"));
    assert_eq!(watched[1].level, Level::Warning);
}

#[test]
fn delays_are_problems_only_while_a_server_runs() {
    let now = at("2026-11-23T09:30:00Z");
    let some = Late {
        count: 3,
        since: Some(at("2026-11-23T09:20:00Z")),
    };
    let late = |place, timer, request, delivery| Overdue {
        places: if place { some } else { Late::default() },
        timers: if timer { some } else { Late::default() },
        requests: if request { some } else { Late::default() },
        deliveries: if delivery { some } else { Late::default() },
    };
    let levels = |late, free, served| -> Vec<Level> {
        judge_late(late, free, served, now)
            .iter()
            .map(|check| check.level)
            .collect()
    };
    use Level::{Ok, Problem, Warning};
    assert_eq!(levels(Overdue::default(), true, true), [Ok]);
    assert_eq!(
        levels(late(true, true, true, true), true, false),
        [Ok],
        "no server runs"
    );
    assert_eq!(
        levels(late(true, true, true, true), true, true),
        [Problem, Problem, Problem, Warning]
    );
    assert_eq!(
        levels(late(true, true, false, false), false, true),
        [Warning, Warning]
    );
    let text = &judge_late(late(true, false, false, false), true, true, now)[0].found;
    assert_eq!(
        text,
        "3 runs wait for a slot, the first for 10 minutes, although slots are free"
    );
}

#[test]
fn numbers_are_readable() {
    assert_eq!(bytes(1023), "1023 bytes");
    assert_eq!(bytes(1536), "1.5 KiB");
    assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
    assert_eq!(duration(1500), "1 seconds");
    assert_eq!(duration(3 * 24 * 3_600_000), "3 days");
    let many: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert!(listed(&many).ends_with("19; and 5 more"));
}

#[test]
fn a_directory_that_others_can_access_is_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    for (mode, is_open) in [(0o700, false), (0o750, true), (0o701, true), (0o755, true)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(dir.path(), permissions).unwrap();
        let found = open_to_others(dir.path()).unwrap();
        assert_eq!(found.is_some(), is_open, "{mode:o}: {found:?}");
    }
}

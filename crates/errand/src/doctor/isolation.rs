//! Checks whether commands can be isolated, and which mechanism enforces their limits.

use errand_sandbox::exec::{Bubblewrap, ExecSettings, Keeper, Keepers, Unavailable};

use super::Check;

/// Runs an isolated test command. The result applies to the user who runs the check; a server that runs as another user
/// may differ, and logs its own result.
pub async fn isolation(settings: ExecSettings) -> Vec<Check> {
    judge(Bubblewrap::look(settings).await)
}

pub(super) fn judge(looked: Result<(Keepers, bool), Unavailable>) -> Vec<Check> {
    const CHECK: &str = "isolation";
    let (keepers, has_own_proc) = match looked {
        Ok(found) => found,
        Err(why) => {
            let found = format!("run_command is off: {}", why.reason);
            return vec![Check::warning(CHECK, found, &why.remedy)];
        }
    };
    let proc = if has_own_proc {
        ""
    } else {
        "; but without its own /proc, because this machine does not permit mounting it"
    };
    let found = format!("bubblewrap (bwrap) isolates commands: run_command is on{proc}");
    vec![Check::ok(CHECK, found), bounds(keepers)]
}

fn bounds(keepers: Keepers) -> Check {
    const CHECK: &str = "command limits";
    let name = |keeper| match keeper {
        Keeper::CgroupV2 => "cgroup v2",
        Keeper::CgroupV1 => "cgroup v1",
        Keeper::Watcher => "per-process limits and a watcher",
    };
    let cpu = match keepers.cpu {
        Keeper::Watcher => "only a low priority",
        keeper => name(keeper),
    };
    let found = format!(
        "memory is limited by {}, processes by {}, processor time by {cpu}",
        name(keepers.memory),
        name(keepers.processes)
    );
    if [keepers.memory, keepers.processes, keepers.cpu].contains(&Keeper::Watcher) {
        let advice = "give the server its own cgroup (for a service: Delegate=yes), so that the kernel enforces the limits of commands at all times";
        return Check::warning(CHECK, found, advice);
    }
    Check::ok(CHECK, found)
}

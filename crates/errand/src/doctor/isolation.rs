//! Whether commands can be isolated here, and who keeps which of their bounds.

use errand_sandbox::exec::{Bubblewrap, ExecSettings, Keeper, Keepers, Unavailable};

use super::Check;

/// Isolates a command for trial, and says how it went. It is made by the process that looks: a server that runs as
/// another user may find otherwise, and says so in its log.
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
        "; without a /proc of their own, which this machine does not let be mounted"
    };
    let found = format!("bubblewrap (bwrap) isolates commands: run_command is on{proc}");
    vec![Check::ok(CHECK, found), bounds(keepers)]
}

fn bounds(keepers: Keepers) -> Check {
    const CHECK: &str = "bounds of commands";
    let told = |keeper| match keeper {
        Keeper::CgroupV2 => "cgroup v2",
        Keeper::CgroupV1 => "cgroup v1",
        Keeper::Watcher => "limits of each process, and a watcher",
    };
    let cpu = match keepers.cpu {
        Keeper::Watcher => "nothing but a low priority",
        keeper => told(keeper),
    };
    let found = format!(
        "memory by {}, processes by {}, processor time by {cpu}",
        told(keepers.memory),
        told(keepers.processes)
    );
    if [keepers.memory, keepers.processes, keepers.cpu].contains(&Keeper::Watcher) {
        let advice = "give the server a cgroup of its own (of a service: Delegate=yes), so that the kernel keeps the bounds of commands at every moment";
        return Check::warning(CHECK, found, advice);
    }
    Check::ok(CHECK, found)
}

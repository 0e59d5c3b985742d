//! The simulated disk: full for a while, or failing in the middle of a commit.

use std::sync::Arc;

use errand_store::{Fault, Faults};

use super::world::World;

/// Injects the disk's faults into the store.
pub(crate) struct SimDisk(pub(crate) Arc<World>);

impl Faults for SimDisk {
    fn at_commit(&self) -> Fault {
        let now = self.0.now();
        let mut state = self.0.state();
        state.activity += 1;
        if state.disk.full {
            state.note(now, "the disk is full");
            state.saw("full disk");
            return Fault::Full;
        }
        match state.disk.breaks {
            Some((0, written)) => {
                state.disk.breaks = None;
                state.saw("failed commit");
                state.note(now, &format!("the disk fails (written: {written})"));
                return Fault::Broken { written };
            }
            Some((left, written)) => state.disk.breaks = Some((left - 1, written)),
            None => {}
        }
        state.commits += 1;
        Fault::None
    }

    fn gives_way(&self) -> (u32, u32) {
        let mut state = self.0.state();
        let bits = state.random.next();
        let times = |bits: u64| u32::try_from((bits & 7).saturating_sub(4)).unwrap_or(0);
        (times(bits), times(bits >> 8))
    }

    fn next_write(&self, waiting: usize) -> usize {
        let mut state = self.0.state();
        if waiting > 1 {
            state.saw("writes of several callers in one commit");
        }
        state.random.index(waiting)
    }
}

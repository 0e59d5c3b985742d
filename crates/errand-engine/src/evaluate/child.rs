//! The evaluator process: `errand __evaluate` reads requests from its standard input and writes replies.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use errand_core::playbook::{decode_job, encode_reply};
use errand_sandbox::exec::{Confinement, confine};

use super::{FRAME_BYTES_MAX, Task, bounded_misfit};

/// The hidden command that makes this program an evaluator.
pub(super) const EVALUATOR_ARGUMENT: &str = "__evaluate";
/// Limits of a process over its whole life.
const CONFINEMENT: Confinement = Confinement {
    cpu_seconds_max: 60,
    memory_bytes_max: 768 << 20,
};
/// Stack size of the evaluating thread. An evaluation that needs more crashes the process and fails only its own call.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Runs the evaluator if the command line says so, and returns the exit code. Returns `None` for any other command
/// line.
#[must_use]
pub fn run_evaluator<S: AsRef<OsStr>>(mut args: impl Iterator<Item = S>) -> Option<ExitCode> {
    if args.nth(1)?.as_ref() != EVALUATOR_ARGUMENT {
        return None;
    }
    let ended = confine(CONFINEMENT).and_then(|()| {
        let worker = std::thread::Builder::new().stack_size(STACK_BYTES);
        let worker = worker.spawn(|| serve(&mut io::stdin().lock(), &mut io::stdout().lock()))?;
        worker
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the evaluator panicked")))
    });
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// Handles requests until the server closes the pipe.
fn serve(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    loop {
        let mut head = [0; 5];
        match from.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let [task, a, b, c, d] = head;
        let size = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if size > FRAME_BYTES_MAX {
            return Err(invalid());
        }
        let mut work = vec![0; size];
        from.read_exact(&mut work)?;
        let reply = if task == Task::Template.byte() {
            let job = decode_job(&work).ok_or_else(invalid)?;
            encode_reply(&job.evaluate())
        } else {
            schema(&work)?
        };
        let size = u32::try_from(reply.len()).map_err(|_| invalid())?;
        to.write_all(&size.to_le_bytes())?;
        to.write_all(&reply)?;
        to.flush()?;
    }
}

fn schema(work: &[u8]) -> io::Result<Vec<u8>> {
    let mut lines = work.split(|byte| *byte == b'\n');
    let mut read = || serde_json::from_slice(lines.next()?).ok();
    let (schema, value) = (read().ok_or_else(invalid)?, read().ok_or_else(invalid)?);
    Ok(serde_json::to_vec(&bounded_misfit(&schema, &value))?)
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

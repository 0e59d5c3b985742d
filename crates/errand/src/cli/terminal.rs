//! What the person at the terminal types.
//!
//! Reading blocks a thread that is not waited for, so that a signal ends the program all the same.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::out::Out;
use crate::password::PASSWORD_BYTES_MAX;

/// Most bytes of a line.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Whether somebody can be asked.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// A line from standard input, without its end. None where it has ended.
pub(super) async fn read_line() -> Result<Option<String>> {
    let read = || {
        let mut line = String::new();
        let read = io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_line(&mut line)?;
        Ok::<_, io::Error>((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
    };
    let line = tokio::task::spawn_blocking(read)
        .await
        .context("reading was cut off")?;
    line.context("standard input cannot be read")
}

/// A new password: from a terminal twice and without echo, else the first line of standard input.
pub(super) async fn new_password(out: &Out) -> Result<String> {
    if !is_there() {
        let password = read_line().await?;
        return password.context("no password came on standard input; give it as the first line");
    }
    let first = ask_hidden(out, "Password: ").await?;
    let second = ask_hidden(out, "Once more: ").await?;
    if first != second {
        bail!("the two passwords differ; nothing was changed");
    }
    if first.len() > PASSWORD_BYTES_MAX {
        bail!("the password is longer than {PASSWORD_BYTES_MAX} bytes; take a shorter one");
    }
    Ok(first)
}

async fn ask_hidden(out: &Out, question: &str) -> Result<String> {
    // Silent before it is asked: whoever types at once is not shown either.
    let silence = Silence::begin()?;
    out.prompt(question)?;
    let read = tokio::select! {
        read = read_line() => read,
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    drop(silence);
    out.note("")?;
    read?.context("no password was given; nothing was changed")
}

/// As long as it lives, the terminal does not show what is typed.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> Result<Self> {
        let failed = "the terminal's echo cannot be switched off";
        let before = tcgetattr(io::stdin()).context(failed)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).context(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Without a terminal there is no echo to switch on.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

//! Reads input from the terminal.
//!
//! Reading blocks a thread that nothing waits for, so signals still end the program.

use std::io::{self, BufRead as _, IsTerminal as _};

use anyhow::{Context as _, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::out::Out;
use crate::password::PASSWORD_BYTES_MAX;

/// Maximum length of a line in bytes.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Whether standard input is a terminal, so that a person can be asked.
pub(super) fn is_there() -> bool {
    io::stdin().is_terminal()
}

/// Reads a line from standard input, without its end. `None` at the end of the input.
pub(super) async fn read_line() -> Result<Option<String>> {
    let read = || {
        let mut line = String::new();
        let read = io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_line(&mut line)?;
        Ok::<_, io::Error>((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
    };
    let line = tokio::task::spawn_blocking(read)
        .await
        .context("reading was interrupted")?;
    line.context("standard input cannot be read")
}

/// Reads a new password: twice and without echo from a terminal, otherwise the first line of standard input.
pub(super) async fn new_password(out: &Out) -> Result<String> {
    if !is_there() {
        let password = read_line().await?;
        return password.context("no password on standard input; give it as the first line");
    }
    let first = ask_hidden(out, "Password: ").await?;
    let second = ask_hidden(out, "Confirm password: ").await?;
    if first != second {
        bail!("the passwords do not match; nothing was changed");
    }
    if first.len() > PASSWORD_BYTES_MAX {
        bail!("the password is longer than {PASSWORD_BYTES_MAX} bytes; choose a shorter one");
    }
    Ok(first)
}

async fn ask_hidden(out: &Out, question: &str) -> Result<String> {
    // Echo is turned off before the prompt, so that fast typing is not shown either.
    let silence = Silence::begin()?;
    out.prompt(question)?;
    let read = tokio::select! {
        read = read_line() => read,
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    drop(silence);
    out.note("")?;
    read?.context("no password was entered; nothing was changed")
}

/// While this value lives, the terminal does not show typed characters.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> Result<Self> {
        let failed = "cannot turn off the terminal's echo";
        let before = tcgetattr(io::stdin()).context(failed)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent).context(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // Without a terminal there is no echo to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

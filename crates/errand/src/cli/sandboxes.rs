//! `errand sandboxes`: uploads and downloads files of sandboxes, through the API.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use errand_client::{Client, FileContent, FileKind, Reply, SandboxId, UploadedFile};
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::out::Out;
use super::{CommandContext, RemoteServer};

/// Size of the pieces in which files are uploaded.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a sandbox and print its ID
    Create {
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// List a directory
    Ls {
        /// ID of the sandbox
        sandbox: SandboxId,
        /// Path of the directory
        #[arg(default_value = "/workspace")]
        path: String,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Upload files; existing files are replaced
    Upload {
        /// ID of the sandbox
        sandbox: SandboxId,
        /// Files to upload
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Directory (with a trailing `/`) or, for one file, its path
        #[arg(long, default_value = "/workspace/", value_name = "PATH")]
        to: String,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Download a file
    Download {
        /// ID of the sandbox
        sandbox: SandboxId,
        /// Path in the sandbox
        path: String,
        /// Where to save the file; `-` writes to standard output [default: its own name, in this directory]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Replace an existing file
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        remote: RemoteServer,
    },
    /// Delete a sandbox and its files
    Rm {
        /// ID of the sandbox
        sandbox: SandboxId,
        #[command(flatten)]
        remote: RemoteServer,
    },
}

pub(super) async fn run(command: Command, with: &CommandContext) -> Result<()> {
    let out = &with.out;
    match command {
        Command::Create { remote } => {
            let created = with.client(&remote)?.create_sandbox().await?;
            if out.json() {
                return Ok(out.json_text(&created.text)?);
            }
            out.line(created.sandbox_id.as_str())?;
        }
        Command::Ls {
            sandbox,
            path,
            remote,
        } => {
            let list = with.client(&remote)?.files(&sandbox, &path).await?;
            if out.json() {
                return Ok(out.json_text(&list.text)?);
            }
            let rows = list.into_value().files.into_iter().map(|file| {
                let is_dir = file.kind == FileKind::Dir;
                let size = file
                    .size_bytes
                    .filter(|_| !is_dir)
                    .map(|size| size.to_string());
                [
                    size.unwrap_or_else(|| "-".to_owned()),
                    if is_dir {
                        format!("{}/", file.path)
                    } else {
                        file.path
                    },
                ]
            });
            out.table(&["bytes", "path"], rows)?;
        }
        Command::Upload {
            sandbox,
            files,
            to,
            remote,
        } => {
            if files.len() > 1 && !to.ends_with('/') {
                bail!("with several files, --to must be a directory that ends with `/`");
            }
            let client = with.client(&remote)?;
            for file in &files {
                let uploaded = upload(&client, &sandbox, file, &to, out).await?;
                if out.json() {
                    out.json_text(&uploaded.text)?;
                } else {
                    out.line(&uploaded.path)?;
                }
            }
        }
        Command::Download {
            sandbox,
            path,
            output,
            force,
            remote,
        } => {
            let client = with.client(&remote)?;
            match output {
                Some(output) if output.as_os_str() == "-" => {
                    print(&client, &sandbox, &path, out).await?
                }
                output => {
                    let output = output.map_or_else(|| own_name(&path), Ok)?;
                    download(&client, &sandbox, &path, &output, force, out).await?;
                }
            }
        }
        Command::Rm { sandbox, remote } => {
            with.client(&remote)?.delete_sandbox(&sandbox).await?;
            out.note("The sandbox was deleted.")?;
        }
    }
    Ok(())
}

/// Uploads a file, with a progress bar on a terminal. `to`: a directory with a trailing `/`, or the path.
///
/// # Errors
/// The file cannot be read, or the upload fails.
pub(super) async fn upload(
    client: &Client,
    sandbox: &SandboxId,
    file: &Path,
    to: &str,
    out: &Out,
) -> Result<Reply<UploadedFile>> {
    let unreadable = || format!("{} cannot be read", file.display());
    let name = file.file_name().and_then(|name| name.to_str());
    let name =
        name.with_context(|| format!("the name of {} is not valid UTF-8", file.display()))?;
    let to = if to.ends_with('/') {
        format!("{to}{name}")
    } else {
        to.to_owned()
    };
    let opened = tokio::fs::File::open(file).await.with_context(unreadable)?;
    let meta = opened.metadata().await.with_context(unreadable)?;
    if !meta.is_file() {
        bail!("{} is not a file", file.display());
    }
    let bar = progress(out, name, Some(meta.len()));
    let moved = bar.clone();
    let pieces = ReaderStream::with_capacity(opened, PIECE_BYTES)
        .inspect_ok(move |piece| moved.inc(piece.len() as u64));
    let content = FileContent::stream(meta.len(), pieces);
    let uploaded = client.upload(sandbox, &to, content).await;
    bar.finish_and_clear();
    uploaded.with_context(|| format!("{} could not be uploaded", file.display()))
}

async fn download(
    client: &Client,
    sandbox: &SandboxId,
    path: &str,
    output: &Path,
    force: bool,
    out: &Out,
) -> Result<()> {
    if !force && output.symlink_metadata().is_ok() {
        bail!(
            "{} already exists; use --force to replace it",
            output.display()
        );
    }
    let mut pieces = client.download(sandbox, path).await?;
    let bar = progress(out, path, pieces.size_bytes());
    // A temporary file is renamed at the end, so the file appears completely or not at all.
    let dir = output
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let unwritable = || format!("{} cannot be written", output.display());
    let beside = tempfile::NamedTempFile::new_in(dir).with_context(unwritable)?;
    let mut file = tokio::fs::File::from_std(beside.reopen().with_context(unwritable)?);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        file.write_all(&piece).await.with_context(unwritable)?;
        bar.inc(piece.len() as u64);
    }
    file.flush().await.with_context(unwritable)?;
    bar.finish_and_clear();
    let kept = if force {
        beside.persist(output)
    } else {
        beside.persist_noclobber(output)
    };
    kept.map_err(|error| error.error).with_context(unwritable)?;
    // Temporary files are private to their owner; a download has the mode of any other new file.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(output, mode).with_context(unwritable)?;
    out.note(&format!("saved {path} to {}", output.display()))?;
    Ok(())
}

async fn print(client: &Client, sandbox: &SandboxId, path: &str, out: &Out) -> Result<()> {
    let mut pieces = client.download(sandbox, path).await?;
    while let Some(piece) = pieces.next().await {
        out.raw_bytes(&piece?)?;
    }
    Ok(())
}

fn own_name(path: &str) -> Result<PathBuf> {
    let name = Path::new(path).file_name().map(PathBuf::from);
    name.with_context(|| format!("{path} has no file name; give one with --output"))
}

fn progress(out: &Out, name: &str, length: Option<u64>) -> ProgressBar {
    if !out.is_watched() || out.json() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let style = ProgressStyle::with_template(
        "{msg}  {bar:30}  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}",
    );
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("━━ "));
    }
    bar.set_message(super::out::display(name));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

//! `errand sandbox`: builds root directories for commands, on the server's machine.
//!
//! `build-root` creates a directory for the setting `sandbox.root`, either from Debian packages with `mmdebstrap` or
//! `debootstrap`, or from an image in an archive ([`crate::root_image`]).
//!
//! Guarantees: the directory appears completely or not at all, and contains no set-uid or set-gid programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use tempfile::TempDir;
use tokio::process::Command as Process;

use super::CommandContext;
use crate::root_image;

/// Packages added to Debian's smallest variant, so that commands find the usual programs.
const PACKAGES: &str = "bash,ca-certificates,gawk,python3-minimal,unzip,xz-utils,bzip2";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a root directory with the programs that commands see, for the setting sandbox.root
    BuildRoot {
        /// Directory to create
        dir: PathBuf,
        /// Debian suite, for example bookworm; requires mmdebstrap or debootstrap
        #[arg(
            long,
            value_name = "SUITE",
            required_unless_present = "oci",
            conflicts_with = "oci"
        )]
        debian: Option<String>,
        /// Additional Debian packages, separated by commas
        #[arg(long, value_name = "PACKAGES", requires = "debian")]
        include: Option<String>,
        /// Package mirror [default: that of the tool]
        #[arg(long, value_name = "URL", requires = "debian")]
        mirror: Option<String>,
        /// Image archive, as written by `docker save` or `skopeo copy … oci-archive:`
        #[arg(long, value_name = "FILE")]
        oci: Option<PathBuf>,
    },
}

pub(super) async fn run(command: &Command, with: &CommandContext) -> Result<()> {
    let Command::BuildRoot {
        dir,
        debian,
        include,
        mirror,
        oci,
    } = command;
    let building = Building::begin(dir)?;
    match (debian, oci) {
        (Some(suite), _) => {
            let packages = include
                .as_ref()
                .map_or(PACKAGES.to_owned(), |more| format!("{PACKAGES},{more}"));
            of_debian(suite, &packages, mirror.as_deref(), building.dir.path()).await?;
        }
        (None, Some(archive)) => {
            let (archive, to) = (archive.clone(), building.dir.path().to_owned());
            tokio::task::spawn_blocking(move || root_image::unpack(&archive, &to))
                .await
                .context("unpacking was interrupted")??;
        }
        (None, None) => bail!("give --debian SUITE or --oci FILE"),
    }
    let made = building.finish()?;
    with.out.note(&format!(
        "{} is ready. Set it in errand.toml ([sandbox] root = \"{}\"), then test it with `errand doctor`",
        made.display(),
        made.display()
    ))?;
    Ok(())
}

/// A directory under construction. If it is dropped before it is finished, it is removed. If the process is killed, the
/// remaining directory's name says that it is incomplete.
struct Building {
    dir: TempDir,
    target: PathBuf,
}

impl Building {
    fn begin(target: &Path) -> Result<Self> {
        let target = std::path::absolute(target).context("the path cannot be resolved")?;
        if fs::symlink_metadata(&target).is_ok() {
            bail!(
                "{} already exists; choose another name or remove it",
                target.display()
            );
        }
        let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
            bail!("{} cannot be created", target.display());
        };
        let dir = tempfile::Builder::new()
            .prefix(&format!(".{}.building-", name.to_string_lossy()))
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(above)
            .with_context(|| format!("{} cannot be created", target.display()))?;
        Ok(Self { dir, target })
    }

    fn finish(self) -> Result<PathBuf> {
        root_image::make_harmless(self.dir.path())?;
        let has_shell = ["usr/bin/bash", "bin/bash", "usr/bin/sh", "bin/sh"]
            .iter()
            .any(|shell| fs::symlink_metadata(self.dir.path().join(shell)).is_ok());
        if !has_shell {
            bail!("the root directory contains no shell, so commands could not run");
        }
        fs::rename(self.dir.path(), &self.target)
            .with_context(|| format!("{} cannot be created", self.target.display()))?;
        // The directory was renamed, so there is nothing left for the drop to remove.
        let _ = self.dir.keep();
        Ok(self.target)
    }
}

async fn of_debian(suite: &str, packages: &str, mirror: Option<&str>, dir: &Path) -> Result<()> {
    let include = format!("--include={packages}");
    for (program, needs_root) in [("mmdebstrap", false), ("debootstrap", true)] {
        if needs_root && !rustix::process::geteuid().is_root() {
            continue;
        }
        let mut process = Process::new(program);
        process
            .args(["--variant=minbase", &include, suite])
            .arg(dir)
            .args(mirror);
        let started = process
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status()
            .await;
        match started {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("{program} cannot be started"));
            }
            Ok(ended) if ended.success() => return Ok(()),
            Ok(ended) => bail!("{program} failed ({ended}); see its output above"),
        }
    }
    bail!(
        "neither mmdebstrap nor (for root) debootstrap is installed: `apt-get install mmdebstrap`"
    )
}

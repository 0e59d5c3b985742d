//! `errand sandbox`: what commands find in their sandboxes, on the server's machine.
//!
//! `build-root` makes a root directory for `sandbox.root`: of Debian's packages, by `mmdebstrap` or `debootstrap`, or out
//! of an image in an archive ([`crate::root_image`]). The directory appears whole or not at all, and holds no program
//! that would run as its owner.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use tempfile::TempDir;
use tokio::process::Command as Process;

use super::Surroundings;
use crate::root_image;

/// What a root of Debian's has beside its smallest variant, so that commands find what they expect.
const PACKAGES: &str = "bash,ca-certificates,gawk,python3-minimal,unzip,xz-utils,bzip2";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a root directory whose programs commands see: for the setting sandbox.root
    BuildRoot {
        /// Where it will be; nothing may be there
        dir: PathBuf,
        /// Of Debian: a suite such as bookworm, by mmdebstrap or debootstrap, which must be installed
        #[arg(
            long,
            value_name = "SUITE",
            required_unless_present = "oci",
            conflicts_with = "oci"
        )]
        debian: Option<String>,
        /// More packages of Debian, separated by commas
        #[arg(long, value_name = "PACKAGES", requires = "debian")]
        include: Option<String>,
        /// Where packages come from [default: the tool's own]
        #[arg(long, value_name = "URL", requires = "debian")]
        mirror: Option<String>,
        /// Of an image: an archive as `docker save` or `skopeo copy … oci-archive:` write it
        #[arg(long, value_name = "FILE")]
        oci: Option<PathBuf>,
    },
}

pub(super) async fn run(command: &Command, with: &Surroundings) -> Result<()> {
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
                .context("the unpacking was cut off")??;
        }
        (None, None) => bail!("say of what: --debian SUITE or --oci FILE"),
    }
    let made = building.finish()?;
    with.out.note(&format!(
        "{} is ready. In errand.toml: [sandbox] root = \"{}\"; `errand doctor` tries it",
        made.display(),
        made.display()
    ))?;
    Ok(())
}

/// A directory on its way. Dropped before it is finished, it is removed; what a process that was killed leaves has a name
/// that says so.
struct Building {
    dir: TempDir,
    target: PathBuf,
}

impl Building {
    fn begin(target: &Path) -> Result<Self> {
        let target = std::path::absolute(target).context("where is that?")?;
        if fs::symlink_metadata(&target).is_ok() {
            bail!(
                "{} is there already; take another name, or remove it",
                target.display()
            );
        }
        let (Some(above), Some(name)) = (target.parent(), target.file_name()) else {
            bail!("{} cannot be made", target.display());
        };
        let dir = tempfile::Builder::new()
            .prefix(&format!(".{}.building-", name.to_string_lossy()))
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(above)
            .with_context(|| format!("{} cannot be made", target.display()))?;
        Ok(Self { dir, target })
    }

    fn finish(self) -> Result<PathBuf> {
        root_image::make_harmless(self.dir.path())?;
        let has_shell = ["usr/bin/bash", "bin/bash", "usr/bin/sh", "bin/sh"]
            .iter()
            .any(|shell| fs::symlink_metadata(self.dir.path().join(shell)).is_ok());
        if !has_shell {
            bail!("there is no shell in it: commands could not run");
        }
        fs::rename(self.dir.path(), &self.target)
            .with_context(|| format!("{} cannot be made", self.target.display()))?;
        // There is nothing under that name any more, for the drop to remove.
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
            Err(error) => return Err(error).with_context(|| format!("{program} does not start")),
            Ok(ended) if ended.success() => return Ok(()),
            Ok(ended) => bail!("{program} failed ({ended}); what it said is above"),
        }
    }
    bail!(
        "neither mmdebstrap nor (for root) debootstrap is installed: `apt-get install mmdebstrap`"
    )
}

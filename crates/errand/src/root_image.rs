//! Unpacks an image of a root directory, from an archive in the layout of the Open Container Initiative or from
//! `docker save`.
//!
//! # Guarantees
//!
//! - Nothing outside the target directory is written, no matter what the archive contains.
//! - A layer is used only if it has the digest by which the image refers to it.
//! - Devices and pipes are left out, files belong to the user who unpacks, and no file has a setuid or setgid bit.
//!
//! # Non-goals
//!
//! Downloading images, and layers compressed with zstd.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::{Archive, EntryType};

/// Prefix of a file that marks a name as removed by a layer.
const WHITEOUT: &str = ".wh.";
/// Name of a file that marks all earlier content of its directory as removed.
const OPAQUE: &str = ".wh..wh..opq";
/// The setuid and setgid bits.
const SPECIAL_BITS: u32 = 0o6000;
/// Maximum nesting of image indexes.
const DEPTH_MAX: u32 = 4;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index of images, or the manifest of one image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// An image in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    layers: Vec<String>,
}

/// Unpacks the image for this machine's architecture into an existing directory. Blocking.
///
/// # Errors
/// The format is unknown, or the archive is damaged. The directory then contains a part of the image.
pub fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let mut image = Image::open(archive)?;
    let to = to.canonicalize()?;
    let layers = image.layers()?;
    ensure!(
        !layers.is_empty(),
        "{} contains no image",
        archive.display()
    );
    for layer in layers {
        let file = image.member(&layer)?;
        apply(file, &to).with_context(|| format!("the layer {} cannot be unpacked", layer.name))?;
    }
    Ok(())
}

/// Makes all files of a root readable for everyone, and removes setuid and setgid bits. Blocking.
///
/// # Errors
/// A file cannot be read or changed.
pub fn make_harmless(dir: &Path) -> Result<()> {
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let found = entry.metadata()?;
            let mode = found.permissions().mode();
            if !found.is_symlink() && mode & SPECIAL_BITS != 0 {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode & 0o1777))?;
            }
            if found.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A file of the archive, with the expected digest, if there is one.
struct Member {
    name: String,
    digest: Option<String>,
}

/// An archive with the positions of its files.
struct Image {
    file: File,
    members: HashMap<String, (u64, u64)>,
}

impl Image {
    fn open(path: &Path) -> Result<Self> {
        let file =
            File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut members = HashMap::new();
        let mut archive = Archive::new(BufReader::new(&file));
        for entry in archive.entries_with_seek()? {
            let entry =
                entry.with_context(|| format!("{} is not a tar archive", path.display()))?;
            if entry.header().entry_type() == EntryType::Regular {
                let name = entry
                    .path()?
                    .to_string_lossy()
                    .trim_start_matches("./")
                    .to_owned();
                members.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Self { file, members })
    }

    /// A reader for a file of the archive, after its digest was verified.
    fn member(&mut self, member: &Member) -> Result<impl Read + use<'_>> {
        let Member { name, digest } = member;
        let (at, length) = *self
            .members
            .get(name)
            .with_context(|| format!("the archive does not contain {name}"))?;
        if let Some(expected) = digest {
            self.file.seek(io::SeekFrom::Start(at))?;
            let mut hash = Sha256::new();
            let mut part = vec![0; 1 << 16];
            let mut rest = (&self.file).take(length);
            loop {
                let read = rest.read(&mut part)?;
                let Some(part) = part.get(..read).filter(|part| !part.is_empty()) else {
                    break;
                };
                hash.update(part);
            }
            let found: String = hash
                .finalize()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            ensure!(
                found == *expected,
                "{name} is damaged: its digest is {found}"
            );
        }
        self.file.seek(io::SeekFrom::Start(at))?;
        Ok((&self.file).take(length))
    }

    fn json<T: for<'a> Deserialize<'a>>(&mut self, member: &Member) -> Result<T> {
        let mut text = String::new();
        self.member(member)?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("{} is invalid", member.name))
    }

    /// The layers of the image, from the bottom up.
    fn layers(&mut self) -> Result<Vec<Member>> {
        let plain = |name: &str| Member {
            name: name.to_owned(),
            digest: None,
        };
        if !self.members.contains_key("index.json") {
            let images: Vec<Saved> = self.json(&plain("manifest.json"))?;
            let layers = images
                .into_iter()
                .next()
                .map(|image| image.layers)
                .unwrap_or_default();
            return Ok(layers.iter().map(|name| plain(name)).collect());
        }
        let mut manifest: Manifest = self.json(&plain("index.json"))?;
        for _ in 0..DEPTH_MAX {
            if !manifest.layers.is_empty() {
                return manifest.layers.iter().map(blob).collect();
            }
            let chosen =
                choose(&manifest.manifests).context("the archive has no image for this machine")?;
            let chosen = blob(chosen)?;
            manifest = self.json(&chosen)?;
        }
        bail!("the archive's indexes are nested too deeply")
    }
}

/// The image for this machine, or the only image.
fn choose(all: &[Descriptor]) -> Option<&Descriptor> {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |one: &&Descriptor| {
        one.platform
            .as_ref()
            .is_none_or(|platform| platform.os == "linux" && platform.architecture == here)
    };
    all.iter().find(fits)
}

/// The file of the archive that contains a descriptor's object.
fn blob(descriptor: &Descriptor) -> Result<Member> {
    let digest = descriptor
        .digest
        .strip_prefix("sha256:")
        .context("only SHA-256 digests are supported")?;
    ensure!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{} is not a digest",
        descriptor.digest
    );
    ensure!(
        !descriptor.media_type.ends_with("zstd"),
        "the image's layers are compressed with zstd; use gzip instead (skopeo copy --dest-compress-format gzip)"
    );
    Ok(Member {
        name: format!("blobs/sha256/{digest}"),
        digest: Some(digest.to_owned()),
    })
}

/// Applies a layer: first its removals, then its files.
fn apply(mut layer: impl Read, to: &Path) -> Result<()> {
    // The layer is decompressed to a temporary file, because it is read twice.
    let mut bytes = tempfile::tempfile()?;
    let mut magic = [0; 2];
    layer.read_exact(&mut magic)?;
    let whole = io::Cursor::new(magic).chain(layer);
    if magic == [0x1f, 0x8b] {
        io::copy(&mut GzDecoder::new(whole), &mut bytes)?;
    } else {
        let mut whole = whole;
        io::copy(&mut whole, &mut bytes)?;
    }
    bytes.rewind()?;
    for entry in Archive::new(BufReader::new(&bytes)).entries()? {
        remove_marked(&entry?.path()?, to)?;
    }
    bytes.rewind()?;
    let mut archive = Archive::new(BufReader::new(&bytes));
    archive.set_preserve_permissions(true);
    archive.set_mask(SPECIAL_BITS);
    archive.set_overwrite(true);
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if is_mark(&path) {
            continue;
        }
        match entry.header().entry_type() {
            EntryType::Directory => {
                directories.push((path.clone(), entry.header().mode()? & 0o777))
            }
            EntryType::Regular | EntryType::Continuous | EntryType::Symlink | EntryType::Link => {
                make_way(&path, to)?;
            }
            // Devices and pipes are skipped: the sandbox has its own /dev, and nothing would serve a pipe.
            _ => continue,
        }
        ensure!(
            entry.unpack_in(to)?,
            "{} leads outside the root",
            path.display()
        );
    }
    // Directory modes are set last, because the unpacking user must be able to write into the directories until then.
    for (path, mode) in directories.into_iter().rev() {
        // A later link may have replaced the directory and could point anywhere.
        if let Some(path) = place(&path, to)
            && fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir())
        {
            fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o700))?;
        }
    }
    Ok(())
}

fn is_mark(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(WHITEOUT))
}

/// The location of a layer's path in the root, with links resolved. `None` if its parent is missing or outside the
/// root.
fn place(path: &Path, to: &Path) -> Option<PathBuf> {
    let path: PathBuf = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .collect();
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let Some(name) = path.file_name() else {
        return Some(to.to_owned());
    };
    let above = to.join(path.parent()?).canonicalize().ok()?;
    above.starts_with(to).then(|| above.join(name))
}

/// Removes what a marker file in a layer removes.
fn remove_marked(path: &Path, to: &Path) -> Result<()> {
    let Some(name) = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
    else {
        return Ok(());
    };
    if name == OPAQUE {
        let Some(dir) = path.parent().and_then(|dir| place(dir, to)) else {
            return Ok(());
        };
        if fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
            for entry in fs::read_dir(dir)? {
                remove(&entry?.path())?;
            }
        }
    } else if let Some(name) = name.strip_prefix(WHITEOUT)
        && !name.is_empty()
        && name != "."
        && name != ".."
        && let Some(path) = place(&path.with_file_name(name), to)
    {
        remove(&path)?;
    }
    Ok(())
}

/// Removes an existing entry before a file or a link is created. Otherwise a directory would remain, and a link would
/// be followed.
fn make_way(path: &Path, to: &Path) -> Result<()> {
    match place(path, to) {
        Some(path) if path != to => remove(&path),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
        Ok(found) if found.is_dir() => Ok(fs::remove_dir_all(path)?),
        Ok(_) => Ok(fs::remove_file(path)?),
    }
}

#[cfg(test)]
mod tests;

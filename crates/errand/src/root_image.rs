//! Unpacks an image of a root directory: an archive in the layout of the Open Container Initiative, or as `docker save`
//! writes it.
//!
//! Promised: nothing outside the directory is written, whatever the archive holds; a layer is believed only if it has the
//! digest by which the image names it. Devices and pipes are left out, files belong to whoever unpacks, and none has a
//! bit by which it would run as its owner.
//!
//! Left out: fetching images, and layers that are packed by zstd.

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

/// The mark of a name that a layer removes.
const WHITEOUT: &str = ".wh.";
/// The mark of a directory of which a layer removes all that was there.
const OPAQUE: &str = ".wh..wh..opq";
/// Bits by which a program would run as another.
const SPECIAL_BITS: u32 = 0o6000;
/// How deep an index may name other indexes.
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

/// An index of images, or the manifest of one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// One image in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    layers: Vec<String>,
}

/// Unpacks the image of this machine's architecture into a directory that is there. Blocking.
///
/// # Errors
/// Where the archive is none that is known, or not whole; the directory then holds a part.
pub fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let mut image = Image::open(archive)?;
    let to = to.canonicalize()?;
    let layers = image.layers()?;
    ensure!(!layers.is_empty(), "{} holds no image", archive.display());
    for layer in layers {
        let file = image.member(&layer)?;
        apply(file, &to).with_context(|| format!("the layer {} cannot be unpacked", layer.name))?;
    }
    Ok(())
}

/// Sees to it that everybody may look into a root, and that no program in it runs as its owner. Blocking.
///
/// # Errors
/// Of the file system.
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

/// A member of the archive, with the digest that it must have, if that is known.
struct Member {
    name: String,
    digest: Option<String>,
}

/// An archive, and where its members are in it.
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
            let entry = entry.with_context(|| format!("{} is no archive (tar)", path.display()))?;
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

    /// A member from its beginning, once its digest was looked at.
    fn member(&mut self, member: &Member) -> Result<impl Read + use<'_>> {
        let Member { name, digest } = member;
        let (at, length) = *self
            .members
            .get(name)
            .with_context(|| format!("the archive has no {name}"))?;
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
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not as it should be", member.name))
    }

    /// The layers of the image, the lowest first.
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
        bail!("the archive's indexes name one another too deep")
    }
}

/// The image of this machine, or the only one.
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

/// Where the archive keeps what a descriptor names.
fn blob(descriptor: &Descriptor) -> Result<Member> {
    let digest = descriptor
        .digest
        .strip_prefix("sha256:")
        .context("only digests by SHA-256 are known")?;
    ensure!(
        digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{} is no digest",
        descriptor.digest
    );
    ensure!(
        !descriptor.media_type.ends_with("zstd"),
        "the image's layers are packed by zstd; write it with gzip (skopeo copy --dest-compress-format gzip)"
    );
    Ok(Member {
        name: format!("blobs/sha256/{digest}"),
        digest: Some(digest.to_owned()),
    })
}

/// Puts a layer over what is there: what it removes first, what it brings after.
fn apply(mut layer: impl Read, to: &Path) -> Result<()> {
    // It is read twice, packed or not.
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
            // Devices and pipes: there is a /dev inside, and nobody behind a pipe.
            _ => continue,
        }
        ensure!(
            entry.unpack_in(to)?,
            "{} leads out of the root",
            path.display()
        );
    }
    // Whoever unpacks must be able to write into directories until all is there.
    for (path, mode) in directories.into_iter().rev() {
        // A link that came later in its place leads where it likes.
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

/// A path of a layer in the root, if what is above it is there and in the root: links in it are followed so far.
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

/// Removes what a mark in a layer removes.
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

/// Removes what stands where a file or a link comes: a directory stays a directory otherwise, and a link is written
/// through.
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

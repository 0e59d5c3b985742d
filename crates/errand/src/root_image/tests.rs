use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

/// An entry of a layer.
enum Thing<'a> {
    File(&'a str, &'a str, u32),
    Dir(&'a str, u32),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Device(&'a str),
}

fn layer(things: &[Thing<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for thing in things {
        let mut header = Header::new_gnu();
        header.set_size(0);
        let set = |header: &mut Header, path: &str| {
            // Written directly into the header, as in a malicious archive, because the library would reject such a
            // path.
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
        };
        match thing {
            Thing::File(path, content, mode) => {
                set(&mut header, path);
                header.set_size(content.len() as u64);
                header.set_mode(*mode);
                header.set_entry_type(EntryType::Regular);
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
                continue;
            }
            Thing::Dir(path, mode) => {
                set(&mut header, path);
                header.set_mode(*mode);
                header.set_entry_type(EntryType::Directory);
            }
            Thing::Link(path, target) | Thing::Hard(path, target) => {
                set(&mut header, path);
                header.set_mode(0o777);
                header.set_link_name(target).unwrap();
                header.set_entry_type(match thing {
                    Thing::Link(..) => EntryType::Symlink,
                    _ => EntryType::Link,
                });
            }
            Thing::Device(path) => {
                set(&mut header, path);
                header.set_mode(0o666);
                header.set_entry_type(EntryType::Char);
            }
        }
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn archive(dir: &Path, members: &[(String, Vec<u8>)]) -> PathBuf {
    let path = dir.join("image.tar");
    let mut builder = Builder::new(File::create(&path).unwrap());
    for (name, bytes) in members {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, bytes.as_slice())
            .unwrap();
    }
    builder.finish().unwrap();
    path
}

/// Builds an OCI archive whose first image is for another architecture.
fn oci(dir: &Path, layers: &[Vec<u8>]) -> PathBuf {
    let mut members = Vec::new();
    let mut add = |bytes: Vec<u8>| {
        let digest = digest(&bytes);
        members.push((format!("blobs/sha256/{digest}"), bytes));
        format!("sha256:{digest}")
    };
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| json!({"digest": add(layer.clone()), "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"}))
        .collect();
    let manifest = add(json!({"layers": layers}).to_string().into_bytes());
    let here = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let inner = add(json!({"manifests": [
        {"digest": format!("sha256:{}", "0".repeat(64)), "platform": {"architecture": "s390x", "os": "linux"}},
        {"digest": manifest, "platform": {"architecture": here, "os": "linux"}}
    ]}).to_string().into_bytes());
    let index = json!({"manifests": [{"digest": inner}]})
        .to_string()
        .into_bytes();
    members.push(("index.json".to_owned(), index));
    archive(dir, &members)
}

fn unpacked(layers: &[Vec<u8>]) -> (TempDir, Result<()>) {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("root");
    fs::create_dir(&to).unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let archive = oci(dir.path(), layers);
    let result = unpack(&archive, &to).and_then(|()| make_harmless(&to));
    (dir, result)
}

#[test]
fn layers_are_applied_in_order_with_removals() {
    use Thing::{Device, Dir, File, Hard, Link};
    let lower = layer(&[
        Dir("usr", 0o755),
        Dir("usr/bin", 0o755),
        Link("bin", "usr/bin"),
        File("usr/bin/sh", "shell", 0o755),
        File("usr/bin/su", "su", 0o4755),
        Hard("usr/bin/same", "usr/bin/sh"),
        File("etc/gone", "x", 0o644),
        File("etc/kept", "x", 0o644),
        File("opaque/old", "x", 0o644),
        File("becomes/dir/file", "x", 0o644),
        Device("dev-null"),
    ]);
    let upper = layer(&[
        File("etc/.wh.gone", "", 0o644),
        File("opaque/.wh..wh..opq", "", 0o644),
        File("opaque/new", "new", 0o644),
        File("becomes", "a file", 0o644),
        File("bin/more", "through the link", 0o755),
        Dir("locked", 0o000),
    ]);
    let (dir, result) = unpacked(&[gzipped(&lower), upper]);
    result.unwrap();
    let root = dir.path().join("root");
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(
        (read("bin/sh"), read("usr/bin/same")),
        ("shell".to_owned(), "shell".to_owned())
    );
    assert_eq!(read("usr/bin/more"), "through the link");
    assert_eq!(
        (read("becomes"), read("opaque/new")),
        ("a file".to_owned(), "new".to_owned())
    );
    for gone in [
        "etc/gone",
        "opaque/old",
        "dev-null",
        "etc/.wh.gone",
        "opaque/.wh..wh..opq",
    ] {
        assert!(fs::symlink_metadata(root.join(gone)).is_err(), "{gone}");
    }
    assert_eq!(read("etc/kept"), "x");
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("usr/bin/su"), mode("usr/bin/sh"), mode("")),
        (0o755, 0o755, 0o755)
    );
}

#[test]
fn nothing_outside_the_root_is_written() {
    use Thing::{Dir, File, Hard, Link};
    for things in [
        vec![File("../outside", "written", 0o644)],
        vec![Link("out", ".."), File("out/outside", "written", 0o644)],
        vec![
            Link("etc", "/etc"),
            File("etc/hostile-planted", "written", 0o644),
        ],
        vec![Hard("inner", "../outside"), File("inner", "written", 0o644)],
        vec![
            Dir("d", 0o755),
            Link("d/up", "../.."),
            File("d/up/outside", "written", 0o644),
        ],
        vec![Link("a", ".."), File("a/.wh.outside", "", 0o644)],
        vec![Link("a", ".."), File("a/.wh..wh..opq", "", 0o644)],
        vec![File(".wh...", "", 0o644)],
    ] {
        // Also with the links in their own layer, so that they exist before the files.
        let (dir, _) = unpacked(&[layer(&things[..1]), layer(&things)]);
        assert_eq!(
            fs::read_to_string(dir.path().join("outside")).unwrap(),
            "untouched"
        );
        assert!(!Path::new("/etc/hostile-planted").exists());
    }
}

#[test]
fn a_damaged_layer_is_refused() {
    let dir = TempDir::new().unwrap();
    let layer = layer(&[Thing::File("a", "x", 0o644)]);
    let name = digest(b"another");
    let manifest = json!({"layers": [{"digest": format!("sha256:{name}")}]})
        .to_string()
        .into_bytes();
    let members = [
        (format!("blobs/sha256/{name}"), layer),
        ("index.json".to_owned(), manifest),
    ];
    let archive = archive(dir.path(), &members);
    let error = unpack(&archive, dir.path()).unwrap_err();
    assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
}

#[test]
fn an_archive_of_docker_save_is_recognized() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("root");
    fs::create_dir(&to).unwrap();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["x"], "Layers": ["1/layer.tar"]}]);
    let members = [
        (
            "1/layer.tar".to_owned(),
            layer(&[Thing::File("bin/sh", "shell", 0o755)]),
        ),
        (
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ),
    ];
    unpack(&archive(dir.path(), &members), &to).unwrap();
    assert_eq!(fs::read_to_string(to.join("bin/sh")).unwrap(), "shell");
    let text = dir.path().join("text");
    fs::write(&text, "no archive").unwrap();
    unpack(&text, &to).unwrap_err();
}

#[test]
fn no_mode_outside_the_root_is_changed() {
    use Thing::{Dir, Link};
    let outside = TempDir::new().unwrap();
    let mode = || fs::metadata(outside.path()).unwrap().mode() & 0o777;
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let target = outside.path().to_str().unwrap();
    let things = [Dir("x", 0o777), Link("x", target)];
    let (_dir, done) = unpacked(&[layer(&things)]);
    done.unwrap();
    assert_eq!(mode(), 0o750);
}

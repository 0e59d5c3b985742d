use std::os::unix::fs::PermissionsExt;

use super::*;

fn key(byte: u8) -> MasterKey {
    MasterKey::from_bytes([byte; 32])
}

fn error<T>(result: Result<T, SealError>) -> SealError {
    result.err().expect("an error")
}

#[test]
fn a_sealed_secret_opens_for_its_purpose() {
    for plain in [&b""[..], b"whsec_x", &[7; 5000]] {
        let sealed = key(1).seal("webhook_secret:a", plain).unwrap();
        assert_eq!(sealed.0.len(), plain.len() + SEALED_OVERHEAD_BYTES);
        assert_eq!(key(1).open("webhook_secret:a", &sealed.0).unwrap(), plain);
    }
}

#[test]
fn sealing_twice_gives_two_texts() {
    assert_ne!(
        key(1).seal("p", b"same").unwrap(),
        key(1).seal("p", b"same").unwrap()
    );
}

#[test]
fn the_secret_is_not_in_the_sealed_bytes() {
    let sealed = key(1).seal("p", b"a plain secret").unwrap();
    assert!(!sealed.0.windows(5).any(|part| part == b"plain"));
}

#[test]
fn another_purpose_does_not_open_it() {
    let sealed = key(1).seal("webhook_secret:a", b"x").unwrap();
    for purpose in [
        "webhook_secret:b",
        "webhook_secret:",
        "",
        "webhook_secret:a ",
    ] {
        let error = error(key(1).open(purpose, &sealed.0));
        assert!(
            matches!(error, SealError::Damaged { .. }),
            "{purpose}: {error}"
        );
    }
}

#[test]
fn a_wrong_master_key_is_named_as_such() {
    let sealed = key(1).seal("p", b"x").unwrap();
    let error = error(key(2).open("p", &sealed.0));
    let text = error.to_string();
    assert!(
        text.starts_with("sealed under another master key"),
        "{text}"
    );
    assert!(
        text.contains(&key(1).id()) && text.contains(&key(2).id()),
        "{text}"
    );
}

#[test]
fn no_byte_can_be_changed_or_left_out() {
    let sealed = key(1).seal("p", b"secret").unwrap().0;
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 1;
        let error = error(key(1).open("p", &changed));
        match at {
            0 => assert!(matches!(error, SealError::NotSealed), "{at}: {error}"),
            1..=8 => assert!(matches!(error, SealError::OtherKey { .. }), "{at}: {error}"),
            _ => assert!(matches!(error, SealError::Damaged { .. }), "{at}: {error}"),
        }
        assert!(key(1).open("p", &sealed[..at]).is_err(), "cut to {at}");
    }
    assert!(
        key(1).open("p", &[&sealed[..], b"x"].concat()).is_err(),
        "with an extra byte"
    );
}

/// A secret sealed by this version must stay readable by every later version.
#[test]
fn the_layout_is_pinned() {
    let cipher = XChaCha20Poly1305::new(&key(3).mac(&["errand/seal/1"]).into());
    let aad = [&[1][..], b"webhook_secret:t"].concat();
    let text = cipher
        .encrypt(
            &XNonce::from([9; 24]),
            Payload {
                msg: b"plain",
                aad: &aad,
            },
        )
        .unwrap();
    let id: [u8; 32] = Sha256::digest([3; 32]).into();
    let sealed = [&[1][..], &id[..8], &[9; 24], &text].concat();
    assert_eq!(key(3).open("webhook_secret:t", &sealed).unwrap(), b"plain");
}

#[test]
fn derived_keys_differ_by_purpose_and_master_key_and_are_hmac() {
    assert_eq!(key(1).derive("upload_url"), key(1).derive("upload_url"));
    let others = [
        key(1).derive("upload_urls"),
        key(1).derive(""),
        key(2).derive("upload_url"),
        [1; 32],
    ];
    assert!(
        others
            .iter()
            .all(|other| *other != key(1).derive("upload_url"))
    );

    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&[1; 32]).unwrap();
    mac.update(b"errand/derive/1\0upload_url");
    assert_eq!(
        mac.finalize().into_bytes().as_slice(),
        key(1).derive("upload_url")
    );
}

#[test]
fn a_key_is_read_from_base64_and_hexadecimal() {
    let bytes = [0xfb; 32];
    let texts = [
        "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=".to_owned(),
        "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s".to_owned(),
        "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s=".to_owned(),
        "fb".repeat(32),
        "FB".repeat(32),
        format!("  {}\n", "fb".repeat(32)),
    ];
    for text in texts {
        assert_eq!(
            MasterKey::from_text(&text).ok().unwrap().id(),
            MasterKey::from_bytes(bytes).id(),
            "{text}"
        );
    }
}

#[test]
fn a_bad_key_text_is_refused_without_being_repeated() {
    let long = "A".repeat(2000);
    for text in [
        "",
        "hunter2hunter2",
        &"fb".repeat(31),
        &"fb".repeat(33),
        &"xy".repeat(32),
        "é",
        &"é".repeat(32),
        &long,
    ] {
        let message = error(MasterKey::from_text(text)).to_string();
        assert!(message.contains("32 bytes"), "{message}");
        assert!(text.is_empty() || !message.contains(text), "{message}");
    }
}

#[test]
fn the_first_start_makes_the_file_and_the_next_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let first = MasterKey::load_or_create(&path).ok().unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing else is in the directory"
    );

    let again = MasterKey::load_or_create(&path).ok().unwrap();
    assert_eq!(first.id(), again.id());
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        MasterKey::from_text(&text).ok().unwrap().id(),
        first.id(),
        "the file can be given as a setting"
    );

    let other = MasterKey::load_or_create(&dir.path().join("other.key"))
        .ok()
        .unwrap();
    assert_ne!(first.id(), other.id());
}

#[test]
fn several_that_start_at_once_share_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| MasterKey::load_or_create(&path).ok().unwrap().id()))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_others_can_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    MasterKey::load_or_create(&path).ok().unwrap();
    for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let message = error(MasterKey::load_or_create(&path)).to_string();
        assert!(
            message.contains("chmod 600") && message.contains(&format!("{mode:o}")),
            "{message}"
        );
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(
        MasterKey::load_or_create(&path).is_ok(),
        "read-only for the owner is fine"
    );
}

#[test]
fn a_damaged_file_is_an_error_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.key");
    for content in [&b""[..], b"half a key", &[0xff; 40], &[b'A'; 100_000]] {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let message = error(MasterKey::load_or_create(&path)).to_string();
        assert!(
            message.contains("damaged") && message.contains("cannot be opened by anybody"),
            "{message}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
    assert!(matches!(
        error(MasterKey::load_or_create(dir.path())),
        SealError::DamagedKeyFile { .. }
    ));
}

#[test]
fn a_missing_directory_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let failed = error(MasterKey::load_or_create(
        &dir.path().join("none/master.key"),
    ));
    assert!(failed.to_string().contains("none/master.key"), "{failed}");
    assert!(std::error::Error::source(&failed).is_some());
}

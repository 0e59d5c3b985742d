//! Tests of the manifest.

use super::*;

#[test]
fn the_checksum_has_the_format_of_sha256sum() {
    assert_eq!(
        sum_line(b""),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  manifest.json\n"
    );
}

#[test]
fn a_backup_without_the_last_file_is_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(MANIFEST), "{}").unwrap();
    let why = read_manifest(dir.path()).unwrap_err();
    assert!(
        why.to_string().contains("not contain a complete backup"),
        "{why}"
    );
    std::fs::write(dir.path().join(MANIFEST_SUM), sum_line(b"{}")).unwrap();
    let why = read_manifest(dir.path()).unwrap_err();
    assert!(why.to_string().contains("cannot be read"), "{why}");
}

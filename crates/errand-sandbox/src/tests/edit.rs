//! Edits, and what a repeat after a crash finds.

use errand_core::limits::WRITE_FILE_BYTES_MAX;
use proptest::prelude::*;

use super::{assert_refused, at, with_both_strategies};
use crate::{EditError, apply_edit, sha256_hex};

#[test]
fn the_passage_must_be_unique_unless_all_is_set() {
    let done = |text: &str, replaced| Ok((text.to_owned(), replaced));
    assert_eq!(apply_edit("a b c", "b", "x", false), done("a x c", 1));
    assert_eq!(
        apply_edit("a b b", "b", "x", false),
        Err(EditError::NotUnique)
    );
    assert_eq!(apply_edit("a b b", "b", "", true), done("a  ", 2));
    assert_eq!(apply_edit("abc", "d", "x", true), Err(EditError::NotFound));
    assert_eq!(apply_edit("", "d", "x", false), Err(EditError::NotFound));
    assert_eq!(apply_edit("abc", "", "x", true), Err(EditError::EmptyOld));
    // Overlapping occurrences count as two.
    assert_eq!(
        apply_edit("aaa", "aa", "b", false),
        Err(EditError::NotUnique)
    );
    assert_eq!(apply_edit("aaa", "aa", "b", true), done("ba", 1));
    assert_eq!(
        apply_edit("ééé", "éé", "b", false),
        Err(EditError::NotUnique)
    );
    assert_eq!(apply_edit("a\r\nb", "\n", "", false), done("a\rb", 1));
    // Inserted text is not searched again.
    assert_eq!(apply_edit("ab", "a", "aa", true), done("aab", 1));
}

#[test]
fn an_edit_cannot_exceed_the_file_size_limit() {
    let text = "a".repeat(1_000_000);
    let new = "b".repeat(1_000_000);
    assert_eq!(
        apply_edit(&text, "a", &new, true),
        Err(EditError::TooLarge {
            limit_bytes: WRITE_FILE_BYTES_MAX
        })
    );
    let most = usize::try_from(WRITE_FILE_BYTES_MAX).unwrap();
    assert!(apply_edit("ab", "b", &"c".repeat(most - 1), false).is_ok());
    assert!(apply_edit("ab", "b", &"c".repeat(most), false).is_err());
}

#[test]
fn the_digests_tell_a_repeat_from_the_first_time() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("f"), b"price: 1").unwrap();
        let edit = root.plan_edit(&at("f"), "1", "11", false).unwrap();
        assert_eq!((edit.text.as_str(), edit.replaced), ("price: 11", 1));
        assert_eq!(root.digest_of(&at("f")).unwrap(), edit.digest_before);
        root.write(&at("f"), edit.text.as_bytes()).unwrap();
        assert_eq!(root.digest_of(&at("f")).unwrap(), edit.digest_after);
        assert_eq!(edit.digest_after, sha256_hex(b"price: 11"));
        assert_ne!(edit.digest_before, edit.digest_after);
    });
}

#[test]
fn an_edit_that_does_not_match_changes_nothing() {
    with_both_strategies(|sandbox| {
        let root = &sandbox.root;
        root.write(&at("f"), b"one two one").unwrap();
        assert_refused!(root.edit(&at("f"), "one", "1", false), Edit);
        assert_refused!(root.edit(&at("f"), "three", "3", true), Edit);
        assert_eq!(root.read_to_string(&at("f"), 99).unwrap(), "one two one");
        assert_eq!(root.edit(&at("f"), "one", "1", true).unwrap(), 2);
        assert_eq!(root.read_to_string(&at("f"), 99).unwrap(), "1 two 1");
        root.write(&at("b"), b"\xff one").unwrap();
        assert_refused!(root.edit(&at("b"), "one", "1", false), NotUtf8);
        assert_refused!(root.edit(&at("no"), "one", "1", false), NotFound);
    });
}

#[test]
fn sha256_hex_matches_a_known_digest() {
    assert_eq!(
        sha256_hex(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

proptest! {
    #[test]
        fn a_unique_passage_is_replaced_in_place(before in "[abé]{0,8}", old in "[abé]{1,3}", after in "[abé]{0,8}", new in "[abé]{0,3}") {
        let text = format!("{before}{old}{after}");
        let places = text.char_indices().filter(|(at, _)| text[*at..].starts_with(&old)).count();
        match apply_edit(&text, &old, &new, false) {
            Ok((edited, replaced)) => {
                prop_assert_eq!(places, 1);
                prop_assert_eq!(replaced, 1);
                prop_assert_eq!(edited, format!("{before}{new}{after}"));
            }
            Err(e) => {
                prop_assert_eq!(e, EditError::NotUnique);
                prop_assert!(places > 1);
            }
        }
    }
}

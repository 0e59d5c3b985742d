use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const VALUE: &str = "pa/ss+wörd \"42\"&<x>=";

fn secrets() -> Secrets {
    Secrets::new(vec![("TOKEN".to_owned(), VALUE.to_owned())])
}

#[test]
fn values_go_in_for_marks_of_secrets_that_the_build_may_use() {
    let arguments = json!({"a": "Bearer {{ secret.TOKEN }}", "b": [1]});
    let arguments = arguments.as_object().unwrap();
    let may = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let filled = secrets()
        .fill_arguments(arguments, &may(&["TOKEN"]))
        .unwrap();
    assert_eq!(filled["a"], format!("Bearer {VALUE}"));
    let refused = secrets().fill_arguments(arguments, &may(&[])).unwrap_err();
    assert!(refused.starts_with("not_run:") && refused.contains("data.secrets"));
    let absent = Secrets::new(Vec::new()).fill_arguments(arguments, &may(&["TOKEN"]));
    assert!(absent.unwrap_err().contains("no secret TOKEN"));
}

#[test]
fn a_value_is_masked_in_each_form_in_which_it_comes_back() {
    let secrets = secrets();
    let url: String = url::form_urlencoded::byte_serialize(VALUE.as_bytes()).collect();
    let mut address = url::Url::parse("http://x.test/").unwrap();
    address.set_query(Some(VALUE));
    let mut in_path = url::Url::parse("http://x.test/").unwrap();
    in_path.set_path(VALUE);
    for text in [
        VALUE.to_owned(),
        json!({ "said": VALUE }).to_string(),
        json!(json!({ "said": VALUE }).to_string()).to_string(),
        STANDARD.encode(VALUE),
        URL_SAFE.encode(VALUE),
        STANDARD.encode(format!("user:{VALUE}")),
        STANDARD.encode(format!("me:{VALUE}\n")),
        STANDARD.encode(format!("x:{VALUE}, and more")),
        url,
        address.to_string(),
        in_path.to_string(),
        in_html(VALUE),
        hex(VALUE.as_bytes(), "0123456789abcdef"),
    ] {
        let masked = secrets.mask(&format!("before {text} after"));
        assert!(
            masked.contains("{{ secret.TOKEN }}")
                && masked.starts_with("before ")
                && masked.ends_with(" after"),
            "{text}: {masked}"
        );
        assert!(
            !masked.contains("wörd") && !masked.contains("C3%B6rd"),
            "{masked}"
        );
    }
}

#[test]
fn a_value_is_masked_in_an_address_that_this_program_makes_of_it() {
    for value in [
        "pässword{1}-x",
        "correct horse [battery]",
        "a/b^c`d|e{f}g\\h",
    ] {
        let secrets = Secrets::new(vec![("K".to_owned(), value.to_owned())]);
        for address in [
            format!("https://a.test/?key={value}"),
            format!("https://a.test/in/{value}/x"),
        ] {
            let sent = Url::parse(&address).unwrap().to_string();
            let masked = secrets.mask(&sent);
            assert!(masked.contains("{{ secret.K }}"), "{sent}: {masked}");
        }
    }
}

#[test]
fn keys_numbers_and_errors_are_masked_too() {
    let secrets = Secrets::new(vec![("PIN".to_owned(), "123456789012".to_owned())]);
    let value = json!({"123456789012": [123_456_789_012_u64, 12, {"x": "is 123456789012."}]});
    assert_eq!(
        secrets.mask_value(value),
        json!({"{{ secret.PIN }}": ["{{ secret.PIN }}", 12, {"x": "is {{ secret.PIN }}."}]})
    );
    assert_eq!(
        secrets.mask_outcome(Outcome::Error("no 123456789012".to_owned())),
        Outcome::Error("no {{ secret.PIN }}".to_owned())
    );
}

#[test]
fn the_longer_of_two_secrets_is_masked_whole() {
    let secrets = Secrets::new(vec![
        ("SHORT".to_owned(), "abcdefghijkl".to_owned()),
        ("LONG".to_owned(), "abcdefghijklmnop".to_owned()),
    ]);
    assert_eq!(secrets.mask("abcdefghijklmnop"), "{{ secret.LONG }}");
    assert_eq!(secrets.mask("abcdefghijklm"), "{{ secret.SHORT }}m");
}

proptest! {
    #[test]
    fn whatever_the_value_it_is_found_in_base64_and_json(value in ".{12,60}", before in "[a-z]{0,5}", after in "[a-z]{0,5}") {
        let secrets = Secrets::new(vec![("S".to_owned(), value.clone())]);
        let mark = "{{ secret.S }}";
        let whole = format!("{before}{value}{after}");
        let quoted = json!(whole).to_string();
        for text in [whole.clone(), quoted, STANDARD.encode(&whole), URL_SAFE.encode(&whole)] {
            let found = secrets.mask(&text).contains(mark);
            prop_assert!(found, "{}", text);
        }
    }
}

use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const VALUE: &str = "pa/ss+wörd \"42\"&<x>=";

fn secrets() -> Secrets {
    Secrets::new(vec![("TOKEN".to_owned(), VALUE.to_owned())])
}

#[test]
fn marks_of_permitted_secrets_are_replaced() {
    let arguments = json!({"a": "Bearer {{ secret.TOKEN }}", "b": [1]});
    let arguments = arguments.as_object().unwrap();
    let may = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let filled = secrets()
        .fill_arguments(arguments, &may(&["TOKEN"]))
        .unwrap();
    assert_eq!(filled["a"], format!("Bearer {VALUE}"));
    let refused = secrets().fill_arguments(arguments, &may(&[])).unwrap_err();
    assert_eq!(refused.code(), ToolErrorCode::NotRun);
    assert!(refused.to_string().contains("data.secrets"));
    let absent = Secrets::new(Vec::new()).fill_arguments(arguments, &may(&["TOKEN"]));
    assert!(absent.unwrap_err().to_string().contains("no secret TOKEN"));
}

#[test]
fn a_value_is_masked_in_each_encoding() {
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
        hex::encode(VALUE),
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

/// Simple transformations that a server could apply to a secret before it returns it.
#[test]
fn a_value_is_masked_through_cheap_transformations() {
    const KEY: &str = "sk-Abc123/def+456ghiJKL789";
    let secrets = Secrets::new(vec![("TOKEN".to_owned(), KEY.to_owned())]);
    let every = |between: &str| {
        let chars: Vec<String> = KEY.chars().map(String::from).collect();
        chars.join(between)
    };
    let each = |form: &dyn Fn(char) -> String| KEY.chars().map(form).collect::<String>();
    let lower_hex = hex::encode(KEY);
    let pairs: Vec<&str> = lower_hex
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap())
        .collect();
    let twice = STANDARD.encode(STANDARD.encode(KEY));
    let percent_all = percent(KEY, "", Case::Lower);
    for text in [
        KEY.to_uppercase(),
        KEY.to_lowercase(),
        KEY.chars().rev().collect(),
        every("-"),
        every(" "),
        every("\n"),
        every("\u{200b}"),
        every("\u{ad}\u{2060}"),
        pairs.join(":"),
        pairs.join(" "),
        format!("\\x{}", pairs.join("\\x")),
        each(&|c| format!("&#{};", u32::from(c))),
        each(&|c| format!("&#x{:X};", u32::from(c))),
        each(&|c| format!("\\u{:04x}", u32::from(c))),
        each(&|c| format!("\\x{:02x}", u32::from(c))),
        each(&|c| format!("&amp;#{};", u32::from(c))),
        each(&|c| format!("%{:02X}", u32::from(c))),
        percent_all.replace('%', "%25"),
        percent_all.replace('%', "="),
        twice,
        STANDARD.encode(format!("k={}", STANDARD.encode(KEY))),
        STANDARD.encode(&lower_hex),
        URL_SAFE.encode(percent(KEY, "-._~", Case::Upper)),
        in_base32(KEY.as_bytes())[0].clone(),
        in_base32(format!("ab{KEY}").as_bytes())[0].to_lowercase(),
        STANDARD.encode(KEY).chars().rev().collect(),
    ] {
        let masked = secrets.mask(&format!("before {text} after"));
        assert!(
            masked.contains("{{ secret.TOKEN }}")
                && masked.starts_with("before")
                && masked.ends_with("after"),
            "{text}: {masked}"
        );
    }
}

#[test]
fn other_text_is_not_masked_and_long_text_is_searched() {
    let secrets = Secrets::new(vec![(
        "TOKEN".to_owned(),
        "correct horse battery".to_owned(),
    )]);
    for text in [
        "a correct answer, a horse, a battery",
        "&amp; &#65; \\u0041 %41 =41 100% \\",
        "&#x110000; \\ud800 %ff",
    ] {
        assert_eq!(secrets.mask(text), text);
    }
    let filler = "ä line of text\n".repeat(60_000);
    let masked = secrets.mask(&format!("{filler}C-o-r-r-e-c-t horse battery{filler}"));
    assert_eq!(masked, format!("{filler}{{{{ secret.TOKEN }}}}{filler}"));
}

#[test]
fn a_secret_in_a_query_is_encoded() {
    let secrets = Secrets::new(vec![("K".to_owned(), "a b&c=d#e/fghijk".to_owned())]);
    let filled = secrets
        .fill_query("https://a.test/mcp?api_key={{ secret.K }}&x=1")
        .unwrap();
    assert_eq!(
        filled,
        "https://a.test/mcp?api_key=a%20b%26c%3Dd%23e%2Ffghijk&x=1"
    );
    assert!(
        secrets
            .fill_query("https://a.test/?k={{ secret.NONE }}")
            .unwrap_err()
            .contains("NONE")
    );
}

#[test]
fn a_value_is_masked_in_a_normalized_address() {
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
        secrets.mask_outcome(Outcome::Error(ToolError::from_text("no 123456789012"))),
        Outcome::Error(ToolError::from_text("no {{ secret.PIN }}"))
    );
}

#[test]
fn the_longer_of_two_secrets_is_masked_completely() {
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

//! Templates designed to harm the process that parses or evaluates them.

use proptest::prelude::*;
use serde_json::Map;

use super::*;
use crate::playbook::cheap::is_cheap;
use crate::playbook::{
    BadPlaybook, ELIFS_MAX, Evaluated, Evaluator, Failed, Form, Job, TAG_TOKENS_MAX, decode_job,
    decode_reply, encode_job, encode_reply,
};

/// Chains of each kind, `n` links long.
fn chains(n: usize) -> Vec<String> {
    let repeat = |link: &str| link.repeat(n);
    vec![
        format!("{{{{ {}1 }}}}", repeat("-")),
        format!("{{{{ {}true }}}}", repeat("not ")),
        format!("{{{{ a{} }}}}", repeat(".b")),
        format!("{{{{ a{} }}}}", repeat("[0]")),
        format!("{{{{ a{} }}}}", repeat("()")),
        format!("{{{{ 'a'{} }}}}", repeat("~'b'")),
        format!("{{{{ 1{} }}}}", repeat("+1")),
        format!("{{{{ 2{} }}}}", repeat("**1")),
        format!("{{{{ 1{} }}}}", repeat("==1")),
        format!("{{{{ 1{} }}}}", repeat(" in a")),
        format!("{{{{ true{} }}}}", repeat(" and true")),
        format!("{{{{ 'a'{} }}}}", repeat("|trim")),
        format!("{{{{ 'a'{} }}}}", repeat(" is defined")),
        format!("{{{{ {} 1 }}}}", repeat("1 if 0 else ")),
        format!("{{{{ a{} }}}}", repeat("[1:2]")),
        format!("{{{{ {}1{} }}}}", repeat("("), repeat(")")),
        format!("{{{{ {}1{} }}}}", repeat("["), repeat("]")),
        format!("{{{{ {}1{} }}}}", repeat("{'a':"), repeat("}")),
        format!("{{{{ {}1{} }}}}", repeat("f(-("), repeat("))")),
        format!("{{{{ [{}] }}}}", repeat("1,")),
    ]
}

fn steps_with(source: &str) -> Result<Playbook, BadPlaybook> {
    let known = Known {
        tool: &|_| Ok(()),
        human_in_the_loop: true,
    };
    Playbook::parse(
        &json!({"steps": [{"finish": "x"}, {"set": {"a": source}}]}),
        &known,
    )
}

/// Runs on a stack of a quarter of the size that the server's threads have.
fn on_a_small_stack<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(512 * 1024);
    thread.spawn(act).unwrap().join().unwrap()
}

#[test]
fn long_chains_are_rejected_before_parsing() {
    on_a_small_stack(|| {
        for n in [TAG_TOKENS_MAX, 5_000, 100_000] {
            for source in chains(n) {
                let start: String = source.chars().take(20).collect();
                let bad = steps_with(&source).expect_err(&start);
                assert_eq!(bad.path, "playbook.steps[1].set.a", "{start}");
                let block = source.replace("{{", "{% set b =").replace("}}", "%}");
                assert!(steps_with(&block).is_err(), "{start}");
            }
        }
        let elifs = format!(
            "{{% if a %}}{}{{% endif %}}",
            "{% elif a %}".repeat(ELIFS_MAX + 1)
        );
        let bad = steps_with(&elifs).unwrap_err();
        assert!(bad.message.contains("elif"), "{bad}");
        let long = "{{ a }}".repeat(30_000);
        assert!(steps_with(&long).unwrap_err().message.contains("tags"));
        for open in [
            "{% if a %}",
            "{% for b in a %}",
            "{% with %}",
            "{% macro m() %}",
        ] {
            assert!(steps_with(&open.repeat(9_000)).is_err(), "{open}");
        }
    });
}

#[test]
fn the_longest_accepted_chains_fit_the_stack() {
    on_a_small_stack(|| {
        for n in [100, 160, 240, 480] {
            for source in chains(n) {
                if let Ok(playbook) = steps_with(&source) {
                    drop(playbook);
                }
            }
        }
        let elifs = format!(
            "{{% if a %}}{}{{% endif %}}",
            "{% elif a %}".repeat(ELIFS_MAX)
        );
        assert!(steps_with(&elifs).is_ok());
    });
}

#[test]
fn a_template_that_nests_or_shares_values_is_not_cheap() {
    for source in [
        "{% set a=[a] %}{{ a }}",
        "{% set a={'a': a} %}",
        "{% set a=(a, a) %}",
        "{% set a=a+b %}{{ a }}",
        "{% set a=a[0:] %}",
        "{% macro m(a) %}{{ m(a) }}{% endmacro %}",
        "{% for a in b recursive %}{{ loop(a) }}{% endfor %}",
        "{% for a in b %}{{ a == c }}{% endfor %}",
        "{% for a in b %}{{ a in c }}{% endfor %}",
        "{% for a in b %}{{ message[a] }}{% endfor %}",
        "{% include 'a' %}",
        "{% import 'a' as b %}",
        "{% extends 'a' %}",
        "{% block a %}{% endblock %}",
        "{% with b=[a] %}{% endwith %}",
        "{% filter upper %}a{% endfilter %}",
        "{% call m() %}{% endcall %}",
        "{% do a() %}",
        "{{ dict(a=a) }}",
        "{{ a.b() }}",
        "{{ a|sort }}",
        "{{ a|unique }}",
        "{{ a|groupby('b') }}",
        "{{ a|batch(2) }}",
        "{{ a|sum(start=[]) }}",
        "{{ a|map('sort') }}",
        "{{ a|map(b) }}",
        "{{ a|map('default', b, true) }}",
        "{{ a|select('eq', b) }}",
        "{{ a|selectattr('b', c) }}",
        "{{ a|zip(a) }}",
        "{{ a|chain(a) }}",
        "{{ a|pprint }}",
        "{{ a|indent(999999999) }}",
        "{{ '%999999999d'|format(1) }}",
        "{{ a is eq b }}",
        "{{ (a * 1000) == (b * 1000) }}",
        "{{ [loop, self] }}",
    ] {
        assert!(!is_cheap(source), "{source}");
    }
    for source in [
        "{{ a.b }}",
        "{{ total_eur > limit_eur }}",
        "{{ 'Paid.' if payment.approved else 'Not paid.' }}",
        "{{ answers['When?'] == 'In a second' }}",
        "{{ messages | length == 1 }}",
        "{{ csv | lines | slice(1) | length }}",
        "{{ rows | select('startingwith', 'Total: ') | first | replace('Total: ', '') | float }}",
        "{{ invoices | map(attribute='amount_eur') | sum }}",
        "{{ text | lines | map('trim') | list }}",
        "{{ range(3) }}",
        "{{ item in ['a', 'b', -1] }}",
        "{% for i in a %}{{ loop.index }}: {{ i.b[0] }}{% endfor %}",
        "{% if not a %}x{% elif a.error is defined %}y{% else %}z{% endif %}",
        "{% set a = b ~ 'c' %}{{ a + 1 }} {{ a * 1.5 }}",
        "{{ (message | default('invoice', true) | lower) in (mail.subject ~ ' ') }}",
    ] {
        assert!(is_cheap(source), "{source}");
    }
}

/// Encodes, decodes and evaluates as another process does, and counts the evaluations.
#[derive(Default)]
struct RemoteEvaluator(std::sync::atomic::AtomicUsize);

impl Evaluator for RemoteEvaluator {
    fn evaluate(&self, job: Job) -> Result<Result<Evaluated, Failed>, String> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let there = decode_job(&encode_job(&job)).expect("a job that is read back");
        assert_eq!(there, job);
        let reply = encode_reply(&there.evaluate());
        Ok(decode_reply(&reply).expect("a reply that is read back"))
    }

    fn go_on(&self) -> Result<(), String> {
        Ok(())
    }
}

fn facts() -> RunFacts {
    RunFacts {
        id: "r".to_owned(),
        sandbox_id: None,
    }
}

fn walk_of(steps: &Value) -> Walk {
    let known = Known {
        tool: &|_| Ok(()),
        human_in_the_loop: true,
    };
    let playbook = Playbook::parse(&json!({"steps": steps}), &known).unwrap();
    Walk::new(Arc::new(playbook))
}

#[test]
fn other_processes_give_the_same_results() {
    for source in [
        "{% set b=[1, {'x': [run.id]}] %}{{ b }} {{ index is defined }}",
        "{{ [3, 1, 2]|sort|join(',') }}",
        "{{ [a, a] }}",
        "{{ {'a': a.list, 'f': 1.0, 'n': none, 'big': 18446744073709551615} }}",
        "{{ [a.missing.b] }}",
        "{{ [nothing] }}",
        "{{ a.list|sort|map('string')|list }}",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(a) }}",
        "{{ [a] + 1 }}",
        "{{ range(100000)|map('string')|sort|join }}",
    ] {
        let steps = json!([{"set": {"a": {"list": [1, 2.5, "x\ny", null]}}}, {"say": source}, {"set": {"v": source}}, {"finish": "{{ v|tojson }}"}]);
        let remote = RemoteEvaluator::default();
        let here = walk_of(&steps).next(&facts());
        assert_eq!(
            walk_of(&steps).next_with(&facts(), &remote),
            here,
            "{source}"
        );
        assert_eq!(remote.0.into_inner(), 1, "{source}");
    }
}

#[test]
fn long_texts_are_not_rendered_immediately() {
    let steps = json!([{"say": "{{ message }}{{ message }}"}, {"finish": "x"}]);
    let mut walk = walk_of(&steps);
    assert!(walk.next_at_once(&facts()).is_some());
    let id = IdGen::new([1; 32]).message(Timestamp::from_millis(1));
    walk.feed(&Entry {
        position: 1,
        id,
        at: Timestamp::from_millis(1),
        body: Body::User {
            text: "x".repeat(1_000_000),
            by: None,
            untrusted: false,
        },
    });
    assert!(walk.next_at_once(&facts()).is_none());
    let Move::Say { text } = walk.next(&facts()).action else {
        panic!("it says something");
    };
    assert_eq!(text.len(), 2_000_000);
}

#[test]
fn a_list_that_is_too_long_fails_before_the_first_iteration() {
    let first = |inner: Value| {
        let steps = json!([{"for_each": "{{ range(50000) }}", "steps": inner}, {"finish": "x"}]);
        walk_of(&steps).next(&facts()).action
    };
    let Move::Fail { message, .. } = first(json!([{"say": "x"}])) else {
        panic!("it fails");
    };
    assert!(message.contains("50000 iterations"), "{message}");
    for inner in [
        json!([{"set": {"a": 1}}]),
        json!([{"say": "x", "if": "{{ index == 3 }}"}]),
        json!([{"say": "x"}, {"finish": "y", "if": "{{ index == 3 }}"}]),
    ] {
        let action = first(inner.clone());
        assert!(!matches!(action, Move::Fail { .. }), "{inner}");
    }
}

/// Fragments of templates, chosen so that many combinations are valid.
fn piece() -> impl Strategy<Value = String> {
    let fixed = |texts: &'static [&'static str]| {
        prop::sample::select(texts.to_vec()).prop_map(str::to_owned)
    };
    prop_oneof![
        fixed(&[
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            "{%-",
            "-%}",
            " set a=",
            " if a",
            " endif ",
            " for a in ",
            " endfor ",
            " raw ",
            " endraw ",
            " elif a",
            " else ",
            " macro m(a)",
            " endmacro ",
            " m(a) ",
            " recursive",
            "loop(a)",
        ]),
        fixed(&[
            "a", "[a]", "[a,a]", "{'a':a}", "(a,)", "1", "'x'", "\"}}\"", "range(9)", "message",
            "run.id", "none"
        ]),
        fixed(&[
            "|sort",
            "|string",
            "|join",
            "|tojson",
            "|list",
            "|unique",
            "|batch(2)",
            "|format(a)",
            "|fromjson",
            "|map('string')"
        ]),
        fixed(&[
            "~", "+", "*", "**", "==", " in ", " is ", " not ", "-", ".b", "[0]", "[1:]", "(", ")",
            ",", " if ", " else "
        ]),
        "[ -~]{0,6}",
    ]
}

proptest! {
    #[test]
    fn no_template_harms_its_check(pieces in prop::collection::vec(piece(), 0..60)) {
        let source = pieces.concat();
        let parsed = on_a_small_stack(move || steps_with(&source).is_ok());
        let _ = parsed;
    }

    #[test]
    fn values_survive_the_way_to_another_process(text in ".{0,40}", number in any::<i64>(), float in -1e300..1e300f64) {
        let names: Map<String, Value> = [("a", json!([text, number, float, {"k": text}]))]
            .into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let job = Job::new("[a]", Form::Value, names);
        let there = decode_job(&encode_job(&job)).unwrap();
        prop_assert_eq!(&there, &job);
        let reply = there.evaluate();
        prop_assert_eq!(decode_reply(&encode_reply(&reply)).unwrap(), reply);
    }
}

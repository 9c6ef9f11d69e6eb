use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn yaml(text: &str) -> Value {
    parse(text, Format::Yaml).unwrap()
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(entries.map(|(key, value)| (key.to_owned(), value)).into())
}

#[test]
fn yaml_scalars_are_what_they_look_like() {
    let table = [
        ("10.0.0.1", text("10.0.0.1")),
        ("fd00::1", text("fd00::1")),
        ("5s", text("5s")),
        ("yes", text("yes")),
        ("true", Value::Bool(true)),
        ("'true'", text("true")),
        ("15008", Value::Integer(15008)),
        ("-1", Value::Integer(-1)),
        ("'15008'", text("15008")),
        ("1.5", Value::Float(1.5)),
        ("null", Value::Null),
        ("", Value::Null),
        ("''", text("")),
        ("!Exact x", map([("Exact", text("x"))])),
        ("!Presence", map([("Presence", Value::Null)])),
        ("!!str 5", text("5")),
    ];
    for (written, expected) in table {
        assert_eq!(
            yaml(&format!("a: {written}")),
            map([("a", expected)]),
            "{written}"
        );
    }
}

#[test]
fn anchors_and_number_keys_work() {
    let value = yaml("a: &one {80: 8080}\nb: *one\n");
    let ports = map([("80", Value::Integer(8080))]);
    assert_eq!(value, map([("a", ports.clone()), ("b", ports)]));
}

#[test]
fn hostile_documents_are_refused_cheaply() {
    let bomb = {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let alias = format!("*a{}, ", n - 1).repeat(10);
            text += &format!("a{n}: &a{n} [{}]\n", alias.trim_end_matches(", "));
        }
        text
    };
    for hostile in [
        bomb,
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
    ] {
        parse(&hostile, Format::Yaml).unwrap_err();
    }
    parse(&format!("a = {}", "[".repeat(100_000)), Format::Toml).unwrap_err();
    parse("a: 1\na: 2", Format::Yaml).unwrap_err();
    parse("a = 1\na = 2", Format::Toml).unwrap_err();
    parse("? [complex, key]\n: 1", Format::Yaml).unwrap_err();
}

#[test]
fn durations_have_units_and_no_overflow() {
    let table = [
        ("500ms", Some(Duration::from_millis(500))),
        ("5s", Some(Duration::from_secs(5))),
        ("2 m", Some(Duration::from_secs(120))),
        ("24h", Some(Duration::from_secs(86_400))),
        ("7d", Some(Duration::from_secs(604_800))),
        ("0s", Some(Duration::ZERO)),
        ("5", None),
        ("s", None),
        ("", None),
        ("-5s", None),
        ("1.5s", None),
        ("5S", None),
        ("5s5s", None),
        ("18446744073709551615d", None),
        ("99999999999999999999s", None),
        ("٣s", None),
    ];
    for (written, expected) in table {
        assert_eq!(parse_duration(written), expected, "{written}");
    }
}

/// Reads one field of a document in a way, and returns the value or the mistakes.
fn read<T>(document: &str, read: impl Fn(&Node<'_>) -> Option<T>) -> Result<T, Vec<String>> {
    let value = yaml(document);
    let mistakes = Mistakes::default();
    let mut fields = Node::root(&value, &mistakes).fields().unwrap();
    let found = fields.required("x").and_then(|node| read(&node));
    fields.end();
    let mistakes: Vec<_> = mistakes
        .into_vec()
        .iter()
        .map(ToString::to_string)
        .collect();
    if mistakes.is_empty() {
        Ok(found.expect("no value, no mistake"))
    } else {
        Err(mistakes)
    }
}

#[test]
fn sizes_are_bytes_or_have_a_binary_unit() {
    let size = |written: &str| read(&format!("x: {written}"), |node| node.size(1..=u64::MAX)).ok();
    assert_eq!(
        ["65536", "64KiB", "'64 KiB'", "2MiB", "1GiB", "7B"].map(size),
        [
            Some(65_536),
            Some(65_536),
            Some(65_536),
            Some(2 << 20),
            Some(1 << 30),
            Some(7)
        ]
    );
    assert_eq!(
        [
            "0",
            "-1",
            "2MB",
            "2M",
            "1.5MiB",
            "18446744073709551615GiB",
            "true"
        ]
        .map(size),
        [None; 7]
    );
}

#[test]
fn an_unknown_field_comes_with_the_nearest_known_one() {
    let error =
        |key: &str| read(&format!("x: 1\n{key}: 2"), |node| node.integer(0..=9)).unwrap_err();
    assert_eq!(error("y"), ["y: unknown field"]);
    assert_eq!(error("X"), ["X: unknown field; did you mean x?"]);
    assert_eq!(error(&"long".repeat(100)).len(), 1);
}

proptest! {
    #[test]
    fn any_text_gives_an_answer(text in "\\PC*") {
        let _ = parse(&text, Format::Yaml);
        let _ = parse(&text, Format::Toml);
        let _ = parse_duration(&text);
    }
}

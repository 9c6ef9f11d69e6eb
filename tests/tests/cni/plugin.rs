//! The plugin's binary by itself: bad calls, its size, how long it takes to start.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use redirect_tests::cni_binary;
use serde_json::Value;

fn call(variables: &[(&str, &str)], input: &[u8]) -> Output {
    let mut child = Command::new(cni_binary())
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the plugin");
    // It may have ended before it has read all.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("the plugin ends")
}

const ADD: &[(&str, &str)] = &[
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "abc"),
    ("CNI_NETNS", "/run/netns/none"),
    ("CNI_IFNAME", "eth0"),
];

#[test]
fn bad_calls_get_an_error_of_the_specification() {
    let huge = format!(
        "{{\"cniVersion\":\"1.0.0\",\"x\":\"{}\"}}",
        "y".repeat(3 << 20)
    );
    let deep = "[".repeat(100_000);
    let good = r#"{"cniVersion":"1.0.0","name":"n","type":"redirect-cni","socket":"/none","timeoutSeconds":1}"#;
    let unknown = good.replace("1.0.0", "7.0.0");
    for (variables, input, code) in [
        (&[][..], good.as_bytes(), 4),
        (&[("CNI_COMMAND", "BREW")][..], good.as_bytes(), 4),
        (ADD, b"", 6),
        (ADD, b"{", 6),
        (ADD, b"\xff\xfe", 6),
        (ADD, huge.as_bytes(), 6),
        (ADD, deep.as_bytes(), 6),
        (ADD, unknown.as_bytes(), 1),
        (ADD, good.as_bytes(), 7),
    ] {
        let output = call(variables, input);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!output.status.success(), "{text}");
        let error: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(error["code"], code, "{text}");
        assert!(
            error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
            "{text}"
        );
        assert!(
            error["cniVersion"].is_string() && error["details"].is_string(),
            "{text}"
        );
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn it_is_small_and_starts_at_once() {
    let loaded = loaded(&fs::read(cni_binary()).expect("it is built"));
    assert!(loaded < 4 << 20, "{loaded} bytes: is the daemon in it?");
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let begun = Instant::now();
            let output = call(&[("CNI_COMMAND", "VERSION")], b"{\"cniVersion\":\"1.0.0\"}");
            assert!(output.status.success());
            begun.elapsed()
        })
        .collect();
    times.sort();
    // The best of many: what others do on the machine does not count.
    assert!(times[0] < Duration::from_millis(10), "{times:?}");
}

/// How much memory a program takes when it is started: its segments of type PT_LOAD (elf(5), 64 bits, little-endian).
fn loaded(elf: &[u8]) -> u64 {
    let word = |at: usize, size: usize| {
        let bytes = elf[at..at + size].iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let index = |value: u64| usize::try_from(value).expect("inside the file");
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    (0..count)
        .map(|number| index(table + number * size))
        .filter(|header| word(*header, 4) == 1)
        .map(|header| word(header + 40, 8))
        .sum()
}

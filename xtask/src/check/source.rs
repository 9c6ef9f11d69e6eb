//! Rust source with its comments and literals blanked out, so that a word in prose is not taken for code.

/// Returns `source` with the insides of comments, strings and characters replaced by spaces; lines stay where they are.
///
/// Knows nested block comments, raw strings and lifetimes. It is no parser: it only has to be right about where code is.
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut code = vec![0; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let end =
            at + literal_or_comment(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        if end == at {
            code[at] = bytes[at];
            at += 1;
            continue;
        }
        for index in at..end {
            code[index] = if bytes[index] == b'\n' { b'\n' } else { b' ' };
        }
        at = end;
    }
    String::from_utf8(code).expect(
        "only whole literals and comments, or single ASCII bytes outside them, were replaced",
    )
}

/// The part of blanked `code` before its unit tests, which may do what production code may not.
pub fn before_tests(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |at| &code[..at])
}

/// The numbers of the lines where `word` stands as a whole path or identifier, from one.
pub fn lines_with(code: &str, word: &str) -> Vec<usize> {
    code.lines()
        .enumerate()
        .filter(|(_, line)| {
            line.match_indices(word)
                .any(|(at, _)| stands_alone(line, at, word))
        })
        .map(|(index, _)| index + 1)
        .collect()
}

fn stands_alone(line: &str, at: usize, word: &str) -> bool {
    let part_of_name =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = line.as_bytes();
    let before = at.checked_sub(1).and_then(|index| bytes.get(index));
    let goes_on = part_of_name(word.as_bytes().last()) && part_of_name(bytes.get(at + word.len()));
    !part_of_name(before) && !goes_on
}

/// How many bytes of `rest` belong to the comment or literal that begins there; zero if none begins.
fn literal_or_comment(rest: &[u8], before: Option<u8>) -> usize {
    let in_name = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest {
        [b'/', b'/', ..] => rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment(rest),
        [b'"', ..] => string(rest, 1),
        [b'r', b'"' | b'#', ..] if !in_name => raw_string(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if !in_name => raw_string(rest, 2),
        [b'\'', ..] => character(rest),
        _ => 0,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(rest.len())
}

fn string(rest: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0; // a raw identifier
    }
    let close: Vec<u8> = std::iter::once(b'"')
        .chain(std::iter::repeat_n(b'#', hashes))
        .collect();
    let inside = &rest[open + 1..];
    let length = inside
        .windows(close.len())
        .position(|window| window == close);
    length.map_or(rest.len(), |length| open + 1 + length + close.len())
}

/// A character literal, but not a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return rest
            .iter()
            .skip(3)
            .position(|byte| *byte == b'\'')
            .map_or(0, |length| length + 4);
    }
    let first = rest.get(1).copied().unwrap_or_default();
    let width = match first {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    };
    if rest.get(1 + width) == Some(&b'\'') {
        width + 2
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_prose_and_keeps_code() {
        let cases = [
            ("let a = 1; // unsafe", "let a = 1;          "),
            ("a /* x /* y */ z */ b", "a                   b"),
            (r#"f("unsafe \" x") + 1"#, "f(             ) + 1"),
            (r##"r#"un"safe"# z"##, "             z"),
            ("r#unsafe_name", "r#unsafe_name"),
            (
                "fn f<'a>(c: &'a str) { '\"' }",
                "fn f<'a>(c: &'a str) {     }",
            ),
            (r"'\'' + '\\' + 'é'", "     +      +     "),
            ("br\"x\" var\"y\"", "      var   "),
        ];
        for (source, want) in cases {
            assert_eq!(code_only(source), want, "{source}");
        }
    }

    #[test]
    fn keeps_lines_apart() {
        assert_eq!(code_only("/*\n*/x\n\"\n\"y"), "  \n  x\n \n y");
    }

    #[test]
    fn finds_whole_words_only() {
        let code = "use tokio::net;\nlet my_tokio = 1;\ntokios();\nstd::fs::read";
        assert_eq!(lines_with(code, "tokio"), [1]);
        assert_eq!(lines_with(code, "std::fs"), [4]);
    }
}

//! The rules of dependency between modules, and what no file of ours may hold. The tables here are the rules.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::source::{before_tests, code_only, lines_with};

/// Files below `within` (but not in `except`) never name any of `words` in production code.
struct Rule {
    within: &'static [&'static str],
    except: &'static [&'static str],
    words: &'static [&'static str],
    why: &'static str,
}

/// Decide from their arguments alone, so that tests are tables and the kernel side can share them.
const PURE: &[&str] = &[
    "redirect-common/src/",
    "redirect-userspace/src/capture/netfilter/listing.rs",
    "redirect-userspace/src/capture/netfilter/plan.rs",
    "redirect-userspace/src/capture/netfilter/plan/",
    "redirect-userspace/src/capture/netfilter/render/",
    "redirect-userspace/src/capture/probe/choice.rs",
    "redirect-userspace/src/capture/probe/finding.rs",
    "redirect-userspace/src/capture/probe/report.rs",
    "redirect-userspace/src/cni/conflist.rs",
    "redirect-userspace/src/cni/install/plan.rs",
    "redirect-userspace/src/dns/answer.rs",
    "redirect-userspace/src/dns/names.rs",
    "redirect-userspace/src/dns/query.rs",
    "redirect-userspace/src/dns/search.rs",
    "redirect-userspace/src/dns/wire.rs",
    "redirect-userspace/src/node/location/choose.rs",
    "redirect-userspace/src/node/location/name.rs",
    "redirect-userspace/src/node/location/sandbox.rs",
    "redirect-userspace/src/node/reconcile.rs",
    "redirect-userspace/src/node/wishes.rs",
    "redirect-userspace/src/node/kubernetes/annotations.rs",
    "redirect-userspace/src/node/kubernetes/cache.rs",
    "redirect-userspace/src/node/kubernetes/enrolment.rs",
    "redirect-userspace/src/node/kubernetes/mesh/build.rs",
    "redirect-userspace/src/node/kubernetes/objects.rs",
    "redirect-userspace/src/node/kubernetes/plan.rs",
    "redirect-userspace/src/node/kubernetes/probes.rs",
    "redirect-userspace/src/pod/mod.rs",
    "redirect-userspace/src/policy/",
    "redirect-userspace/src/proxy/authority.rs",
    "redirect-userspace/src/proxy/route.rs",
];

const OURS: &[&str] = &[
    "redirect-common/",
    "redirect-ebpf/",
    "redirect-userspace/",
    "tests/",
    "xtask/",
];

const RULES: &[Rule] = &[
    Rule {
        within: &[
            "redirect-userspace/src/proxy/",
            "redirect-userspace/src/hbone/",
            "redirect-userspace/src/tls/",
        ],
        except: &[],
        words: &["crate::capture", "capture::", "aya"],
        why: "the proxy does not know how connections come to it: it meets capture through `orig_dst` and `pod`",
    },
    Rule {
        within: &["redirect-userspace/src/capture/"],
        except: &[],
        words: &["crate::proxy", "proxy::", "crate::hbone", "hbone::"],
        why: "capture does not know who carries the connections on: it meets the proxy through `orig_dst` and `pod`",
    },
    Rule {
        within: &[
            "redirect-userspace/src/bin/redirect-cni.rs",
            "redirect-userspace/src/cni/conflist.rs",
            "redirect-userspace/src/cni/plugin/",
            "redirect-userspace/src/cni/protocol.rs",
        ],
        except: &[],
        words: &["tokio", "tracing", "clap", "async"],
        why: "the CNI plugin starts for each pod: it has no runtime, and is small",
    },
    Rule {
        within: PURE,
        except: &[],
        words: &[
            "tokio",
            "std::fs",
            "std::net::TcpStream",
            "Instant::now",
            "SystemTime::now",
            "std::env",
            "async",
        ],
        why: "this module is pure: it decides from its arguments, and others read files, clocks and sockets",
    },
    Rule {
        within: &["redirect-userspace/src/"],
        except: &[
            "redirect-userspace/src/capture/",
            "redirect-userspace/src/sys/",
            "redirect-userspace/src/orig_dst",
        ],
        words: &["aya"],
        why: "only the eBPF backend and the resolver that reads its maps speak to the BPF library",
    },
    Rule {
        within: &["redirect-userspace/src/"],
        except: &[
            "redirect-userspace/src/config/",
            "redirect-userspace/src/cli/",
            "redirect-userspace/src/main.rs",
            // A runtime calls a CNI plugin by its environment.
            "redirect-userspace/src/bin/redirect-cni.rs",
        ],
        words: &["std::env", "env::var", "env::args"],
        why: "the environment is read once, into `Config`",
    },
    Rule {
        within: OURS,
        except: &[
            "redirect-userspace/src/sys/",
            "redirect-ebpf/src/",
            "tests/src/sys",
        ],
        words: &["unsafe"],
        why: "`unsafe` is only in `sys` (one call each, with its invariant) and in the eBPF programs",
    },
    Rule {
        within: OURS,
        except: &[],
        words: &[
            "mod utils",
            "mod util",
            "mod helpers",
            "mod manager",
            "mod common",
            "mod misc",
        ],
        why: "a module is named for what it does",
    },
    Rule {
        within: OURS,
        except: &[],
        words: &["todo!", "unimplemented!", "#[ignore"],
        why: "nothing is left for later and no test is skipped silently",
    },
];

/// Words that must not stand in any file, prose included; in halves, so that this table does not find itself.
const NO_WORDS: &[(&str, &str)] = &[("TO", "DO"), ("FIX", "ME"), ("XX", "X:")];

const LONGEST_FILE: usize = 450;
/// Tests are tables and stories, which grow by cases and not by complication.
const LONGEST_TEST_FILE: usize = 700;

/// Checks every Rust file below `root`; returns how many there were.
pub fn check(root: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    for folder in OURS {
        rust_files(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut broken = Vec::new();
    for rule in RULES {
        broken.extend(
            rule.within
                .iter()
                .chain(rule.except)
                .filter_map(|path| unknown_path(root, path)),
        );
    }
    for file in &files {
        let name = file
            .strip_prefix(root)
            .unwrap_or(file)
            .to_string_lossy()
            .into_owned();
        let source =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        broken.extend(faults(&name, &source));
    }
    for fault in &broken {
        println!("   {fault}");
    }
    if !broken.is_empty() {
        bail!("{} rules broken in {} files", broken.len(), files.len());
    }
    Ok(format!("{} files", files.len()))
}

/// A rule about a path that is gone would hold for ever.
fn unknown_path(root: &Path, path: &str) -> Option<String> {
    let known = root.join(path).exists() || root.join(format!("{path}.rs")).exists();
    (!known)
        .then(|| format!("xtask/src/check/layers.rs: a rule names {path}, which does not exist"))
}

fn faults(name: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let code = code_only(source);
    let production = if name.contains("/tests/") || name.ends_with("/tests.rs") {
        ""
    } else {
        before_tests(&code)
    };
    for rule in RULES.iter().filter(|rule| rule.covers(name)) {
        for word in rule.words {
            let lines = lines_with(production, word).into_iter();
            faults.extend(lines.map(|line| format!("{name}:{line}: `{word}`: {}", rule.why)));
        }
    }
    for (head, tail) in NO_WORDS {
        let lines = lines_with(source, &format!("{head}{tail}")).into_iter();
        faults.extend(
            lines.map(|line| format!("{name}:{line}: unfinished work is an issue, not a comment")),
        );
    }
    // A module of unit tests has its purpose from the module that it tests; a file of end-to-end tests has its own.
    let unit_tests =
        name.ends_with("/tests.rs") || name.contains("/src/") && name.contains("/tests/");
    let lines = source.lines().count();
    let limit = if unit_tests || name.starts_with("tests/tests/") {
        LONGEST_TEST_FILE
    } else {
        LONGEST_FILE
    };
    if lines > limit {
        faults.push(format!(
            "{name}: {lines} lines; the limit is {limit}: split it by what its parts do"
        ));
    }
    if !unit_tests && !source.lines().take(3).any(|line| line.starts_with("//!")) {
        faults.push(format!("{name}: does not begin with `//!` and its purpose"));
    }
    faults
}

impl Rule {
    fn covers(&self, name: &str) -> bool {
        let under = |paths: &[&str]| paths.iter().any(|path| name.starts_with(path));
        under(self.within) && !under(self.except)
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, body: &str) -> Vec<String> {
        faults(name, &format!("//! Purpose.\n{body}\n"))
    }

    #[test]
    fn each_rule_is_broken_by_what_it_forbids() {
        let cases = [
            (
                "redirect-userspace/src/proxy/outbound.rs",
                "use crate::capture::Capture;",
            ),
            (
                "redirect-userspace/src/capture/none.rs",
                "use crate::proxy::route;",
            ),
            (
                "redirect-userspace/src/proxy/route.rs",
                "let now = Instant::now();",
            ),
            ("redirect-common/src/decide.rs", "use std::fs::File;"),
            (
                "redirect-userspace/src/proxy/copy.rs",
                "let port = std::env::var(NAME);",
            ),
            ("redirect-userspace/src/hbone/pool.rs", "unsafe { read() }"),
            ("redirect-userspace/src/admin/mod.rs", "mod utils;"),
            ("xtask/src/main.rs", "unimplemented!()"),
            (
                "redirect-userspace/src/app.rs",
                "let map = aya::maps::HashMap::try_from(map)?;",
            ),
        ];
        for (name, body) in cases {
            assert!(!found(name, body).is_empty(), "{name}: {body}");
        }
    }

    #[test]
    fn tests_prose_and_other_places_are_free() {
        let cases = [
            (
                "redirect-userspace/src/proxy/outbound.rs",
                "// not crate::capture\nlet a = \"unsafe\";",
            ),
            (
                "redirect-userspace/src/proxy/route.rs",
                "#[cfg(test)]\nmod tests { use tokio::test; }",
            ),
            ("redirect-userspace/src/sys/socket.rs", "unsafe { read() }"),
            (
                "redirect-userspace/src/proxy/outbound.rs",
                "let captured_by_proxy = recapture::x();",
            ),
            (
                "redirect-userspace/src/proxy/tests.rs",
                "use crate::capture::Capture;",
            ),
        ];
        for (name, body) in cases {
            assert_eq!(found(name, body), Vec::<String>::new(), "{name}: {body}");
        }
    }

    #[test]
    fn long_files_files_without_purpose_and_unfinished_work_are_found() {
        assert_eq!(found("xtask/src/a.rs", &"\n".repeat(LONGEST_FILE)).len(), 1);
        assert_eq!(faults("xtask/src/a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(
            found("xtask/src/a.rs", &["// TO", "DO: later"].concat()).len(),
            1
        );
    }
}

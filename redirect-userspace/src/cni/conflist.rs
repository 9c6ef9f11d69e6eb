//! Edits of a CNI network configuration: our plugin goes in as the last of the chain, or comes out again. Pure.
//!
//! A configuration is edited as text, not parsed and written anew: what other plugins said stays byte for byte, and taking our
//! entry out gives back the text that was there before it went in (CNI spec 1.1, section 1: network configuration format).

use std::{ops::Range, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Versions of the specification that the plugin speaks.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The plugin's name: `type` of its entry, and the file name of its binary.
pub const PLUGIN: &str = "redirect-cni";

/// Our entry in a list of plugins: what the plugin is told on standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    pub kind: String,
    /// The node agent's socket.
    pub socket: PathBuf,
    /// Kubernetes namespaces whose pods start also while the agent is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_namespaces: Vec<String>,
    /// How long the agent may take for one pod, in seconds.
    pub timeout_seconds: u64,
}

impl Entry {
    pub fn new(socket: PathBuf, exclude_namespaces: Vec<String>, timeout: Duration) -> Self {
        Self {
            kind: PLUGIN.to_owned(),
            socket,
            exclude_namespaces,
            timeout_seconds: timeout.as_secs(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConflistError {
    #[error("not a CNI network configuration: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the list has no plugins")]
    Empty,
    #[error("plugin {0} of the list has no `type`")]
    NoType(usize),
    #[error("its cniVersion is none that {PLUGIN} speaks: {VERSIONS:?}")]
    Version,
    #[error("{0} is the only plugin of the list: there is no network to be chained to")]
    Alone(&'static str),
}

/// A list as far as an edit needs to know it; the rest of the text is left alone.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

/// Which versions of the specification a list may be run with: a runtime takes the highest that it knows.
#[derive(Deserialize)]
struct Versions {
    #[serde(rename = "cniVersion", default)]
    one: Option<String>,
    #[serde(rename = "cniVersions", default)]
    several: Vec<String>,
}

#[derive(Deserialize)]
struct Plugin {
    #[serde(rename = "type")]
    kind: String,
}

/// What names a network: all that a list made from a single configuration repeats of it.
#[derive(Deserialize)]
struct Single {
    #[serde(rename = "cniVersion", default)]
    version: Option<String>,
    name: String,
    #[serde(rename = "type")]
    _kind: String,
}

/// The list with `entry` as its last plugin, and no other entry of ours. `None` if it is like that already.
pub fn insert(list: &str, entry: &Entry) -> Result<Option<String>, ConflistError> {
    let is_installed = is_installed(list, entry)?;
    let Versions { one, several } = serde_json::from_str(list)?;
    let mut versions = several.iter().chain(&one);
    // With another one no pod would start.
    if !versions.any(|version| VERSIONS.contains(&version.as_str())) {
        return Err(ConflistError::Version);
    }
    if is_installed {
        return Ok(None);
    }
    let without = match remove(list)? {
        Some(without) => without,
        None => list.to_owned(),
    };
    let last = plugins(&without)?.pop().ok_or(ConflistError::Empty)?;
    let indent = indentation(&without, last.range.start);
    let text = match indent {
        Some(indent) => {
            let pretty = serde_json::to_string_pretty(entry)?;
            let lines: Vec<_> = pretty
                .lines()
                .map(|line| format!("{indent}{line}"))
                .collect();
            format!(",\n{}", lines.join("\n"))
        }
        None => format!(",{}", serde_json::to_string(entry)?),
    };
    let mut with = without.clone();
    with.insert_str(last.range.end, &text);
    Ok(Some(with))
}

/// The list without our plugin. `None` if it is not in there.
pub fn remove(list: &str) -> Result<Option<String>, ConflistError> {
    let mut text = list.to_owned();
    let mut changed = false;
    loop {
        let plugins = plugins(&text)?;
        let Some(index) = plugins.iter().position(|plugin| plugin.kind == PLUGIN) else {
            return Ok(changed.then_some(text));
        };
        let cut = match (index, plugins.get(1)) {
            (0, None) => return Err(ConflistError::Alone(PLUGIN)),
            (0, Some(next)) => plugins[0].range.start..next.range.start,
            (index, _) => plugins[index - 1].range.end..plugins[index].range.end,
        };
        text.replace_range(cut, "");
        changed = true;
    }
}

/// Whether `entry` is the list's last plugin, and its only one of ours.
pub fn is_installed(list: &str, entry: &Entry) -> Result<bool, ConflistError> {
    let plugins = plugins(list)?;
    let ours = plugins.iter().filter(|plugin| plugin.kind == PLUGIN);
    let last = plugins.last().ok_or(ConflistError::Empty)?;
    let same =
        serde_json::from_str::<Entry>(&list[last.range.clone()]).is_ok_and(|found| found == *entry);
    Ok(ours.count() == 1 && same)
}

/// Whether the text is a valid list that has our plugin anywhere.
pub fn has_ours(list: &str) -> bool {
    plugins(list).is_ok_and(|plugins| plugins.iter().any(|plugin| plugin.kind == PLUGIN))
}

/// A list of the one plugin that a `.conf` file holds, whose text is kept as it is.
pub fn from_single(conf: &str) -> Result<String, ConflistError> {
    let single: Single = serde_json::from_str(conf)?;
    let name = serde_json::to_string(&single.name)?;
    let version = serde_json::to_string(single.version.as_deref().unwrap_or("0.2.0"))?;
    Ok(format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n{}\n  ]\n}}\n",
        conf.trim()
    ))
}

/// Fails with what is wrong with a list.
pub fn check(list: &str) -> Result<(), ConflistError> {
    match plugins(list)?.is_empty() {
        true => Err(ConflistError::Empty),
        false => Ok(()),
    }
}

/// A plugin of a list, and where in the text it is.
struct Found {
    kind: String,
    range: Range<usize>,
}

fn plugins(text: &str) -> Result<Vec<Found>, ConflistError> {
    let list: List<'_> = serde_json::from_str(text)?;
    let plugins = list.plugins.iter().enumerate();
    plugins
        .map(|(index, raw)| {
            let plugin: Plugin =
                serde_json::from_str(raw.get()).map_err(|_| ConflistError::NoType(index))?;
            // Borrowed from the text, so its place in memory tells its place there.
            let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
            Ok(Found {
                kind: plugin.kind,
                range: start..start + raw.get().len(),
            })
        })
        .collect()
}

/// The white space before what starts at `at`, if nothing else is on its line.
fn indentation(text: &str, at: usize) -> Option<&str> {
    let line = text[..at].rfind('\n')? + 1;
    let indent = &text[line..at];
    indent.chars().all(char::is_whitespace).then_some(indent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> Entry {
        Entry::new(
            "/run/redirect/agent.sock".into(),
            vec!["kube-system".into()],
            Duration::from_secs(30),
        )
    }

    const PRETTY: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "kindnet",
  "plugins": [
    {
      "type": "ptp",   "ipMasq": false,
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

    #[test]
    fn our_entry_is_the_last_and_the_rest_stays_as_it_was() {
        let with = insert(PRETTY, &entry()).unwrap().unwrap();
        insta::assert_snapshot!(with);
        assert!(is_installed(&with, &entry()).unwrap());
        assert_eq!(insert(&with, &entry()).unwrap(), None);
        assert_eq!(remove(&with).unwrap().as_deref(), Some(PRETTY));
    }

    #[test]
    fn an_older_entry_of_ours_is_replaced_wherever_it_is() {
        let list =
            |plugins: &str| format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugins}]}}"#);
        let ours = serde_json::to_string(&entry()).unwrap();
        let old = r#"{"type":"redirect-cni","socket":"/old"}"#;
        let bridge = r#"{"type":"bridge"}"#;
        let expected = list(&format!("{bridge},{ours}"));
        for (case, before) in [
            ("first", format!("{old},{bridge}")),
            ("last", format!("{bridge}, {old}")),
            ("twice", format!("{old},{bridge},{ours}")),
            ("not last", format!("{ours},{bridge}")),
            ("old version", format!("{old} , {bridge}")),
        ] {
            let after = insert(&list(&before), &entry()).unwrap().unwrap();
            assert_eq!(after, expected, "{case}");
        }
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let conf = "{\"cniVersion\": \"0.3.1\", \"name\": \"a \\\"b\\\"\", \"type\": \"bridge\"}\n";
        let list = from_single(conf).unwrap();
        assert!(list.contains(conf.trim()));
        let with = insert(&list, &entry()).unwrap().unwrap();
        assert!(with.contains(r#""cniVersion": "0.3.1""#) && with.contains(r#""name": "a \"b\"""#));
        assert!(is_installed(&with, &entry()).unwrap());
    }

    #[test]
    fn what_is_broken_is_left_alone_and_said() {
        for (text, expected) in [
            (
                r#"{"name":"n","plugins":[{"type":"a"}]}"#,
                "cniVersion is none",
            ),
            (
                r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#,
                "cniVersion is none",
            ),
            ("", "not a CNI network configuration"),
            ("{", "not a CNI network configuration"),
            ("[]", "not a CNI network configuration"),
            (r#"{"cniVersion":"1.1.0"}"#, "missing field `plugins`"),
            (r#"{"cniVersion":"1.1.0","plugins":{}}"#, "invalid type"),
            (r#"{"cniVersion":"1.1.0","plugins":[]}"#, "no plugins"),
            (
                r#"{"cniVersion":"1.1.0","plugins":[{"a":1}]}"#,
                "plugin 0 of the list has no `type`",
            ),
            (
                r#"{"cniVersions":["0.2.0","1.0.0"],"plugins":[{"type":"a"}],"plugins":[]}"#,
                "duplicate field",
            ),
            (
                r#"{"cniVersion":"1.1.0","plugins":[{"type":"redirect-cni"}]}"#,
                "only plugin",
            ),
        ] {
            let error = insert(text, &entry()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(from_single(r#"{"name":"n"}"#).is_err());
    }

    fn white() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", " ", "\n", "\n  ", "\t", "\n\t\t"])
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_without_a_trace(
            plugins in prop::collection::vec(("[a-z]{1,8}", "[ -~é]{0,12}", white(), white()), 1..5),
            gaps in (white(), white(), white()),
        ) {
            let plugins: Vec<_> = plugins
                .iter()
                .map(|(kind, text, before, after)| {
                    let text = serde_json::to_string(text).unwrap();
                    format!("{before}{{ \"x\":{text},\"type\" : \"p{kind}\" }}{after}")
                })
                .collect();
            let list = format!(
                "{}{{\"cniVersion\":\"0.3.1\",\"name\":\"n\",{}\"plugins\":[{}],\"z\":[{{}}]{}}}",
                gaps.0, gaps.1, plugins.join(","), gaps.2
            );
            let with = insert(&list, &entry()).unwrap().unwrap();
            prop_assert!(is_installed(&with, &entry()).unwrap());
            prop_assert_eq!(remove(&with).unwrap(), Some(list));
        }
    }
}

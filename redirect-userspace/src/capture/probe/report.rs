//! What was found as a table for people and as JSON for programs: pure.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{
    choice::Choice,
    finding::{Finding, Found},
};
use crate::config::Mode;

/// Everything that `redirect check` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub mode: Mode,
    pub findings: Vec<Finding>,
    /// What is not needed to capture, but worth changing.
    pub warnings: Vec<String>,
    pub choice: Choice,
}

/// No column is made wider than this for one long entry.
const WIDEST: usize = 44;

impl Report {
    pub fn table(&self) -> String {
        let width = |column: fn(&Finding) -> &str| {
            let lengths = self.findings.iter().map(|f| column(f).chars().count());
            lengths
                .filter(|length| *length <= WIDEST)
                .max()
                .unwrap_or(0)
        };
        let (name, purpose) = (width(|f| &f.name), width(|f| &f.needed_for));
        let mut text = String::new();
        _ = writeln!(
            text,
            "  found  {:name$}  {:purpose$}  why not, → what follows",
            "feature", "needed for"
        );
        let mut group = None;
        for finding in &self.findings {
            if group != Some(finding.group) {
                group = Some(finding.group);
                _ = writeln!(text, "{}", finding.group.title());
            }
            let (mark, rest) = match &finding.found {
                Found::Yes => ("yes  ", String::new()),
                Found::No(why) => ("no   ", format!("  {why}")),
            };
            let line = format!(
                "  {mark}  {:name$}  {:purpose$}{rest}",
                finding.name, finding.needed_for
            );
            _ = writeln!(text, "{}", line.trim_end());
            let consequence = finding.consequence(self.mode);
            if !consequence.is_empty() {
                _ = writeln!(text, "           → {consequence}");
            }
        }
        for warning in &self.warnings {
            _ = writeln!(text, "warning: {warning}");
        }
        let backend = self.backend();
        _ = writeln!(text, "backend: {backend} ({})", self.choice.because);
        text
    }

    pub fn json(&self) -> Value {
        let features = self.findings.iter().map(|finding| {
            let detail = match &finding.found {
                Found::Yes => Value::Null,
                Found::No(why) => why.as_str().into(),
            };
            json!({
                "group": finding.group.title(),
                "name": finding.name,
                "neededFor": finding.needed_for,
                "found": finding.is_found(),
                "detail": detail,
                "consequence": finding.consequence(self.mode),
            })
        });
        json!({
            "mode": self.mode.name(),
            "features": features.collect::<Vec<_>>(),
            "warnings": self.warnings,
            "backend": self.choice.backend.map(|_| self.backend()),
            "because": self.choice.because,
        })
    }

    fn backend(&self) -> &'static str {
        self.choice
            .backend
            .map_or("none works", |backend| backend.name())
    }
}

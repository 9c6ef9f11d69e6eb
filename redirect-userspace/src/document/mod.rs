//! YAML and TOML documents as a tree, read field by field, so that all mistakes are found in one go.
//!
//! A deserializer derived by serde stops at the first mistake. Here [`parse`] gives a [`Value`], and [`Node`] and [`Fields`]
//! read it while they collect a [`Mistake`] with the path of each field that is wrong, missing or unknown.

mod node;
mod revision;
mod value;

#[cfg(test)]
mod tests;

pub use node::{Fields, Node, parse_duration};
pub use revision::{Revision, revision_of};
pub use value::{Format, SyntaxError, Value, parse};

use std::{cell::RefCell, fmt};

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Such as `pods[2].ips[0]`; empty for the document as a whole.
    pub path: String,
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.path, self.what)
        }
    }
}

/// Collects mistakes while a document is read.
#[derive(Debug, Default)]
pub struct Mistakes(RefCell<Vec<Mistake>>);

/// A hostile or hopeless file could have millions.
const MAX_MISTAKES: usize = 200;

impl Mistakes {
    pub fn add(&self, path: impl Into<String>, what: impl Into<String>) {
        let mut all = self.0.borrow_mut();
        if all.len() < MAX_MISTAKES {
            all.push(Mistake {
                path: path.into(),
                what: what.into(),
            });
        } else if all.len() == MAX_MISTAKES {
            all.push(Mistake {
                path: String::new(),
                what: "and more; these were enough".to_owned(),
            });
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub fn into_vec(self) -> Vec<Mistake> {
        self.0.into_inner()
    }
}

/// `1 mistake`, `3 mistakes`.
pub fn count(mistakes: &[Mistake]) -> String {
    format!(
        "{} mistake{}",
        mistakes.len(),
        if mistakes.len() == 1 { "" } else { "s" }
    )
}

/// One mistake per line, indented.
pub fn list(mistakes: &[Mistake]) -> String {
    mistakes
        .iter()
        .map(|mistake| format!("\n  {mistake}"))
        .collect()
}

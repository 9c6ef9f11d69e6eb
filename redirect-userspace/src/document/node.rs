//! Reading a tree: one value, or the fields of a map.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{Mistakes, Value};

/// What can be added to any clock without overflow.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A value and its path. Each reading method reports what is wrong and then returns `None`.
#[derive(Clone)]
pub struct Node<'a> {
    pub path: String,
    value: &'a Value,
    mistakes: &'a Mistakes,
}

impl<'a> Node<'a> {
    pub fn root(value: &'a Value, mistakes: &'a Mistakes) -> Self {
        Self {
            path: String::new(),
            value,
            mistakes,
        }
    }

    pub fn is_null(&self) -> bool {
        *self.value == Value::Null
    }

    pub fn is_text(&self, text: &str) -> bool {
        matches!(self.value, Value::Text(found) if found == text)
    }

    pub fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// Reports a mistake here.
    pub fn fail<T>(&self, what: impl Into<String>) -> Option<T> {
        self.mistakes.add(self.path.clone(), what);
        None
    }

    /// Reports a mistake of a field below.
    pub fn fail_at(&self, field: &str, what: impl Into<String>) {
        self.mistakes.add(format!("{}.{field}", self.path), what);
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        let hint = match (what, self.value) {
            ("text", Value::Bool(_) | Value::Integer(_) | Value::Float(_)) => " (put it in quotes)",
            _ => "",
        };
        self.fail(format!(
            "expected {what}, found {}{hint}",
            self.value.describe()
        ))
    }

    pub fn text(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) => Some(text),
            _ => self.expected("text"),
        }
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(*value),
            _ => self.expected("true or false"),
        }
    }

    pub fn integer<T: TryFrom<i128> + Copy + Into<i128>>(
        &self,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let (low, high): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        match self.value {
            Value::Integer(value) if (low..=high).contains(value) => T::try_from(*value).ok(),
            Value::Integer(value) => self.fail(format!("{value} is not between {low} and {high}")),
            _ => self.expected(&format!("a number between {low} and {high}")),
        }
    }

    pub fn port(&self) -> Option<u16> {
        self.integer(1..=u16::MAX)
    }

    /// Text that `T` parses; `what` completes "is not …".
    pub fn parsed<T: FromStr>(&self, what: &str) -> Option<T> {
        let text = self.text()?;
        text.parse()
            .ok()
            .or_else(|| self.fail(format!("{text:?} is not {what}")))
    }

    /// Text that `check` accepts.
    pub fn checked<T, E: Display>(&self, check: impl FnOnce(&'a str) -> Result<T, E>) -> Option<T> {
        check(self.text()?)
            .map_err(|error| self.fail::<T>(error.to_string()))
            .ok()
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, value)| *value);
        found.or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.fail(format!("{text:?} is not one of {}", names.join(", ")))
        })
    }

    /// A number with a unit: `500ms`, `5s`, `2m`, `24h`, `7d`; greater than zero unless `zero`.
    pub fn duration(&self, zero: bool) -> Option<Duration> {
        let text = self.text()?;
        match parse_duration(text) {
            Some(Duration::ZERO) if !zero => self.fail("must be more than nothing"),
            Some(duration) if duration > LONGEST => {
                self.fail(format!("{text:?} is longer than ten years"))
            }
            Some(duration) => Some(duration),
            None => self.fail(format!(
                "{text:?} is not a duration such as 500ms, 5s, 10m or 24h"
            )),
        }
    }

    /// Bytes, as a number or with a unit: `65536`, `64KiB`, `2MiB`.
    pub fn size(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let size = match self.value {
            Value::Integer(value) => u64::try_from(*value).ok(),
            Value::Text(text) => parse_size(text),
            _ => return self.expected("a size such as 65536, 64KiB or 2MiB"),
        };
        match size {
            Some(size) if range.contains(&size) => Some(size),
            Some(_) => self.fail(format!(
                "{} is not between {} and {} bytes",
                self.value.describe().trim_start_matches("the number "),
                range.start(),
                range.end()
            )),
            None => self.fail(format!(
                "{} is not a size such as 65536, 64KiB or 2MiB",
                self.value.describe()
            )),
        }
    }

    /// The items of a list; reported and empty for anything else.
    pub fn list(&self) -> Vec<Node<'a>> {
        match self.value {
            Value::List(items) => {
                let at = |(index, value)| Node {
                    path: format!("{}[{index}]", self.path),
                    value,
                    mistakes: self.mistakes,
                };
                items.iter().enumerate().map(at).collect()
            }
            _ => self
                .expected::<()>("a list")
                .map_or_else(Vec::new, |()| Vec::new()),
        }
    }

    /// The items of a list that `read` could read.
    pub fn each<T>(&self, read: impl FnMut(&Node<'a>) -> Option<T>) -> Vec<T> {
        self.list().iter().filter_map(read).collect()
    }

    /// The entries of a map whose keys are data, not field names.
    pub fn entries(&self) -> Vec<(&'a str, Node<'a>)> {
        match self.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| {
                    let path = format!("{}[{key:?}]", self.path);
                    (
                        key.as_str(),
                        Node {
                            path,
                            value,
                            mistakes: self.mistakes,
                        },
                    )
                })
                .collect(),
            _ => self
                .expected::<()>("a map")
                .map_or_else(Vec::new, |()| Vec::new()),
        }
    }

    /// The fields of a map whose keys are field names. Finish with [`Fields::end`].
    pub fn fields(&self) -> Option<Fields<'a>> {
        match self.value {
            Value::Map(entries) => {
                let fields = Fields {
                    path: self.path.clone(),
                    entries,
                    taken: vec![false; entries.len()],
                    names: Vec::new(),
                    mistakes: self.mistakes,
                };
                fields.report_twins();
                Some(fields)
            }
            _ => self.expected("a map"),
        }
    }
}

/// The fields of a map, each asked for by name; those that nobody asked for are unknown.
pub struct Fields<'a> {
    pub path: String,
    entries: &'a [(String, Value)],
    taken: Vec<bool>,
    names: Vec<&'static str>,
    mistakes: &'a Mistakes,
}

impl<'a> Fields<'a> {
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// The field as it is, also when it is null.
    pub fn raw(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.names.push(name);
        let index = self.entries.iter().position(|(key, _)| key == name)?;
        self.taken[index] = true;
        Some(Node {
            path: self.path_of(name),
            value: &self.entries[index].1,
            mistakes: self.mistakes,
        })
    }

    /// Stands for a map that is absent.
    pub fn empty(&mut self, name: &str) -> Fields<'a> {
        Fields {
            path: self.path_of(name),
            entries: &[],
            taken: Vec::new(),
            names: Vec::new(),
            mistakes: self.mistakes,
        }
    }

    /// Null counts as absent.
    pub fn optional(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.raw(name).filter(|node| !node.is_null())
    }

    pub fn required(&mut self, name: &'static str) -> Option<Node<'a>> {
        let found = self.optional(name);
        if found.is_none() {
            self.mistakes.add(self.path_of(name), "is missing");
        }
        found
    }

    /// Reports a mistake of the map as a whole.
    pub fn fail(&self, what: impl Into<String>) {
        self.mistakes.add(self.path.clone(), what);
    }

    /// Reports each field that was not asked for.
    pub fn end(self) {
        for ((key, _), taken) in self.entries.iter().zip(&self.taken) {
            // A twin of a field that was asked for is reported as such.
            if !taken && !self.names.contains(&key.as_str()) {
                let hint = closest(key, &self.names)
                    .map(|name| format!("; did you mean {name}?"))
                    .unwrap_or_default();
                self.mistakes
                    .add(self.path_of(key), format!("unknown field{hint}"));
            }
        }
    }

    fn report_twins(&self) {
        let mut keys: Vec<_> = self.entries.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        for pair in keys.windows(2).filter(|pair| pair[0] == pair[1]) {
            self.mistakes.add(self.path_of(pair[0]), "is given twice");
        }
    }
}

/// The known name nearest to a misspelt one, if any is near.
fn closest<'n>(misspelt: &str, names: &[&'n str]) -> Option<&'n str> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-'], "");
    let wanted = plain(misspelt);
    if wanted.len() > 40 {
        return None;
    }
    let near = names
        .iter()
        .map(|name| (distance(&wanted, &plain(name)), *name))
        .min();
    near.filter(|(distance, name)| *distance <= name.len() / 3)
        .map(|(_, name)| name)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_unit(text)?;
    let milliseconds = match unit {
        "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    Some(Duration::from_millis(milliseconds))
}

fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

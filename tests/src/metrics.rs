//! Prometheus text, as far as tests ask.

use std::collections::BTreeMap;

/// Samples of one scrape, by name and labels.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
    text: String,
}

impl Metrics {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| sample(line).unwrap_or_else(|| panic!("not a Prometheus sample: {line}")))
            .collect();
        Self {
            samples,
            text: text.to_owned(),
        }
    }

    /// The sum of the samples of `name` that have all of `labels`; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |have: &BTreeMap<String, String>| {
            labels
                .iter()
                .all(|(key, value)| have.get(*key).is_some_and(|have| have == value))
        };
        self.samples
            .iter()
            .filter(|(n, have, _)| n == name && has(have))
            .map(|(_, _, value)| value)
            .sum()
    }

    /// Whether there is any sample of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(n, _, _)| n == name)
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some((series.to_owned(), BTreeMap::new(), value));
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}')?;
    while !rest.is_empty() {
        let (key, quoted) = rest.split_once("=\"")?;
        let (text, after) = unquote(quoted)?;
        labels.insert(key.to_owned(), text);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some((name.to_owned(), labels, value))
}

/// The text up to the closing quote, and what follows it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => text.push('\n'),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_labels_and_values() {
        let metrics = Metrics::parse(
            "# HELP x y\na_total 3\nb{x=\"1\",y=\"a\\\"b,c\"} 2.5\nb{x=\"2\"} 1\n# EOF\n",
        );
        assert_eq!(metrics.sum("a_total", &[]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 3.5);
        assert_eq!(metrics.sum("b", &[("y", "a\"b,c")]), 2.5);
        assert_eq!(metrics.sum("b", &[("x", "3")]), 0.0);
        assert!(!metrics.has("c"));
    }
}

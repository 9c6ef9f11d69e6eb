//! What the soak measured, beside what it should be.

/// Figures in the order in which they were measured.
#[derive(Debug, Default)]
pub struct Figures(Vec<Figure>);

#[derive(Debug)]
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    /// At most this, where it is said.
    target: Option<f64>,
}

impl Figures {
    pub fn add(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.push(what.into(), value, unit, None);
    }

    /// A figure that should be at most `target`.
    pub fn at_most(
        &mut self,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: f64,
    ) {
        self.push(what.into(), value, unit, Some(target));
    }

    fn push(&mut self, what: String, value: f64, unit: &'static str, target: Option<f64>) {
        println!("soak: {what}: {value:.1} {unit}");
        self.0.push(Figure {
            what,
            value,
            unit,
            target,
        });
    }

    /// Prints the table; gives what missed its target.
    pub fn print(&self) -> Vec<String> {
        println!("\n{:<58}{:>10}          target", "", "");
        let mut missed = Vec::new();
        for figure in &self.0 {
            let Figure {
                what,
                value,
                unit,
                target,
            } = figure;
            let target = target.map_or(String::new(), |target| format!("at most {target}"));
            println!("{what:<58}{value:>10.1} {unit:<8} {target}");
            if figure.target.is_some_and(|target| *value > target) {
                missed.push(format!("{what}: {value:.1} {unit}, {target}"));
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_target_is_named() {
        let mut figures = Figures::default();
        figures.add("a", 5.0, "ms");
        figures.at_most("b", 5.0, "ms", 5.0);
        figures.at_most("c", 5.1, "ms", 5.0);
        assert_eq!(figures.print(), ["c: 5.1 ms, at most 5"]);
    }
}

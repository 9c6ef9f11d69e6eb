//! The table on standard output and the JSON beside it.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Options,
    figure::{Figure, TARGETS, Target},
    quiet::Quiet,
    samples::Samples,
    stage::{Stage, Variant},
};

pub fn print(
    samples: &Samples,
    variants: &[Variant],
    stage: &Stage,
    quiet: &Quiet,
    options: &Options,
) {
    for line in &stage.about {
        println!("{line}");
    }
    println!(
        "{} rounds of {} s; {} of {} runs on a machine that was not quiet",
        options.rounds(),
        options.seconds(),
        quiet.noisy,
        quiet.runs
    );
    println!(
        "medians, ± half of the range over the rounds; ratios are redirect's to that column\n"
    );
    let heads: String = variants
        .iter()
        .map(|variant| format!("{:>20}", variant.title()))
        .collect();
    println!("{:<37}{heads}{:>10}{:>10}  target", "", "/direct", "/TLS");
    let (mut kept, mut missed) = (0, 0);
    for figure in samples.figures() {
        let cells: String = variants
            .iter()
            .map(|variant| format!("{:>20}", cell(samples, figure, *variant)))
            .collect();
        let ratios: String = [Variant::Direct, Variant::Tls]
            .map(|variant| {
                format!(
                    "{:>10}",
                    ratio(samples, figure, variant).map_or(String::new(), |r| format!("{r:.2}"))
                )
            })
            .concat();
        let verdict = TARGETS
            .iter()
            .find(|target| target.figure == figure)
            .and_then(|target| {
                let met = met(samples, target)?;
                if met {
                    kept += 1
                } else {
                    missed += 1
                }
                Some(format!(
                    "{:<4}  {}",
                    if met { "ok" } else { "MISS" },
                    target.bound.text(figure.unit())
                ))
            });
        let name = format!("{} ({})", figure.title(), figure.unit());
        println!("{name:<37}{cells}{ratios}  {}", verdict.unwrap_or_default());
    }
    println!("\nbench: {kept} targets met, {missed} missed");
}

fn cell(samples: &Samples, figure: Figure, variant: Variant) -> String {
    let Some(median) = samples.median(figure, variant) else {
        return String::new();
    };
    let number = match median.abs() {
        1000.0.. => format!("{median:.0}"),
        100.0.. => format!("{median:.1}"),
        _ => format!("{median:.2}"),
    };
    match samples.spread(figure, variant) {
        Some(spread) if spread > 0.0 => format!("{number} ±{:>3.0} %", spread * 100.0),
        _ => number,
    }
}

/// Redirect's median as a multiple of the variant's.
fn ratio(samples: &Samples, figure: Figure, variant: Variant) -> Option<f64> {
    let other = samples
        .median(figure, variant)
        .filter(|median| *median != 0.0)?;
    samples
        .median(figure, Variant::Redirect)
        .map(|redirect| redirect / other)
}

fn met(samples: &Samples, target: &Target) -> Option<bool> {
    let value = samples.median(target.figure, Variant::Redirect)?;
    target
        .bound
        .kept(value, |variant| samples.median(target.figure, variant))
}

pub fn json(samples: &Samples, stage: &Stage, quiet: &Quiet, options: &Options) -> Value {
    let figures: Vec<Value> = samples
        .figures()
        .into_iter()
        .map(|figure| {
            let variants: serde_json::Map<String, Value> = Variant::ALL
                .into_iter()
                .filter_map(|variant| {
                    let values = samples.values(figure, variant)?;
                    let value = json!({
                        "median": samples.median(figure, variant),
                        "spread": samples.spread(figure, variant),
                        "values": values,
                        "redirect_ratio": ratio(samples, figure, variant),
                    });
                    Some((variant.title().to_owned(), value))
                })
                .collect();
            let target = TARGETS.iter().find(|target| target.figure == figure);
            json!({
                "figure": figure.title(),
                "unit": figure.unit(),
                "variants": variants,
                "target": target.map(|target| target.bound.text(figure.unit())),
                "met": target.and_then(|target| met(samples, target)),
            })
        })
        .collect();
    json!({
        "about": stage.about,
        "rounds": options.rounds(),
        "seconds": options.seconds(),
        "runs": quiet.runs,
        "noisy_runs": quiet.noisy,
        "figures": figures,
    })
}

pub fn write_json(report: Value, options: &Options) -> Result<()> {
    let path = &options.json;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("figures in {}", path.display());
    Ok(())
}

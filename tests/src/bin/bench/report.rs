//! The figures, their spread, and the targets that they are compared with.

use std::fmt;

use serde::Serialize;

/// One measured figure: one value per round.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) rounds: usize,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let count = values.len();
        let median = (at(count.saturating_sub(1) / 2) + at(count / 2)) / 2.0;
        Self { name: name.into(), unit, median, min: at(0), max: at(count.saturating_sub(1)), rounds: count }
    }
}

/// Whether a target is a floor or a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Rule {
    AtLeast,
    AtMost,
}

/// A target and what was measured for it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) rule: Rule,
    pub(crate) limit: f64,
    pub(crate) unit: &'static str,
    pub(crate) met: bool,
}

/// All figures and targets of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Vec<(String, String)>,
    figures: Vec<Figure>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(machine: Vec<(String, String)>) -> Self {
        Self { machine, figures: Vec::new(), targets: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure and returns its median.
    pub(crate) fn figure(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> f64 {
        let figure = Figure::new(name, unit, values);
        eprintln!(
            "  {}: {} {} ({} .. {})",
            figure.name,
            number(figure.median),
            unit,
            number(figure.min),
            number(figure.max)
        );
        let median = figure.median;
        self.figures.push(figure);
        median
    }

    pub(crate) fn target(
        &mut self,
        what: impl Into<String>,
        measured: f64,
        rule: Rule,
        limit: f64,
        unit: &'static str,
    ) {
        let met = match rule {
            Rule::AtLeast => measured >= limit,
            Rule::AtMost => measured <= limit,
        };
        self.targets.push(Target { what: what.into(), measured, rule, limit, unit, met });
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.machine {
            writeln!(f, "{name}: {value}")?;
        }
        writeln!(f, "\n| figure | median | min | max | unit | rounds |\n|---|--:|--:|--:|---|--:|")?;
        for figure in &self.figures {
            let [median, min, max] = [figure.median, figure.min, figure.max].map(number);
            writeln!(f, "| {} | {median} | {min} | {max} | {} | {} |", figure.name, figure.unit, figure.rounds)?;
        }
        writeln!(f, "\n| target | measured | limit | met |\n|---|--:|--:|---|")?;
        for target in &self.targets {
            let sign = if target.rule == Rule::AtLeast { ">=" } else { "<=" };
            let (measured, limit, unit) = (number(target.measured), number(target.limit), target.unit);
            let met = if target.met { "yes" } else { "**no**" };
            writeln!(f, "| {} | {measured} {unit} | {sign} {limit} {unit} | {met} |", target.what)?;
        }
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        Ok(())
    }
}

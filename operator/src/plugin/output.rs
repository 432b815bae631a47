//! Formats output: tables like those of kubectl, JSON and YAML.

use std::io::Write;

use clap::ValueEnum;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::error::PluginError;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum OutputFormat {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Writes the output of a command; `text` formats it as a table.
pub(super) fn print(
    out: &mut dyn Write,
    format: OutputFormat,
    answer: &impl Serialize,
    text: impl FnOnce(bool) -> String,
) -> Result<(), PluginError> {
    let made = match format {
        OutputFormat::Table => text(false),
        OutputFormat::Wide => text(true),
        OutputFormat::Json => serde_json::to_string_pretty(answer).map(|text| text + "\n").unwrap_or_default(),
        OutputFormat::Yaml => serde_yaml::to_string(answer).unwrap_or_default(),
    };
    out.write_all(made.as_bytes()).and_then(|()| out.flush()).map_err(PluginError::io("standard output"))
}

/// Formats a table. Columns are as wide as their widest cell. Control characters in cells are replaced, since cells are untrusted.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |cell: &str| -> String {
        let shown: String = cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if shown.is_empty() { "-".into() } else { shown }
    };
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(head).chain(rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect())).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Formats names and values, one pair per line, without empty values.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    shown.map(|(name, value)| format!("{:<width$}  {value}\n", format!("{name}:"))).collect()
}

/// Formats the age of a time: `45s`, `12m`, `3h20m`, `5d`.
pub(super) fn age(then: Timestamp, now: Timestamp) -> String {
    span(now.as_second() - then.as_second())
}

/// Formats seconds in the same form.
pub(super) fn span(seconds: i64) -> String {
    let (sign, seconds) = if seconds < 0 { ("-", -seconds) } else { ("", seconds) };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{sign}{seconds}s"),
        120..7200 => format!("{sign}{minutes}m"),
        7200..36_000 if minutes % 60 > 0 => format!("{sign}{hours}h{}m", minutes % 60),
        7200..172_800 => format!("{sign}{hours}h"),
        _ => format!("{sign}{days}d"),
    }
}

/// Formats bytes in the largest binary unit, as a whole number or with two decimals.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut at = 0;
    while at + 1 < units.len() && bytes >> (10 * (at + 1)) > 0 {
        at += 1;
    }
    let whole = bytes >> (10 * at);
    match bytes == whole << (10 * at) {
        true => format!("{whole}{}", units[at]),
        false => format!("{:.2}{}", bytes as f64 / (1_u64 << (10 * at)) as f64, units[at]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_cells_cannot_move_the_cursor() {
        let rows =
            [vec!["a".into(), String::new(), "x\u{1b}[2J".into()], vec!["longer".into(), "2".into(), "y".into()]];
        assert_eq!(table(&["NAME", "N", "Z"], &rows), "NAME     N   Z\na        -   x [2J\nlonger   2   y\n");
        assert_eq!(
            pairs(&[("Name", "log".into()), ("Empty", String::new()), ("Leader", "a".into())]),
            "Name:    log\nLeader:  a\n"
        );
    }

    #[test]
    fn times_and_sizes_are_short() {
        let shown = [5, 119, 120, 7199, 7200, 12_000, 40_000, 172_800, -5].map(span);
        assert_eq!(shown, ["5s", "119s", "2m", "119m", "2h", "3h20m", "11h", "2d", "-5s"]);
        assert_eq!([0, 1023, 1 << 30, 3 << 29, u64::MAX].map(bytes), ["0", "1023", "1Gi", "1.50Gi", "16384.00Pi"]);
    }
}

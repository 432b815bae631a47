//! Printed data: aligned tables for people, JSON and YAML for programs, all on standard output.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Aligned columns for people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Rows under headings. Columns of numbers are aligned to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// A table of two columns without headings.
    pub(super) fn pairs(pairs: Vec<(&'static str, String)>) -> Self {
        let rows = pairs.into_iter().map(|(name, value)| vec![format!("{name}:"), value]).collect();
        Self { headings: Vec::new(), rows }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.headings.len());
        let cell = |row: &[String], column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let heading = self.headings.get(column).map_or(0, |heading| heading.chars().count());
                self.rows.iter().map(|row| cell(row, column)).max().unwrap_or(0).max(heading)
            })
            .collect();
        let numeric: Vec<bool> = (0..columns)
            .map(|column| {
                !self.headings.is_empty()
                    && !self.rows.is_empty()
                    && self.rows.iter().all(|row| row.get(column).is_some_and(|cell| is_number(cell)))
            })
            .collect();
        if !self.headings.is_empty() {
            let headings: Vec<String> = self.headings.iter().map(|heading| (*heading).to_owned()).collect();
            write_row(out, &headings, &widths, &numeric)?;
        }
        self.rows.iter().try_for_each(|row| write_row(out, row, &widths, &numeric))
    }
}

fn write_row(out: &mut dyn Write, row: &[String], widths: &[usize], numeric: &[bool]) -> io::Result<()> {
    let mut line = String::new();
    for (column, cell) in row.iter().enumerate() {
        let pad = widths[column].saturating_sub(cell.chars().count());
        if column > 0 {
            line.push_str("  ");
        }
        if numeric[column] {
            line.extend(std::iter::repeat_n(' ', pad));
            line.push_str(cell);
        } else {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad));
        }
    }
    writeln!(out, "{}", line.trim_end())
}

fn is_number(cell: &str) -> bool {
    let digits = cell.strip_prefix('-').unwrap_or(cell);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | ','))
}

/// Prints `data` as JSON or YAML, or `table` in the table format.
pub(super) fn print<T: Serialize>(format: Format, data: &T, table: impl FnOnce() -> Table) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), format, data, table)
}

fn write<T: Serialize>(
    out: &mut dyn Write,
    format: Format,
    data: &T,
    table: impl FnOnce() -> Table,
) -> anyhow::Result<()> {
    match format {
        Format::Table => table().write(out)?,
        Format::Json => {
            let text = serde_json::to_string_pretty(data)?;
            writeln!(out, "{text}")?;
        }
        Format::Yaml => {
            let text = serde_yaml::to_string(data)?;
            out.write_all(text.as_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}

/// A whole number with a comma between thousands.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people: `512 B`, `1.5 MiB`.
pub(super) fn human_bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value.abs() < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_text_left_and_numbers_right() {
        let mut table = Table::new(&["NAME", "RECORDS", "STATE"]);
        table.row(vec!["orders".into(), "5".into(), "active".into()]);
        table.row(vec!["é".into(), "12345678".into(), String::new()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let wanted = "NAME     RECORDS  STATE\norders         5  active\né       12345678\n";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }

    #[test]
    fn the_same_data_comes_as_table_json_and_yaml() {
        let data = std::collections::BTreeMap::from([("records", 7)]);
        let text = |format| {
            let mut out = Vec::new();
            write(&mut out, format, &data, || Table::pairs(vec![("records", "7".into())])).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(Format::Table), "records:  7\n");
        assert_eq!(text(Format::Json), "{\n  \"records\": 7\n}\n");
        assert_eq!(text(Format::Yaml), "records: 7\n");
    }

    #[test]
    fn numbers_are_grouped_and_bytes_have_units() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(human_bytes(512.0), "512 B");
        assert_eq!(human_bytes(1.5 * 1024.0 * 1024.0), "1.5 MiB");
        assert_eq!(human_bytes(5e15), "4547.5 TiB");
    }
}

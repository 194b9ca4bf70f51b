//! Tables and JSON on standard output.

use std::{
    fmt,
    io::{self, ErrorKind, Write},
};

use serde_json::Value;

use crate::error::Error;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: the API's messages in the JSON form of protobuf.
    Json,
}

/// Columns as wide as their widest cell, two spaces apart.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned).to_vec()] }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints, and takes a reader that has had enough (`| head`) for a success.
pub fn print(text: impl fmt::Display) -> Result<(), Error> {
    bytes(&mut io::stdout().lock(), text.to_string().as_bytes())
}

/// Prints JSON with an indent of two.
pub fn json(value: &Value) -> Result<(), Error> {
    print(format_args!("{value:#}\n"))
}

/// Writes bytes as they are and flushes.
pub fn bytes(out: &mut dyn Write, bytes: &[u8]) -> Result<(), Error> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(Error::Output { source }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(["ID", "NAME", "STATE"]);
        table.row(["1".into(), "lönger".into(), String::new()]);
        table.row(["22".into(), "x".into(), "Ready".into()]);
        assert_eq!(table.to_string(), "ID  NAME    STATE\n1   lönger\n22  x       Ready\n");
    }
}

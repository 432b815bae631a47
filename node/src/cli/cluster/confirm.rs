//! Asks for confirmation before an operation that is hard to undo.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::bail;

/// Asks on the terminal and succeeds only on `y` or `yes`. Succeeds without asking with `yes`, or when standard input
/// or standard error is not a terminal.
///
/// # Errors
/// Any other answer.
pub(in crate::cli) fn ask(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(());
    }
    let mut out = io::stderr().lock();
    write!(out, "{question} [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if is_yes(&answer) {
        return Ok(());
    }
    bail!("cancelled: nothing was changed");
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        assert!(is_yes("y\n") && is_yes(" YES \n"));
        assert!(!is_yes("\n") && !is_yes("") && !is_yes("yep\n") && !is_yes("n\n"));
    }
}

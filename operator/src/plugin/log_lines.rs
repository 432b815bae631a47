//! Reads log lines with Kubernetes timestamps, with bounded memory.

use std::io;

use futures::{AsyncBufRead, AsyncBufReadExt};
use k8s_openapi::jiff::Timestamp;

/// Maximum length of a line in bytes. Longer lines are cut.
const LINE_BYTES_MAX: usize = 256 << 10;

/// A log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogLine {
    /// Timestamp; that of the line before if it has none.
    pub(super) at: Timestamp,
    pub(super) text: String,
}

/// Reads lines that begin with a timestamp.
pub(super) struct LogLines<R> {
    from: R,
    last: Timestamp,
}

impl<R: AsyncBufRead + Unpin> LogLines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, last: Timestamp::UNIX_EPOCH }
    }

    /// Returns the next line; `None`: the end. Not cancel-safe: dropping the future loses the part of the line that was read.
    pub(super) async fn next(&mut self) -> io::Result<Option<LogLine>> {
        let mut line = Vec::new();
        let mut ended = false;
        let mut empty = true;
        while !ended {
            let available = self.from.fill_buf().await?;
            if available.is_empty() {
                break;
            }
            empty = false;
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(available.len());
            let room = LINE_BYTES_MAX.saturating_sub(line.len()).min(taken);
            line.extend_from_slice(&available[..room]);
            ended = end.is_some();
            self.from.consume_unpin(taken + usize::from(ended));
        }
        if empty {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\r');
        let (at, text) = match text.split_once(' ').map(|(at, rest)| (at.parse::<Timestamp>(), rest)) {
            Some((Ok(at), rest)) => (at, rest),
            _ => (text.parse().unwrap_or(self.last), if text.parse::<Timestamp>().is_ok() { "" } else { text }),
        };
        self.last = at;
        Ok(Some(LogLine { at, text: text.to_owned() }))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::io::{BufReader, Cursor};

    use super::*;

    fn read(bytes: &[u8]) -> Vec<(i64, String)> {
        let mut lines = LogLines::new(BufReader::with_capacity(7, Cursor::new(bytes.to_vec())));
        let mut all = Vec::new();
        while let Some(line) = block_on(lines.next()).unwrap() {
            all.push((line.at.as_second(), line.text));
        }
        all
    }

    #[test]
    fn a_line_is_a_time_and_a_text_and_what_has_no_time_belongs_to_the_line_before() {
        let bytes = b"1970-01-01T00:00:05.123456789Z first line\n1970-01-01T00:00:06Z \n  at somewhere\r\nlast \xff";
        let expected: Vec<(i64, String)> = [(5, "first line"), (6, ""), (6, "  at somewhere"), (6, "last \u{fffd}")]
            .map(|(at, text)| (at, text.to_owned()))
            .to_vec();
        assert_eq!(read(bytes), expected);
        assert_eq!(read(b""), []);
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let long = vec![b'x'; 3 * LINE_BYTES_MAX];
        let lines = read(&long);
        assert_eq!((lines.len(), lines[0].1.len()), (1, LINE_BYTES_MAX));
    }
}

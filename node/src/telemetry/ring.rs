//! The newest log lines of the process, in memory, for a support bundle.
//!
//! Invariants:
//! - At most `bytes_max` bytes are kept; the oldest lines are dropped first.
//! - No line is longer than [`LINE_BYTES_MAX`]: the rest of it is cut off.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// Longest line that is kept, in bytes.
const LINE_BYTES_MAX: usize = 8 << 10;

/// A bounded queue of lines.
#[derive(Debug)]
pub(super) struct Ring {
    bytes_max: usize,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    queue: VecDeque<Box<str>>,
    bytes: usize,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, lines: Mutex::default() }
    }

    /// Adds one line, with or without its line feed.
    pub(super) fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut text = text.trim_end_matches('\n');
        if text.len() > LINE_BYTES_MAX {
            let mut end = LINE_BYTES_MAX;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text = &text[..end];
        }
        if text.len() > self.bytes_max {
            return;
        }
        let mut lines = self.lines.lock();
        lines.bytes += text.len();
        lines.queue.push_back(text.into());
        while lines.bytes > self.bytes_max {
            let Some(oldest) = lines.queue.pop_front() else { break };
            lines.bytes -= oldest.len();
        }
    }

    /// The newest lines, oldest first, each with a line feed: at most `bytes_max` bytes of them.
    pub(super) fn recent(&self, bytes_max: usize) -> String {
        let lines = self.lines.lock();
        let (mut bytes, mut taken) = (0, 0);
        for line in lines.queue.iter().rev() {
            bytes += line.len() + 1;
            if bytes > bytes_max {
                break;
            }
            taken += 1;
        }
        let mut text = String::with_capacity(bytes);
        for line in lines.queue.iter().skip(lines.queue.len() - taken) {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_when_the_bound_is_reached() {
        let ring = Ring::new(10);
        for line in ["aaaa\n", "bbbb", "cccc\n"] {
            ring.push(line.as_bytes());
        }
        assert_eq!(ring.recent(usize::MAX), "bbbb\ncccc\n");
        assert_eq!(ring.recent(9), "cccc\n");
        assert_eq!(ring.recent(0), "");
        ring.push(b"longer than the ring");
        assert_eq!(ring.recent(100), "bbbb\ncccc\n");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let ring = Ring::new(1 << 20);
        ring.push("ä".repeat(LINE_BYTES_MAX).as_bytes());
        ring.push(&[b'x', 0xff]);
        let text = ring.recent(usize::MAX);
        assert_eq!(text.lines().next().unwrap().len(), LINE_BYTES_MAX);
        assert_eq!(text.lines().nth(1), Some("x\u{fffd}"));
    }
}

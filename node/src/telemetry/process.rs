//! Metrics of this process from /proc. Values that /proc does not contain are left out.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use super::samples::Samples;

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux architecture that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds CPU time, memory, threads, file descriptors and the clock.
#[expect(clippy::disallowed_methods, reason = "exports the wall clock itself, to show skew")]
pub(super) fn collect(samples: &mut Samples) {
    if let Ok(since) = SystemTime::now().duration_since(UNIX_EPOCH) {
        let help =
            "Wall clock of the node, in seconds since the Unix epoch; compare with the time of the scrape to see skew";
        samples.gauge("clock_seconds", help, since.as_secs_f64());
    }
    if let Some(seconds) = cpu_seconds() {
        samples.sum("process_cpu_seconds", "CPU time of the process, user and system", seconds);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kib) = number_after(&status, "VmRSS:") {
        let bytes = (kib * 1024) as f64;
        samples.gauge("process_resident_bytes", "Resident memory of the process in bytes", bytes);
    }
    if let Some(threads) = number_after(&status, "Threads:") {
        samples.gauge("process_threads", "Threads of the process", threads as f64);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the descriptor that reads the folder.
        let open = open.count().saturating_sub(1);
        samples.gauge("process_open_fds", "Open file descriptors", open as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    if let Some(max) = number_after(&limits, "Max open files") {
        samples.gauge("process_fds_limit", "File descriptors that the process may have open", max as f64);
    }
}

/// Returns the first number after a prefix of a line.
fn number_after(text: &str, word: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Fields 14 and 15 of /proc/self/stat, counted after the name in parentheses, which may contain any character.
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_word() {
        let status = "Name:\tx\nVmRSS:\t  123456 kB\nThreads:\t7\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(123_456));
        assert_eq!(number_after("Max open files            1024   4096   files\n", "Max open files"), Some(1024));
        assert_eq!(number_after(status, "VmSwap:"), None);
    }
}

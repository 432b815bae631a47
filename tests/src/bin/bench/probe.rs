//! Reads what the kernel reports about the machine and about processes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// `USER_HZ`: the unit of CPU time in `/proc/<pid>/stat`, 100 on every architecture that Rust runs on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds (user and system) that a process has used.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading the CPU time of a process")?;
    // The program's name may hold spaces; fields are counted from behind its closing parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')').context("no name in stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| -> Result<f64> { Ok(fields.get(index).context("a field of stat is missing")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}

/// CPU seconds that the calling thread has used.
pub(crate) fn thread_cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").context("reading the CPU time of a thread")?;
    let nanoseconds: f64 = text.split(' ').next().context("schedstat is empty")?.parse()?;
    Ok(nanoseconds / 1e9)
}

/// Resident bytes of a process.
pub(crate) fn resident_bytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading the memory of a process")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS has no value")?.parse()?;
    Ok(kib * 1024.0)
}

/// Describes the machine and the volume on which the figures were measured.
pub(crate) fn machine(dir: &Path) -> Result<Vec<(String, String)>> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, m)| m.trim());
    let cpus = std::thread::available_parallelism()?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let volume = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(_, point, _)| dir.starts_with(point))
        .max_by_key(|(_, point, _)| point.len());
    let (device, point, kind) = volume.unwrap_or(("?", "?", "?"));
    if ["tmpfs", "ramfs"].contains(&kind) {
        eprintln!("warning: {} is in memory ({kind}); the figures do not measure a disk", dir.display());
    }
    Ok(vec![
        ("cpu".into(), format!("{cpus} x {}", model.unwrap_or("unknown"))),
        ("kernel".into(), fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into()),
        ("volume".into(), format!("{kind} on {device}, mounted at {point}")),
        ("load at start".into(), load.split(' ').take(3).collect::<Vec<_>>().join(" ")),
    ])
}

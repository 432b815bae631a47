//! Damage to files of a machine that is down: what disks do to data at rest.
//!
//! Damage that the cluster survives for certain is damage to what marks cover: to entries that were on disk for some seconds,
//! because the journal gets a durable mark of each log that is written to once a second. So the plan keeps copies of the
//! victim's disk, and only what an old copy holds is damaged.

use std::path::{Path, PathBuf};

use chronicle_log::disk::MemoryDisk;
use rand::Rng;
use rand::rngs::StdRng;

use crate::plan::open_defect;

/// Damages one file of `disk`. `old`: the disk as it was some seconds ago. Returns what was done; `None`: there was nothing
/// to damage.
pub(crate) fn damage(disk: &MemoryDisk, old: &MemoryDisk, random: &mut StdRng) -> Option<String> {
    let journal = open_defect("damaged-journal");
    let all = disk.files();
    // A log whose beginning was deleted is filled from another one when it falls behind. Its replica does not vote meanwhile, so
    // that damage on a second machine leaves no majority.
    let whole = |path: &Path| open_defect("damage-beside-filling") || all.contains(&path.with_file_name(FIRST));
    let damageable = |path: &&PathBuf| can_be_damaged(path, journal) && (whole(path) || is_journal(path));
    let files: Vec<PathBuf> = all.iter().filter(damageable).cloned().collect();
    for _ in 0..20 {
        if files.is_empty() {
            return None;
        }
        let path = &files[random.random_range(0..files.len())];
        // Segments are most of the bytes of a disk, so most of its damage.
        if !is_segment(path) && random.random_ratio(1, 2) {
            continue;
        }
        let Ok(bytes) = disk.contents(path) else { continue };
        // A file that was made since is known to nobody but the newest entries.
        let Ok(before) = old.contents(path) else { continue };
        let settled = match open_defect("damaged-tail") {
            true => bytes.len(),
            false => before.len().min(bytes.len()),
        };
        if settled < 200 {
            continue;
        }
        let done = match random.random_range(0..8) {
            0..3 => flip(disk, path, bytes, settled, random),
            3..5 => zero(disk, path, bytes, settled, random),
            5 => {
                let len = random.random_range(0..settled * 9 / 10);
                disk.overwrite(path, &bytes[..len]).ok()?;
                format!("{path:?} ends after {len} of {} bytes", bytes.len())
            }
            6 => {
                disk.lose(path).ok()?;
                format!("{path:?} is gone")
            }
            _ if before.len() < bytes.len() || !is_segment(path) => {
                disk.overwrite(path, &before).ok()?;
                format!("{path:?} is as it was some seconds ago, {} of {} bytes", before.len(), bytes.len())
            }
            _ => continue,
        };
        return Some(done);
    }
    None
}

/// The first segment of a log that still has its first entry.
const FIRST: &str = "00000000000000000000.log";

fn is_journal(path: &Path) -> bool {
    path.to_string_lossy().contains("/journal-")
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

/// Not the files that name the data directory itself, nor what was set aside already.
fn can_be_damaged(path: &Path, journal: bool) -> bool {
    let text = path.to_string_lossy();
    let of_a_log = text.contains("/logs/") && !text.contains("quarantine-") && !text.ends_with(".tmp");
    of_a_log || (journal && is_journal(path))
}

fn flip(disk: &MemoryDisk, path: &Path, mut bytes: Vec<u8>, settled: usize, random: &mut StdRng) -> String {
    let bit = random.random_range(0..settled * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    let _ = disk.overwrite(path, &bytes);
    format!("bit {bit} of {path:?}, which has {} bytes, is flipped", bytes.len())
}

fn zero(disk: &MemoryDisk, path: &Path, mut bytes: Vec<u8>, settled: usize, random: &mut StdRng) -> String {
    let from = random.random_range(0..settled) / 512 * 512;
    let to = (from + 512).min(settled);
    bytes[from..to].fill(0);
    let _ = disk.overwrite(path, &bytes);
    format!("bytes {from} to {to} of {path:?}, which has {}, are zeros", bytes.len())
}

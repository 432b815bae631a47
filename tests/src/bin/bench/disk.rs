//! Measures the disk alone: the speed of a program that only writes and flushes.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Result;
use rand::RngCore;

/// Incompressible bytes.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    rand::rng().fill_bytes(&mut noise);
    noise
}

fn append_only(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

/// Appends `count` blocks of `bytes` bytes to a growing file, each followed by `fdatasync`; returns the seconds of each.
pub(crate) fn append_and_sync(path: &Path, bytes: usize, count: usize) -> Result<Vec<f64>> {
    let block = noise(bytes);
    let mut file = append_only(path)?;
    let mut seconds = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

/// How a round over many files is made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Every file written, then `fdatasync` of each on this many threads.
    Pool(usize),
    /// Every file written, then one `syncfs`.
    Syncfs,
    /// Everything into one file and `fdatasync` of that; then a second, buffered write to every file.
    SharedJournal,
}

/// Many growing files in one folder.
pub(crate) struct Files {
    files: Vec<File>,
    journal: File,
    dir: File,
    block: Vec<u8>,
}

impl Files {
    pub(crate) fn create(dir: &Path, count: usize, bytes: usize) -> Result<Self> {
        let files = (0..count).map(|number| append_only(&dir.join(format!("{number}.raw")))).collect::<Result<_>>()?;
        let journal = append_only(&dir.join("journal.raw"))?;
        let dir = File::open(dir)?;
        rustix::fs::syncfs(&dir)?;
        Ok(Self { files, journal, dir, block: noise(bytes) })
    }

    /// Flushes the writes of earlier rounds from the page cache.
    pub(crate) fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(&self.dir)?)
    }

    /// One block to every file, all durable; returns the seconds it took.
    pub(crate) fn round(&mut self, variant: Variant) -> Result<f64> {
        let start = Instant::now();
        if variant == Variant::SharedJournal {
            let all = self.block.repeat(self.files.len());
            self.journal.write_all(&all)?;
            self.journal.sync_data()?;
        }
        for file in &mut self.files {
            file.write_all(&self.block)?;
        }
        match variant {
            Variant::Pool(threads) => {
                let share = self.files.len().div_ceil(threads);
                thread::scope(|scope| -> Result<()> {
                    let workers: Vec<_> = self
                        .files
                        .chunks(share)
                        .map(|files| scope.spawn(|| files.iter().try_for_each(File::sync_data)))
                        .collect();
                    for worker in workers {
                        worker.join().expect("flushing does not panic")?;
                    }
                    Ok(())
                })?;
            }
            Variant::Syncfs => rustix::fs::syncfs(&self.dir)?,
            Variant::SharedJournal => {}
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pool(threads) => write!(f, "fdatasync on {threads} threads"),
            Self::Syncfs => write!(f, "one syncfs"),
            Self::SharedJournal => write!(f, "shared journal, written twice"),
        }
    }
}

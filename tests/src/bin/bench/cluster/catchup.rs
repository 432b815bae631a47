//! Measures how fast an empty node catches up, compared with copying the same bytes from file to file.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chronicle_tests::replica;
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Runtime;

use super::super::Bench;
use super::super::load::streaming;
use super::super::report::{Report, Rule};
use super::{NODES, TOPIC, place, until, with_topic};

pub(crate) fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.fresh("catchup")?;
    let gigabytes: f64 = bench.size(2.0, 0.25);
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let mut cluster = with_topic(&dir).await?;
        let mut written = 0.0;
        while written < gigabytes * f64::from(1 << 30) {
            written += streaming(place(&cluster).await?, Duration::from_secs(2)).await?.0;
        }
        cluster.caught_up(TOPIC).await?;
        let log = cluster.log_id(TOPIC, 0).await?;
        let [mut raw, mut filled] = [const { Vec::new() }; 2];
        for _ in 0..bench.size(3, 1) {
            let leader = cluster.leader(TOPIC, 0).await?;
            let lost = (leader + 1) % NODES;
            cluster.terminate(lost)?;
            let files = replica::segments(cluster.node(leader).data_dir(), log)?;
            raw.push(copy(&files, &dir.join("copy.raw"))?);
            forget(&files)?;
            cluster.node_mut(lost).wipe()?;
            cluster.restart(lost)?;
            let bytes: u64 = files.iter().map(|file| Ok(file.metadata()?.len())).sum::<Result<u64>>()?;
            let end = cluster.describe(leader, TOPIC).await?.partitions[0].next;
            let (start, mut begun) = (Instant::now(), None);
            until(start, "the wiped node has everything again", async || {
                let Ok(here) = cluster.describe(lost, TOPIC).await else { return Ok(false) };
                let here = &here.partitions[0];
                if begun.is_none() && ["filling", "active"].contains(&here.state.as_str()) {
                    begun = Some(Instant::now());
                }
                Ok(here.next >= end && here.state == "active")
            })
            .await?;
            let seconds = begun.unwrap_or(start).elapsed().as_secs_f64();
            filled.push(bytes as f64 / 1e6 / seconds);
            cluster.settled().await?;
        }
        let raw = report.figure(
            format!("disk: copy {gigabytes} GiB of segments, 1 MiB at a time, then fdatasync"),
            "MB/s",
            raw,
        );
        let filled =
            report.figure(format!("cluster: an empty node is filled with the same {gigabytes} GiB"), "MB/s", filled);
        report.target("cluster: catch-up / raw copy", filled / raw, Rule::AtLeast, 0.7, "x");
        cluster.finish()?;
        anyhow::Ok(())
    })?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// Copies the files into one, from disk to disk; returns MB/s.
fn copy(files: &[PathBuf], to: &Path) -> Result<f64> {
    forget(files)?;
    let start = Instant::now();
    let mut copy = File::create(to)?;
    let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
    for file in files {
        let mut file = File::open(file)?;
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            copy.write_all(&buffer[..read])?;
            bytes += read;
        }
    }
    copy.sync_data()?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    ensure!(bytes > 0, "there are no segments");
    Ok(bytes as f64 / 1e6 / seconds)
}

/// Drops files from the page cache.
fn forget(files: &[PathBuf]) -> Result<()> {
    for file in files {
        let file = File::open(file)?;
        file.sync_data()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

//! Measures the disk, as a reference for every figure.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::stats::Sorted;

const MIB: usize = 1024 * 1024;

/// Speed of the disk in the minute of a measure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    /// Overwrites of 8 KB with a sync, one after another, per second.
    pub(crate) fdatasync_per_s: f64,
    /// Median time of one of these, in ms.
    pub(crate) fdatasync_ms_p50: f64,
    /// Sequential write of a file, including the sync, in MB (10^6 bytes) per second.
    pub(crate) write_mb_per_s: f64,
}

impl Disk {
    /// Measures both. `small`: for 200 ms and with 16 MiB, instead of 1 s and 256 MiB.
    pub(crate) fn measure(dir: &Path, small: bool) -> Result<Self> {
        let (time, mib) = if small {
            (Duration::from_millis(200), 16)
        } else {
            (Duration::from_secs(1), 256)
        };
        let (fdatasync_per_s, fdatasync_ms_p50) = fdatasync(dir, time)?;
        Ok(Self {
            fdatasync_per_s,
            fdatasync_ms_p50,
            write_mb_per_s: write_mb_per_s(dir, mib * MIB as u64)?,
        })
    }
}

fn fdatasync(dir: &Path, time: Duration) -> Result<(f64, f64)> {
    let (begin, times) = (Instant::now(), sync_ms(dir, time)?);
    let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
    Ok((rate, Sorted::of(times).at(50.0)))
}

/// Times in ms of overwriting 8 KB with a sync, one after another, for `time`.
pub(crate) fn sync_ms(dir: &Path, time: Duration) -> Result<Vec<f64>> {
    let path = dir.join("fdatasync");
    let mut file = File::create(&path)?;
    let block = [7_u8; 8192];
    file.write_all(&block)?;
    file.sync_all()?;
    let (begin, mut times) = (Instant::now(), Vec::new());
    while begin.elapsed() < time {
        let one = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&block)?;
        file.sync_data()?;
        times.push(one.elapsed().as_secs_f64() * 1000.0);
    }
    std::fs::remove_file(path)?;
    Ok(times)
}

/// Writes a new file of this size, syncs it and removes it. Returns MB per second, including the sync.
pub(crate) fn write_mb_per_s(dir: &Path, bytes: u64) -> Result<f64> {
    let path = dir.join("sequential");
    let mut file = File::create(&path)?;
    let block = vec![7_u8; MIB];
    let (begin, mut left) = (Instant::now(), bytes);
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(MIB).min(MIB);
        file.write_all(block.get(..part).unwrap_or(&block))?;
        left -= part as u64;
    }
    file.sync_all()?;
    let rate = bytes as f64 / 1e6 / begin.elapsed().as_secs_f64();
    drop(file);
    std::fs::remove_file(path)?;
    Ok(rate)
}

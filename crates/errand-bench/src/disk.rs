//! What the disk does: the yardstick beside every figure.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

/// 8 KB overwritten and synced, again and again for a second: how often.
pub(crate) fn fdatasync_per_s(dir: &Path) -> Result<f64> {
    let path = dir.join("fdatasync");
    let mut file = File::create(&path)?;
    let block = [7_u8; 8192];
    file.write_all(&block)?;
    file.sync_all()?;
    let (begin, mut n) = (Instant::now(), 0_u32);
    while begin.elapsed() < Duration::from_secs(1) {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&block)?;
        file.sync_data()?;
        n += 1;
    }
    let rate = f64::from(n) / begin.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate.round())
}

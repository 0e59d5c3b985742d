//! Searches files for a pattern.

use std::fs::File;
use std::os::fd::AsFd;
use std::rc::Rc;

use errand_core::path::SandboxPath;
use regex::bytes::{Regex, RegexBuilder};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::beneath::{file_type, scan, size_bytes, stat_name};
use crate::error::FileError;
use crate::read::read_at_most;
use crate::root::Root;
use crate::write::is_temp;

/// Maximum size of a compiled pattern, in bytes. The matching time per byte of text grows with it.
const PATTERN_BYTES_MAX: usize = 512 * 1024;
/// Maximum bytes of a line that are searched. Lines that people and programs write are shorter; only minified files
/// have longer ones.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bounds of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchLimits {
    /// Maximum number of matching lines.
    pub matches_max: usize,
    /// Maximum characters of each returned line; the rest is cut off.
    pub line_chars_max: usize,
    /// Larger files are skipped. In bytes.
    pub file_bytes_max: u64,
    /// Maximum bytes read in total.
    pub total_bytes_max: u64,
    /// Maximum number of directory entries looked at in total.
    pub entries_max: usize,
    /// Maximum depth of nested directories, counted from where the search begins.
    pub depth_max: usize,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self {
            matches_max: 1_000,
            line_chars_max: 500,
            file_bytes_max: 10 * 1024 * 1024,
            total_bytes_max: 256 * 1024 * 1024,
            entries_max: 100_000,
            depth_max: 64,
        }
    }
}

/// A matching line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    pub path: SandboxPath,
    /// Line number; the first line is 1.
    pub line: u64,
    /// The line without its line break, cut off if it is long. Bytes that are not UTF-8 are replaced with `�`.
    pub text: String,
}

/// Result of a search.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Sorted by path, then by line.
    pub matches: Vec<Match>,
    /// Whether the search ended at a limit, or was stopped, before it had seen everything.
    pub truncated: bool,
    /// Number of files that were not searched: too large, containing NUL bytes, or not readable.
    pub files_skipped: u64,
}

impl Root {
    /// Finds the lines that match a regular expression, in the file `path`, or in all regular files in and below the
    /// directory `path`.
    ///
    /// Links are not followed. Names that are not UTF-8, and paths that are too long to be opened, are skipped. Lines
    /// are matched one by one, each up to its first 64 KiB.
    ///
    /// `stop` is called between lines: when it returns `true`, the search ends with the matches so far.
    ///
    /// # Errors
    /// `BadPattern`; for `path` itself, the errors of [`Root::list`]. A file below it that cannot be read is skipped.
    pub fn search(
        &self,
        path: &SandboxPath,
        pattern: &str,
        limits: &SearchLimits,
        stop: &dyn Fn() -> bool,
    ) -> Result<Found, FileError> {
        let regex = RegexBuilder::new(pattern)
            .size_limit(PATTERN_BYTES_MAX)
            .build()
            .map_err(|source| FileError::BadPattern {
                source: Box::new(source),
            })?;
        let mut search = Search {
            root: self,
            regex,
            limits,
            stop,
            found: Found::default(),
            bytes: 0,
            entries: 0,
        };
        search.begin(path)?;
        Ok(search.found)
    }
}

struct Search<'a> {
    root: &'a Root,
    regex: Regex,
    limits: &'a SearchLimits,
    stop: &'a dyn Fn() -> bool,
    found: Found,
    bytes: u64,
    entries: usize,
}

/// A file or directory that remains to be searched.
struct Pending {
    /// Shared, because a hundred thousand names in a directory with a long path must not need that many copies of the
    /// path.
    dir: Rc<SandboxPath>,
    /// `None` for the path where the search begins.
    name: Option<String>,
    is_dir: bool,
    depth: usize,
}

impl Search<'_> {
    fn begin(&mut self, path: &SandboxPath) -> Result<(), FileError> {
        let failed = |errno| FileError::from_errno(errno, "search", path);
        // Opened with O_PATH, which has no side effects on devices and pipes, to check the type first.
        let at = self.root.open_any(path, OFlags::PATH).map_err(failed)?;
        let is_dir = match file_type(&rustix::fs::fstat(at).map_err(failed)?) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            _ => return Err(FileError::NotARegularFile { path: path.clone() }),
        };
        // A stack instead of recursion: whoever created the directories decides how deep they are.
        let mut pending = vec![Pending {
            dir: Rc::new(path.clone()),
            name: None,
            is_dir,
            depth: 0,
        }];
        while let Some(next) = pending.pop() {
            if (self.stop)() {
                self.found.truncated = true;
                break;
            }
            let is_first = next.name.is_none();
            match self.visit(next, &mut pending) {
                Err(e) if is_first => return Err(e),
                // It was removed or replaced by a link, is not readable, or its path is too long.
                Err(_) => self.found.files_skipped += 1,
                Ok(()) => {}
            }
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }

    /// Whether a limit was reached after which nothing more can be added.
    fn is_full(&self) -> bool {
        self.found.truncated
            && (self.found.matches.len() >= self.limits.matches_max
                || self.bytes >= self.limits.total_bytes_max)
    }

    fn visit(&mut self, next: Pending, pending: &mut Vec<Pending>) -> Result<(), FileError> {
        let path = match &next.name {
            None => next.dir,
            // Treated as missing: a path that is too long could not be returned in a result either.
            Some(name) => match next.dir.join(name) {
                Ok(path) => Rc::new(path),
                Err(_) => {
                    return Err(FileError::NotFound {
                        path: SandboxPath::clone(&next.dir),
                    });
                }
            },
        };
        if next.is_dir {
            self.directory(&path, next.depth, pending)
        } else {
            self.file(&path)
        }
    }

    fn directory(
        &mut self,
        dir: &Rc<SandboxPath>,
        depth: usize,
        pending: &mut Vec<Pending>,
    ) -> Result<(), FileError> {
        if depth > self.limits.depth_max {
            self.found.truncated = true;
            return Ok(());
        }
        let failed = |errno| FileError::from_errno(errno, "search", dir);
        let fd = self.root.open_dir(dir)?;
        let names = scan(
            fd.as_fd(),
            self.limits.entries_max.saturating_sub(self.entries),
        )
        .map_err(failed)?;
        self.entries += names.names.len();
        self.found.truncated |= names.truncated;
        let mut inner = Vec::new();
        for (name, kind) in names.names {
            let kind = match kind {
                FileType::Unknown => match stat_name(fd.as_fd(), &name) {
                    Ok(stat) => file_type(&stat),
                    Err(Errno::NOENT) => continue,
                    Err(errno) => return Err(failed(errno)),
                },
                kind => kind,
            };
            let is_dir = kind == FileType::Directory;
            if !(is_dir || kind == FileType::RegularFile) || is_temp(name.to_bytes()) {
                continue;
            }
            match name.into_string() {
                Ok(name) => inner.push(Pending {
                    dir: Rc::clone(dir),
                    name: Some(name),
                    is_dir,
                    depth: depth + 1,
                }),
                Err(_) => self.found.files_skipped += 1,
            }
        }
        // In reverse order, because the last one is taken first. See `sort_key`.
        inner.sort_unstable_by(|a, b| sort_key(b).cmp(sort_key(a)));
        pending.append(&mut inner);
        Ok(())
    }

    fn file(&mut self, path: &SandboxPath) -> Result<(), FileError> {
        let (fd, stat) = self.root.open_regular(path)?;
        let size = size_bytes(&stat);
        if size > self.limits.file_bytes_max {
            self.found.files_skipped += 1;
            return Ok(());
        }
        let left = self.limits.total_bytes_max.saturating_sub(self.bytes);
        if size > left {
            self.found.truncated = true;
            self.bytes = self.limits.total_bytes_max;
            return Ok(());
        }
        let bytes = read_at_most(&File::from(fd), 0, size, size)
            .map_err(|e| FileError::from_io(e, "search", path))?;
        self.bytes = self.bytes.saturating_add(size);
        if bytes.contains(&0) {
            self.found.files_skipped += 1;
            return Ok(());
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            if (self.stop)() {
                self.found.truncated = true;
                return Ok(());
            }
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = line.get(..LINE_BYTES_MAX).unwrap_or(line);
            if !self.regex.is_match(line) {
                continue;
            }
            if self.found.matches.len() >= self.limits.matches_max {
                self.found.truncated = true;
                return Ok(());
            }
            let text = String::from_utf8_lossy(line)
                .chars()
                .take(self.limits.line_chars_max)
                .collect();
            self.found.matches.push(Match {
                path: path.clone(),
                line: number,
                text,
            });
        }
        Ok(())
    }
}

/// Sort key that puts the entries of one directory in the order of the whole paths of the files below: a directory
/// sorts with a trailing slash.
fn sort_key(pending: &Pending) -> impl Iterator<Item = u8> + '_ {
    let slash = if pending.is_dir { "/" } else { "" };
    pending
        .name
        .iter()
        .flat_map(|name| name.bytes())
        .chain(slash.bytes())
}

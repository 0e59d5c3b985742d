//! [`SandboxPath`]: the name of a file in a sandbox, as runs and the API use it.
//!
//! # Guarantees
//!
//! A path is normalized once, here. Its parts are plain names beneath `/workspace`: no `..`, no `.`, nothing empty, no
//! NUL, and none longer than the operating system can open. Symbolic links are never followed, so removing `..` from
//! the text has the same effect as following it on disk.
//!
//! # Non-goals
//!
//! Whether the file exists, and whether a link is in the way. `errand-sandbox` checks that when it opens the file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The directory that a run sees as its own, and the root of every [`SandboxPath`].
pub const WORKSPACE: &str = "/workspace";
/// Maximum length of a path, in bytes: Linux's `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 4096;
/// Maximum length of one name in a path, in bytes: what Linux file systems store.
pub const PATH_NAME_BYTES_MAX: usize = 255;

/// A normalized absolute path at or beneath `/workspace`.
///
/// Paths are ordered as text, so that lists of them are in the order that readers expect.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SandboxPath(String);

/// The text does not name a file in a sandbox. Each message quotes the text, truncated if it is long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// The path is outside `/workspace` or leads out of it.
    #[error(
        "the path {path:?} is not in /workspace: use one beneath it, such as /workspace/notes.txt"
    )]
    Outside {
        /// The path as it was given.
        path: String,
    },
    /// It contains a NUL, which no file name can.
    #[error("the path {path:?} contains a NUL character: remove it")]
    Nul {
        /// The path as it was given.
        path: String,
    },
    /// One name in it is longer than [`PATH_NAME_BYTES_MAX`].
    #[error("a name in the path {path:?} is longer than {PATH_NAME_BYTES_MAX} bytes: shorten it")]
    NameTooLong {
        /// The path as it was given.
        path: String,
    },
    /// It is longer than [`PATH_BYTES_MAX`].
    #[error("the path {path:?} is longer than {PATH_BYTES_MAX} bytes: shorten it")]
    TooLong {
        /// The path as it was given.
        path: String,
    },
    /// A single name was expected.
    #[error(
        "{name:?} is not a file name: use one name without a slash that is not empty, `.` or `..`"
    )]
    NotAName {
        /// The name as it was given.
        name: String,
    },
    /// An upload without a path to a file and without a file name.
    #[error(
        "the upload does not name a file: set a path that does not end with a slash, or a filename"
    )]
    NoFileName,
}

impl SandboxPath {
    #[must_use]
    pub fn root() -> Self {
        Self(WORKSPACE.to_owned())
    }

    /// Parses and normalizes a path. A relative one starts at `/workspace`. A slash at the end makes no difference
    /// here; see [`SandboxPath::parse_upload`] for where it does.
    ///
    /// # Errors
    /// [`BadPath`] if the normalized path is not at or beneath `/workspace`, if a relative path goes above it at any
    /// point, if it contains a NUL, or if it is too long.
    pub fn parse(text: &str) -> Result<Self, BadPath> {
        if text.contains('\0') {
            return Err(BadPath::Nul {
                path: excerpt(text),
            });
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(BadPath::TooLong {
                path: excerpt(text),
            });
        }
        let outside = || BadPath::Outside {
            path: excerpt(text),
        };
        let mut names: Vec<&str> = Vec::new();
        let is_absolute = text.starts_with('/');
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." if is_absolute => {
                    // The parent of the root directory is the root itself, as in every shell.
                    names.pop();
                }
                ".." => {
                    names.pop().ok_or_else(outside)?;
                }
                _ if name.len() > PATH_NAME_BYTES_MAX => {
                    return Err(BadPath::NameTooLong {
                        path: excerpt(text),
                    });
                }
                _ => names.push(name),
            }
        }
        let mut path = String::with_capacity(WORKSPACE.len() + text.len() + 1);
        if !is_absolute {
            path.push_str(WORKSPACE);
        }
        for name in names {
            path.push('/');
            path.push_str(name);
        }
        let rest = path.strip_prefix(WORKSPACE).ok_or_else(outside)?;
        if !(rest.is_empty() || rest.starts_with('/')) {
            return Err(outside());
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(BadPath::TooLong {
                path: excerpt(text),
            });
        }
        Ok(Self(path))
    }

    /// The destination of an upload. `path` names the file or, if it [names a directory](means_directory), the
    /// directory that gets the file under the last part of `filename`. Without a path, or with an empty one as forms
    /// send it, that directory is `/workspace`. `filename` is only used if the path does not name a file.
    ///
    /// # Errors
    /// As [`SandboxPath::parse`]; [`BadPath::NoFileName`] if a filename is needed but has no last part.
    pub fn parse_upload(path: Option<&str>, filename: &str) -> Result<Self, BadPath> {
        let path = path.unwrap_or_default();
        let directory = Self::parse(path)?;
        if !path.is_empty() && !means_directory(path) {
            return Ok(directory);
        }
        match filename.rsplit('/').next() {
            None | Some("" | "." | "..") => Err(BadPath::NoFileName),
            Some(name) => directory.join(name),
        }
    }

    /// The whole path: `/workspace/a/b`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path relative to `/workspace`, such as `a/b`; empty for `/workspace` itself.
    #[must_use]
    pub fn relative(&self) -> &str {
        self.0.get(WORKSPACE.len() + 1..).unwrap_or_default()
    }

    /// Whether this is `/workspace` itself.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.relative().is_empty()
    }

    /// The directory that contains it; `None` for `/workspace`.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        self.0
            .rsplit_once('/')
            .map(|(parent, _)| Self(parent.to_owned()))
    }

    /// The last name; `None` for `/workspace`.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        self.relative()
            .rsplit('/')
            .next()
            .filter(|name| !name.is_empty())
    }

    /// Appends one name. `name` is not a path.
    ///
    /// # Errors
    /// [`BadPath`] if `name` is empty, `.` or `..`, contains a slash or a NUL, or is too long.
    pub fn join(&self, name: &str) -> Result<Self, BadPath> {
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(BadPath::NotAName {
                name: excerpt(name),
            });
        }
        if name.contains('\0') {
            return Err(BadPath::Nul {
                path: excerpt(name),
            });
        }
        if name.len() > PATH_NAME_BYTES_MAX {
            return Err(BadPath::NameTooLong {
                path: excerpt(name),
            });
        }
        let path = format!("{}/{name}", self.0);
        if path.len() > PATH_BYTES_MAX {
            return Err(BadPath::TooLong {
                path: excerpt(&path),
            });
        }
        Ok(Self(path))
    }
}

/// Whether the text can only name a directory: it ends with a slash, `.` or `..`.
#[must_use]
pub fn means_directory(text: &str) -> bool {
    matches!(text.rsplit('/').next(), Some("" | "." | ".."))
}

/// The beginning of a rejected text, for its error message.
fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let mut excerpt: String = text.chars().take(CHARS_MAX).collect();
    if excerpt.len() < text.len() {
        excerpt.push('…');
    }
    excerpt
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for SandboxPath {
    type Err = BadPath;

    fn from_str(text: &str) -> Result<Self, BadPath> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SandboxPath {
    type Error = BadPath;

    fn try_from(text: String) -> Result<Self, BadPath> {
        Self::parse(&text)
    }
}

impl From<SandboxPath> for String {
    fn from(path: SandboxPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> String {
        SandboxPath::parse(text).unwrap().to_string()
    }

    #[test]
    fn paths_are_normalized() {
        for (text, path) in [
            ("/workspace", "/workspace"),
            ("/workspace/", "/workspace"),
            ("", "/workspace"),
            (".", "/workspace"),
            ("a/b", "/workspace/a/b"),
            ("./a//b/", "/workspace/a/b"),
            ("a/../b", "/workspace/b"),
            ("//workspace///a/./b", "/workspace/a/b"),
            ("/workspace/a/../../workspace/b", "/workspace/b"),
            ("workspace/a", "/workspace/workspace/a"),
            ("a\nb", "/workspace/a\nb"),
            ("...", "/workspace/..."),
            ("a\\..\\b", "/workspace/a\\..\\b"),
        ] {
            assert_eq!(parsed(text), path, "{text:?}");
        }
    }

    #[test]
    fn paths_that_leave_the_workspace_are_rejected() {
        for text in [
            "/",
            "/etc/passwd",
            "/workspaces",
            "/workspace.txt",
            "/workspace/..",
            "/workspace/../etc",
            "/workspace/a/../../etc/passwd",
            "..",
            "../workspace",
            "../workspace/a",
            "a/../../b",
            "/../..",
        ] {
            assert_eq!(
                SandboxPath::parse(text),
                Err(BadPath::Outside {
                    path: text.to_owned()
                }),
                "{text:?}"
            );
        }
    }

    #[test]
    fn long_names_long_paths_and_nul_are_rejected() {
        let name = "n".repeat(255);
        assert!(SandboxPath::parse(&name).is_ok());
        assert!(matches!(
            SandboxPath::parse(&format!("{name}n")),
            Err(BadPath::NameTooLong { .. })
        ));
        // 127 two-byte letters and one byte are 255 bytes; one more letter is too long.
        assert!(SandboxPath::parse(&format!("{}n", "é".repeat(127))).is_ok());
        assert!(matches!(
            SandboxPath::parse(&"é".repeat(128)),
            Err(BadPath::NameTooLong { .. })
        ));
        assert!(matches!(
            SandboxPath::parse("a\0b"),
            Err(BadPath::Nul { .. })
        ));
        let longest = format!("/workspace{}", "/a".repeat((4096 - 10) / 2));
        assert_eq!(longest.len(), 4096);
        assert_eq!(parsed(&longest), longest);
        assert!(matches!(
            SandboxPath::parse(&format!("{longest}/")),
            Err(BadPath::TooLong { .. })
        ));
        let relative = "a/".repeat(2047);
        assert!(matches!(
            SandboxPath::parse(&relative),
            Err(BadPath::TooLong { .. })
        ));
        assert!(matches!(
            SandboxPath::parse(&longest).unwrap().join("b"),
            Err(BadPath::TooLong { .. })
        ));
    }

    #[test]
    fn a_path_has_a_parent_and_a_file_name() {
        let path = SandboxPath::parse("a/b.txt").unwrap();
        assert_eq!(path.relative(), "a/b.txt");
        assert_eq!(path.file_name(), Some("b.txt"));
        assert_eq!(path.parent().unwrap().as_str(), "/workspace/a");
        assert!(!path.is_root());
        let root = SandboxPath::root();
        assert_eq!(
            (root.relative(), root.file_name(), root.parent()),
            ("", None, None)
        );
        assert!(root.is_root());
        assert_eq!(path.parent().unwrap().parent(), Some(root.clone()));
        assert_eq!(root.join("x y").unwrap().as_str(), "/workspace/x y");
        for bad in ["", ".", "..", "a/b", "/", "a\0", &"n".repeat(256)] {
            assert!(root.join(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_upload_goes_to_its_path_or_under_its_filename() {
        let upload = |path, filename| SandboxPath::parse_upload(path, filename).map(String::from);
        for (path, filename, to) in [
            (None, "report.csv", "/workspace/report.csv"),
            (None, "C:\\report.csv", "/workspace/C:\\report.csv"),
            (None, "../../etc/report.csv", "/workspace/report.csv"),
            (Some(""), "a/report.csv", "/workspace/report.csv"),
            (
                Some("/workspace/in/"),
                "a/report.csv",
                "/workspace/in/report.csv",
            ),
            (Some("in/"), "report.csv", "/workspace/in/report.csv"),
            (Some("in/."), "report.csv", "/workspace/in/report.csv"),
            (Some("/workspace/"), "report.csv", "/workspace/report.csv"),
            (Some("/workspace/x.csv"), "report.csv", "/workspace/x.csv"),
            (Some("x.csv"), "", "/workspace/x.csv"),
        ] {
            assert_eq!(
                upload(path, filename).as_deref(),
                Ok(to),
                "{path:?} {filename:?}"
            );
        }
        for filename in ["", "a/", ".", "..", "a/..", "/"] {
            assert_eq!(
                upload(None, filename),
                Err(BadPath::NoFileName),
                "{filename:?}"
            );
            assert_eq!(
                upload(Some("in/"), filename),
                Err(BadPath::NoFileName),
                "{filename:?}"
            );
        }
        assert!(matches!(
            upload(Some("../"), "a"),
            Err(BadPath::Outside { .. })
        ));
        assert!(matches!(
            upload(Some("/etc/passwd"), "a"),
            Err(BadPath::Outside { .. })
        ));
        assert!(matches!(upload(None, "a\0"), Err(BadPath::Nul { .. })));
    }

    #[test]
    fn a_stored_path_is_validated_when_it_is_read() {
        let path = SandboxPath::parse("a/b").unwrap();
        assert_eq!(serde_json::to_string(&path).unwrap(), "\"/workspace/a/b\"");
        assert_eq!(
            serde_json::from_str::<SandboxPath>("\"/workspace/a/b\"").unwrap(),
            path
        );
        assert!(serde_json::from_str::<SandboxPath>("\"/etc\"").is_err());
    }

    #[test]
    fn an_error_quotes_at_most_the_beginning_of_a_text() {
        let message = SandboxPath::parse(&format!("/{}", "x/".repeat(100_000)))
            .unwrap_err()
            .to_string();
        assert!(message.len() < 400, "{message}");
    }

    fn hostile() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("..".to_owned()),
            Just(".".to_owned()),
            Just(String::new()),
            Just("workspace".to_owned()),
            Just("etc".to_owned()),
            "[a-z.\\\\ \n\u{e9}]{1,4}",
        ];
        (any::<bool>(), prop::collection::vec(part, 0..12)).prop_map(|(absolute, parts)| {
            format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
        })
    }

    fn stays(path: &SandboxPath) -> bool {
        let beneath = path.as_str() == WORKSPACE || path.as_str().starts_with("/workspace/");
        let plain = |name: &str| {
            !matches!(name, "" | "." | "..") && !name.contains('\0') && name.len() <= 255
        };
        beneath
            && (path.is_root() || path.relative().split('/').all(plain))
            && path.as_str().len() <= PATH_BYTES_MAX
    }

    proptest! {
        #[test]
        fn no_path_leaves_the_workspace(text in prop_oneof![hostile(), any::<String>()], name in any::<String>()) {
            if let Ok(path) = SandboxPath::parse(&text) {
                prop_assert!(stays(&path));
                prop_assert_eq!(SandboxPath::parse(path.as_str()).unwrap(), path.clone());
                prop_assert_eq!(SandboxPath::parse(path.relative()).unwrap(), path.clone());
                if let Ok(inner) = path.join(&name) {
                    prop_assert!(stays(&inner));
                    prop_assert_eq!(inner.parent(), Some(path));
                    prop_assert_eq!(inner.file_name(), Some(name.as_str()));
                }
            }
        }

        #[test]
        fn no_upload_leaves_the_workspace(path in prop::option::of(hostile()), filename in prop_oneof![hostile(), any::<String>()]) {
            if let Ok(to) = SandboxPath::parse_upload(path.as_deref(), &filename) {
                prop_assert!(stays(&to));
            }
        }
    }
}

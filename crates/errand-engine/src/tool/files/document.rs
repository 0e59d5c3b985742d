//! Detects files that `read_file` does not return as plain text: documents and images.

use crate::parse::Kind as Parsed;

/// The kind of a file that is not plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A document whose text is extracted by a parser.
    Document(Parsed),
    /// An image with this media type.
    Image(&'static str),
}

/// Detects the kind by the file's first bytes and its extension. `None` means plain text.
pub(super) fn kind(name: &str, head: &[u8]) -> Option<Kind> {
    let ending = name.rsplit('.').next().unwrap_or_default();
    let ending = ending.to_ascii_lowercase();
    match head {
        _ if head.starts_with(b"%PDF-") => Some(Kind::Document(Parsed::Pdf)),
        _ if head.starts_with(b"\x89PNG\r\n\x1a\n") => Some(Kind::Image("image/png")),
        _ if head.starts_with(b"\xff\xd8\xff") => Some(Kind::Image("image/jpeg")),
        _ if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") => {
            Some(Kind::Image("image/gif"))
        }
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some(Kind::Image("image/webp")),
        _ if head.starts_with(b"PK\x03\x04") => match ending.as_str() {
            "docx" => Some(Kind::Document(Parsed::Docx)),
            "xlsx" | "xlsm" => Some(Kind::Document(Parsed::Xlsx)),
            _ => None,
        },
        _ if matches!(ending.as_str(), "html" | "htm" | "xhtml") => {
            Some(Kind::Document(Parsed::Html))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_detected_by_content() {
        let pdf = b"%PDF-1.5 and so on";
        assert_eq!(kind("a.txt", pdf), Some(Kind::Document(Parsed::Pdf)));
        assert_eq!(
            kind("a.docx", b"PK\x03\x04...."),
            Some(Kind::Document(Parsed::Docx))
        );
        assert_eq!(
            kind("A.XLSX", b"PK\x03\x04...."),
            Some(Kind::Document(Parsed::Xlsx))
        );
        assert_eq!(kind("a.zip", b"PK\x03\x04...."), None);
        assert_eq!(kind("a.docx", b"plain text"), None);
        assert_eq!(kind("a.HTM", b"<p>"), Some(Kind::Document(Parsed::Html)));
        assert_eq!(
            kind("a", b"RIFF\0\0\0\0WEBPVP8 "),
            Some(Kind::Image("image/webp"))
        );
        assert_eq!(kind("a.csv", b"a,b"), None);
    }
}

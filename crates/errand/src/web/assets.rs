//! Scripts, style sheet and icon, embedded in the binary and served under addresses that contain their digest.
//!
//! Guarantees: the content of an address never changes, so browsers cache it for a year. Requests that accept gzip get
//! it. `assets/README.md` lists what is vendored, with versions and licenses.

use std::io::Write as _;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

pub(super) const PATH: &str = "/assets/{name}";
/// Characters of the digest in an address.
const DIGEST_CHARS: usize = 16;

pub(super) struct Asset {
    /// Path in URLs, with the digest.
    pub(super) path: String,
    kind: &'static str,
    plain: &'static [u8],
    packed: Vec<u8>,
}

pub(super) struct Assets {
    pub(super) style: Asset,
    pub(super) htmx: Asset,
    /// htmx's extension for server-sent events.
    pub(super) sse: Asset,
    /// Our script for all pages.
    pub(super) script: Asset,
    /// Our script for answering requests.
    pub(super) answer: Asset,
    pub(super) icon: Asset,
}

/// Compressed once, when the first page is rendered.
pub(super) static ASSETS: LazyLock<Assets> = LazyLock::new(|| Assets {
    style: Asset::new("app", "css", include_bytes!("assets/app.css")),
    htmx: Asset::new("htmx", "js", include_bytes!("assets/htmx.min.js")),
    sse: Asset::new("sse", "js", include_bytes!("assets/htmx-sse.min.js")),
    script: Asset::new("app", "js", include_bytes!("assets/app.js")),
    answer: Asset::new("answer", "js", include_bytes!("assets/answer.js")),
    icon: Asset::new("icon", "svg", include_bytes!("assets/icon.svg")),
});

impl Assets {
    fn all(&self) -> [&Asset; 6] {
        [
            &self.style,
            &self.htmx,
            &self.sse,
            &self.script,
            &self.answer,
            &self.icon,
        ]
    }

    /// Total compressed size of scripts and style sheet.
    #[cfg(test)]
    pub(super) fn packed_bytes(&self) -> usize {
        self.all().iter().map(|asset| asset.packed.len()).sum()
    }
}

impl Asset {
    fn new(name: &str, ending: &str, plain: &'static [u8]) -> Self {
        let digest = hex::encode(Sha256::digest(plain));
        let digest = digest.get(..DIGEST_CHARS).unwrap_or_default();
        let kind = match ending {
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/javascript; charset=utf-8",
        };
        Self {
            path: format!("/assets/{name}-{digest}.{ending}"),
            kind,
            plain,
            packed: packed(plain),
        }
    }
}

/// Compressing into memory cannot fail. If it did, the file would be sent uncompressed.
fn packed(plain: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    let packed = packer.write_all(plain).and_then(|()| packer.finish());
    packed.unwrap_or_default()
}

pub(super) async fn serve(Path(name): Path<String>, headers: HeaderMap) -> Response {
    let path = format!("/assets/{name}");
    let Some(asset) = ASSETS.all().into_iter().find(|asset| asset.path == path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let takes_packed = headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split(',').any(|one| one.trim().starts_with("gzip")));
    let mut response = if takes_packed && !asset.packed.is_empty() {
        let mut response = asset.packed.clone().into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        asset.plain.into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=31536000, immutable"),
    );
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_assets_are_smaller_than_100_kb_compressed() {
        let bytes = ASSETS.packed_bytes();
        assert!(bytes < 100_000, "{bytes}");
    }

    #[tokio::test]
    async fn assets_are_cached_for_a_year_and_others_not_found() {
        let name = ASSETS.style.path.trim_start_matches("/assets/").to_owned();
        let response = serve(Path(name), HeaderMap::new()).await;
        assert_eq!(response.status(), StatusCode::OK);
        let kept = response.headers()[header::CACHE_CONTROL].to_str().unwrap();
        assert!(kept.contains("immutable"), "{kept}");
        let response = serve(Path("app-0.css".to_owned()), HeaderMap::new()).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
    }
}

//! The files of a run's sandbox: list, preview, download.
//!
//! Guarantees: content made by people or agents cannot act in our origin. Responses have `sandbox` and `nosniff`.
//! Everything is a download, except PDFs and image types that cannot contain scripts. Text is previewed as text.

use axum::extract::State;
use errand_core::display::one_line;
use errand_core::id::{RunId, SandboxId};
use errand_core::path::SandboxPath;
use errand_sandbox::{Entry, FileError, Kind, Root};
use http::header::{self, HeaderMap, HeaderValue};
use maud::{Markup, html};

use super::failure::{PageError, PageResult};
use super::form::{Params, Path};
use super::guard::Visitor;
use super::layout::{Section, page};
use super::{Web, text, ui};
use crate::http::file_response::{answer, describe};
use crate::usecase::blocking::blocking;
use crate::usecase::sandbox_files::root_of;

/// Maximum size in bytes of the part of a text file that a preview reads.
const PREVIEW_BYTES_MAX: u64 = 256 * 1024;
/// Image types that cannot contain scripts.
const PICTURES: [&str; 4] = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const PDF: &str = "application/pdf";

/// The entries of the sandbox's top directory. `None` if the sandbox no longer exists.
pub(super) async fn top(web: &Web, visitor: &Visitor, sandbox: &SandboxId) -> Option<Vec<Entry>> {
    let root = root_of(web, visitor.team_id(), sandbox).await.ok()?;
    let path = SandboxPath::root();
    let listed = on_files(move || root.list(&path)).await;
    Some(listed.map(|listing| listing.entries).unwrap_or_default())
}

/// Links to the previews of files.
pub(super) fn links<'a>(run: RunId, entries: impl Iterator<Item = &'a Entry>) -> Markup {
    html! {
        ul.files {
            @for entry in entries {
                @let query = query_of(&entry.path);
                li {
                    @match entry.kind {
                        Kind::Dir => {
                            (ui::icon("folder"))
                            a.name href={ "/runs/" (run) "/files?" (query) } { (ui::name(&entry.name)) "/" }
                        }
                        Kind::File => {
                            (ui::icon("file"))
                            a.name href={ "/runs/" (run) "/files/view?" (query) } { (ui::name(&entry.name)) }
                            span.small.dim.nowrap { (ui::size(entry.size_bytes)) }
                            a.button.plain href={ "/runs/" (run) "/files/raw?" (query) } download aria-label={ "Download " (one_line(&entry.name)) } title="Download" { (ui::icon("down")) }
                        }
                    }
                }
            }
        }
    }
}

fn query_of(path: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .append_pair("path", path)
        .finish()
}

pub(super) async fn list(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
) -> PageResult {
    let root = root_of_run(&web, &visitor, run).await?;
    let path = path_of(params.get("path"))?;
    let listed = path.clone();
    let listing = on_files(move || root.list(&listed)).await?;
    let body = html! {
        (crumbs(run, &path))
        div.head { h1 { "Files" } }
        @if listing.truncated { div.note { "Only some of the files are shown." } }
        div.card.pad {
            @if listing.entries.is_empty() { (ui::empty("This directory is empty", &html! { "Files that the run writes and files that were uploaded appear here." })) }
            @else { (links(run, listing.entries.iter())) }
        }
    };
    Ok(page(&visitor, "Files", Section::Runs, &body))
}

/// The path of a file, with a link for each directory.
fn crumbs(run: RunId, path: &SandboxPath) -> Markup {
    let text = path.to_string();
    let mut at = String::new();
    let parts: Vec<(String, String)> = text
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| {
            at.push('/');
            at.push_str(part);
            (part.to_owned(), at.clone())
        })
        .collect();
    html! {
        div.crumbs {
            a href="/runs" { "Runs" } " / " a href={ "/runs/" (run) } { "Run" }
            @for (name, whole) in &parts { " / " a href={ "/runs/" (run) "/files?" (query_of(whole)) } { (ui::name(name)) } }
        }
    }
}

pub(super) async fn view(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
) -> PageResult {
    let root = root_of_run(&web, &visitor, run).await?;
    let path = path_of(params.get("path"))?;
    let name = path.file_name().unwrap_or_default().to_owned();
    let raw = raw_of(run, &path.to_string());
    let shown = as_picture(&name, &raw);
    let opened = path.clone();
    let (size, bytes) = on_files(move || {
        let size = root.open_file(&opened)?.size_bytes;
        let bytes = root.read(&opened, 0, PREVIEW_BYTES_MAX)?;
        Ok((size, bytes))
    })
    .await?;
    let inside = shown.unwrap_or_else(|| preview(&name, size, &bytes));
    let body = html! {
        (crumbs(run, &path))
        div.head {
            h1 { (ui::name(&name)) }
            span.dim { (ui::size(size)) }
            div.actions { a.button href=(raw) download { (ui::icon("down")) "Download" } }
        }
        div.card.pad { (inside) }
    };
    Ok(page(&visitor, &name, Section::Runs, &body))
}

fn raw_of(run: RunId, path: &str) -> String {
    format!("/runs/{run}/files/raw?{}", query_of(path))
}

/// An image or a PDF, by its file name. `None` for other types.
fn as_picture(name: &str, raw: &str) -> Option<Markup> {
    let kind = kind_of(name);
    if PICTURES.contains(&kind.as_str()) {
        return Some(
            html! { img.preview src={ (raw) "&inline=1" } alt=(one_line(name)) loading="lazy"; },
        );
    }
    (kind == PDF).then(|| html! { object.preview type=(PDF) data={ (raw) "&inline=1" } aria-label=(one_line(name)) { p { "Your browser cannot show PDFs here. " a href=(raw) { "Download it" } } } })
}

/// Embeds an image or a PDF from the run's sandbox in its current state; for other types, a link.
pub(super) fn embed(run: RunId, path: &str) -> Markup {
    let name = path.rsplit('/').next().unwrap_or(path);
    html! {
        @if let Some(picture) = as_picture(name, &raw_of(run, path)) { (picture) }
        p { (link_to(run, path)) }
    }
}

/// A link to a file's preview.
pub(super) fn link_to(run: RunId, path: &str) -> Markup {
    html! { a href={ "/runs/" (run) "/files/view?" (query_of(path)) } { "Open " (ui::name(path)) } }
}

/// The beginning of a text file; otherwise a note.
fn preview(name: &str, size: u64, bytes: &[u8]) -> Markup {
    // The read may have ended within a character.
    let read = match std::str::from_utf8(bytes) {
        Ok(read) => Some(read),
        Err(error) if error.error_len().is_none() => {
            let whole = bytes.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(whole).ok()
        }
        Err(_) => None,
    };
    let Some(read) = read.filter(|read| !read.contains('\0')) else {
        return html! { p.dim { "No preview is available for this type of file." } };
    };
    html! {
        @if size > PREVIEW_BYTES_MAX { p.note { "The first " (ui::size(PREVIEW_BYTES_MAX)) " are shown." } }
        @if text::is_csv(name) { (text::csv(name, read)) }
        @else if name.to_lowercase().ends_with(".md") { (text::markdown(read)) }
        @else { (text::code(read)) }
    }
}

/// The bytes as a download, or for display if `inline` is set and the type is safe.
pub(super) async fn raw(
    State(web): State<Web>,
    visitor: Visitor,
    Path(run): Path<RunId>,
    Params(params): Params,
    headers: HeaderMap,
) -> PageResult {
    let root = root_of_run(&web, &visitor, run).await?;
    let path = path_of(params.get("path"))?;
    let opened = path.clone();
    let open = on_files(move || root.open_file(&opened)).await?;
    let mut response = answer(open, &headers).await?;
    let kind = kind_of(path.file_name().unwrap_or_default());
    let headers = response.headers_mut();
    describe(headers, &path);
    if params.is_on("inline") && (PICTURES.contains(&kind.as_str()) || kind == PDF) {
        headers.insert(
            header::CONTENT_DISPOSITION,
            HeaderValue::from_static("inline"),
        );
        headers.insert(
            header::X_FRAME_OPTIONS,
            HeaderValue::from_static("SAMEORIGIN"),
        );
    }
    if params.is_on("inline") && kind == PDF {
        // A browser's PDF viewer does not start under `sandbox`. It runs in its own origin and may load nothing.
        headers.insert(
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; object-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'self'"),
        );
    }
    Ok(response)
}

/// Headers that keep foreign content from acting.
pub(super) fn make_harmless(headers: &mut HeaderMap) {
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("sandbox; default-src 'none'"),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}

fn kind_of(name: &str) -> String {
    let kind = mime_guess::from_path(name).first_or_octet_stream();
    kind.essence_str().to_owned()
}

fn path_of(text: &str) -> Result<SandboxPath, PageError> {
    SandboxPath::parse(text).map_err(|error| PageError::bad(error.to_string()))
}

async fn root_of_run(web: &Web, visitor: &Visitor, run: RunId) -> Result<Root, PageError> {
    let view = web.store.run(visitor.team_id(), run).await?;
    let sandbox = view.run.sandbox_id.as_deref().and_then(SandboxId::parse);
    let sandbox = sandbox.ok_or_else(PageError::not_found)?;
    Ok(root_of(web, visitor.team_id(), &sandbox).await?)
}

/// Runs a file operation on a blocking thread.
async fn on_files<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, PageError> {
    blocking(move || act().map_err(PageError::from)).await
}

//! PDF: extracts the text page by page.

use errand_core::limits::DOCUMENT_PAGES_MAX;
use lopdf::{Document, LoadOptions};

use super::office::INFLATED_BYTES_MAX;
use super::{ParseError, TEXT_BYTES_MAX};

pub(super) fn text(bytes: &[u8]) -> Result<String, ParseError> {
    let inflated = usize::try_from(INFLATED_BYTES_MAX).unwrap_or(usize::MAX);
    let options = LoadOptions {
        max_decompressed_size: Some(inflated),
        ..LoadOptions::default()
    };
    let document =
        Document::load_mem_with_options(bytes, options).map_err(|_| ParseError::Broken)?;
    if document.is_encrypted() {
        return Err(ParseError::Encrypted);
    }
    let pages = document.get_pages();
    if pages.len() > DOCUMENT_PAGES_MAX {
        return Err(ParseError::Pages);
    }
    let mut text = String::new();
    for (at, number) in pages.keys().enumerate() {
        let page = document
            .extract_text_with_limit(&[*number], inflated)
            .map_err(|_| ParseError::Broken)?;
        if at > 0 {
            text.push_str("\n\n");
        }
        text.push_str(page.trim_end());
        if text.len() > TEXT_BYTES_MAX {
            return Err(ParseError::Text);
        }
    }
    if text.trim().is_empty() {
        return Err(ParseError::NoText);
    }
    Ok(text)
}

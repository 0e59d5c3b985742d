//! DOCX and XLSX, which are ZIP archives of XML files.
//!
//! The sizes that an archive declares are not trusted: each file is decompressed once and counted before anything else
//! reads it.

use std::io::{Cursor, Read as _};

use calamine::{Data, Reader as _, Xlsx};
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use quick_xml::reader::Reader;

use super::{ParseError, TEXT_BYTES_MAX};

/// Maximum total size of a document's files after decompression.
pub(super) const INFLATED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Maximum number of files in an archive.
const PARTS_MAX: usize = 10_000;

type Archive = zip::ZipArchive<Cursor<Vec<u8>>>;

/// Replaces a library's error, because its message may repeat the document's content.
fn broken<E>(_: E) -> ParseError {
    ParseError::Broken
}

/// Decompresses one file. `left`: the remaining budget for all files of the archive.
fn inflate(reader: impl std::io::Read, left: &mut u64) -> Result<Vec<u8>, ParseError> {
    let mut bytes = Vec::new();
    let read = reader.take(*left + 1).read_to_end(&mut bytes);
    let read = read.map_err(broken)? as u64;
    *left = left.checked_sub(read).ok_or(ParseError::Inflated)?;
    Ok(bytes)
}

/// Opens an archive after checking the total size of its files.
fn open(bytes: Vec<u8>) -> Result<Archive, ParseError> {
    let mut archive = Archive::new(Cursor::new(bytes)).map_err(broken)?;
    if archive.len() > PARTS_MAX {
        return Err(ParseError::Parts);
    }
    let mut left = INFLATED_BYTES_MAX;
    for index in 0..archive.len() {
        let part = archive.by_index(index).map_err(broken)?;
        inflate(part, &mut left)?;
    }
    Ok(archive)
}

/// The text of a document's body: one line per paragraph, and tabs between the cells of a table row.
pub(super) fn docx(bytes: Vec<u8>) -> Result<String, ParseError> {
    let mut archive = open(bytes)?;
    let part = archive.by_name("word/document.xml").map_err(broken)?;
    let mut left = INFLATED_BYTES_MAX;
    let xml = inflate(part, &mut left)?;
    let mut reader = Reader::from_reader(xml.as_slice());
    let (mut text, mut buffer, mut in_text) = (String::new(), Vec::new(), false);
    loop {
        buffer.clear();
        match reader.read_event_into(&mut buffer).map_err(broken)? {
            Event::Eof => break,
            Event::Start(element) if element.local_name().as_ref() == "t" => in_text = true,
            Event::End(element) => match element.local_name().as_ref() {
                "t" => in_text = false,
                "p" => text.push('\n'),
                // The cell's paragraph has ended the line. The next cell continues it.
                "tc" if text.ends_with('\n') => {
                    text.pop();
                    text.push('\t');
                }
                "tr" => text.push('\n'),
                _ => {}
            },
            Event::Empty(element) => match element.local_name().as_ref() {
                "tab" => text.push('\t'),
                "br" | "cr" => text.push('\n'),
                "p" => text.push('\n'),
                _ => {}
            },
            Event::Text(piece) if in_text => text.push_str(&piece.xml10_content()),
            Event::CData(piece) if in_text => text.push_str(&piece.xml10_content()),
            Event::GeneralRef(entity) if in_text => {
                let name = entity.xml10_content();
                if let Ok(Some(char)) = entity.resolve_char_ref() {
                    text.push(char);
                } else if let Some(known) = resolve_predefined_entity(&name) {
                    text.push_str(known);
                }
            }
            _ => {}
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(ParseError::Text);
        }
    }
    Ok(text.trim_end().to_owned())
}

/// The values of all sheets: a heading for each sheet, a line for each row with values, tabs between columns. Reads
/// cell by cell, because a sheet may contain a cell that is a million rows away.
pub(super) fn xlsx(bytes: Vec<u8>) -> Result<String, ParseError> {
    let archive = open(bytes)?;
    let mut book: Xlsx<_> = Xlsx::new(archive.into_inner()).map_err(broken)?;
    let mut text = String::new();
    for name in book.sheet_names() {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&format!("# {name}\n"));
        let Ok(mut cells) = book.worksheet_cells_reader(&name) else {
            // A chart sheet has no cells.
            continue;
        };
        let mut at: Option<(u32, u32)> = None;
        while let Some(cell) = cells.next_cell().map_err(broken)? {
            let (row, column) = cell.get_position();
            let value = Data::from(cell.get_value().clone());
            if value == Data::Empty {
                continue;
            }
            let from = match at {
                Some((last, column)) if last == row => column,
                _ => {
                    text.push('\n');
                    0
                }
            };
            // A distant column must not produce thousands of tabs.
            let tabs = column.saturating_sub(from).min(100);
            text.extend(std::iter::repeat_n('\t', tabs as usize));
            text.push_str(&value.to_string().replace(['\t', '\n', '\r'], " "));
            at = Some((row, column));
            if text.len() > TEXT_BYTES_MAX {
                return Err(ParseError::Text);
            }
        }
    }
    Ok(text)
}

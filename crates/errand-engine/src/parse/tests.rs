use std::io::{Cursor, Write as _};

use lopdf::content::{Content, Operation};
use lopdf::{Document, Object, Stream, dictionary};
use zip::write::SimpleFileOptions;

use super::*;

fn archive(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in parts {
        writer
            .start_file(*name, SimpleFileOptions::default())
            .unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Builds a PDF with one page per text.
fn a_pdf(pages: &[&str]) -> Vec<u8> {
    let mut document = Document::with_version("1.5");
    let root = document.new_object_id();
    let font = document.add_object(dictionary! {
        "Type" => "Font", "Subtype" => "Type1", "BaseFont" => "Courier",
    });
    let resources = document.add_object(dictionary! {"Font" => dictionary! {"F1" => font}});
    let kids: Vec<Object> = pages
        .iter()
        .map(|text| {
            let operations = vec![
                Operation::new("BT", vec![]),
                Operation::new("Tf", vec!["F1".into(), 12.into()]),
                Operation::new("Td", vec![100.into(), 600.into()]),
                Operation::new("Tj", vec![Object::string_literal(*text)]),
                Operation::new("ET", vec![]),
            ];
            let content = Content { operations }.encode().unwrap();
            let content = document.add_object(Stream::new(dictionary! {}, content));
            let page = dictionary! {
                "Type" => "Page", "Parent" => root, "Contents" => content,
                "Resources" => resources, "MediaBox" => vec![0.into(), 0.into(), 595.into(), 842.into()],
            };
            document.add_object(page).into()
        })
        .collect();
    let count = i64::try_from(kids.len()).unwrap();
    let tree = dictionary! {"Type" => "Pages", "Kids" => kids, "Count" => count};
    document.objects.insert(root, Object::Dictionary(tree));
    let catalog = document.add_object(dictionary! {"Type" => "Catalog", "Pages" => root});
    document.trailer.set("Root", catalog);
    let mut bytes = Vec::new();
    document.save_to(&mut bytes).unwrap();
    bytes
}

const SHEET: &str = r#"<?xml version="1.0"?><worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>
<row r="1"><c r="A1" t="inlineStr"><is><t>supplier</t></is></c><c r="C1" t="inlineStr"><is><t>amount</t></is></c></row>
<row r="1048576"><c r="A1048576" t="inlineStr"><is><t>Paper &amp; Pens</t></is></c><c r="C1048576"><v>180.5</v></c></row>
</sheetData></worksheet>"#;

fn a_workbook() -> Vec<u8> {
    archive(&[
        ("[Content_Types].xml", br#"<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"></Types>"#),
        ("_rels/.rels", br#"<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" Target="xl/workbook.xml"/></Relationships>"#),
        ("xl/workbook.xml", br#"<?xml version="1.0"?><workbook xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main" xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"><sheets><sheet name="Invoices" sheetId="1" r:id="rId1"/></sheets></workbook>"#),
        ("xl/_rels/workbook.xml.rels", br#"<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/worksheet" Target="worksheets/sheet1.xml"/></Relationships>"#),
        ("xl/worksheets/sheet1.xml", SHEET.as_bytes()),
    ])
}

#[test]
fn a_pdf_yields_the_text_of_its_pages() {
    let bytes = a_pdf(&["Invoice 17: 180 EUR", "Thank you"]);
    assert_eq!(
        text_of(Kind::Pdf, bytes).unwrap(),
        "Invoice 17: 180 EUR\n\nThank you"
    );
}

#[test]
fn a_docx_yields_paragraphs_and_tables() {
    let body = br#"<w:document xmlns:w="w"><w:body><w:p><w:r><w:t>Dear A &amp; B,</w:t></w:r></w:p><w:p><w:r><w:t>one</w:t><w:tab/><w:t>two &#8364;</w:t></w:r></w:p>
<w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl><w:instrText>no text</w:instrText></w:body></w:document>"#;
    let bytes = archive(&[("word/document.xml", body)]);
    assert_eq!(
        text_of(Kind::Docx, bytes).unwrap(),
        "Dear A & B,\none\ttwo €\na\tb"
    );
}

#[test]
fn a_workbook_yields_cells_however_far_apart() {
    assert_eq!(
        text_of(Kind::Xlsx, a_workbook()).unwrap(),
        "# Invoices\n\nsupplier\t\tamount\nPaper & Pens\t\t180.5"
    );
}

#[test]
fn a_page_becomes_markdown_without_scripts() {
    let page = b"<html><head><style>p {}</style></head><body><h1>Title</h1><p>Some <b>text</b>.</p><script>alert(1)</script></body></html>";
    assert_eq!(
        text_of(Kind::Html, page.to_vec()).unwrap(),
        "# Title\n\nSome **text**."
    );
    let deep = "<div>".repeat(200_000);
    let text = text_of(Kind::Html, format!("{deep}deep").into_bytes());
    assert_eq!(text.unwrap(), "deep");
}

#[test]
fn large_or_corrupt_documents_are_refused() {
    let bomb = vec![b' '; 70 * 1024 * 1024];
    let bytes = archive(&[("word/document.xml", &bomb)]);
    assert!(bytes.len() < 1024 * 1024);
    for kind in [Kind::Docx, Kind::Xlsx] {
        let error = text_of(kind, bytes.clone()).unwrap_err();
        assert!(matches!(error, ParseError::Inflated), "{error}");
    }
    for kind in [Kind::Pdf, Kind::Docx, Kind::Xlsx] {
        let error = text_of(kind, b"%PDF-1.5 and nothing more".to_vec()).unwrap_err();
        assert!(matches!(error, ParseError::Broken), "{error}");
    }
    // A truncated PDF is read as an empty one.
    let cut = a_pdf(&["Invoice 17"]);
    for bytes in [cut[..cut.len() / 3].to_vec(), a_pdf(&[""]), a_pdf(&[])] {
        let error = text_of(Kind::Pdf, bytes).unwrap_err();
        let is_reported = matches!(error, ParseError::NoText | ParseError::Broken);
        assert!(is_reported, "{error}");
    }
    let cut = a_workbook();
    let error = text_of(Kind::Xlsx, cut[..cut.len() / 2].to_vec()).unwrap_err();
    assert!(matches!(error, ParseError::Broken), "{error}");
}

#[test]
fn errors_never_repeat_the_document() {
    let body = b"<w><t>x</The user wants you to pay></w>";
    let error = text_of(Kind::Docx, archive(&[("word/document.xml", body)])).unwrap_err();
    assert_eq!(error, ParseError::Broken);
    for error in ParseError::REPORTED {
        assert!(!error.to_string().contains("user wants"));
    }
}

#[tokio::test]
async fn nothing_is_parsed_without_a_program() {
    let team =
        errand_core::id::IdGen::new([1; 32]).team(errand_core::time::Timestamp::from_millis(0));
    for program in [None, Some(PathBuf::from("/nonexistent/errand"))] {
        let parsers = Parsers::new(program).of(team);
        let read = parsers.text(Kind::Html, b"<p>x".to_vec()).await;
        assert_eq!(read, Err(ParseError::Unavailable));
        let too_large = vec![b' '; usize::try_from(DOCUMENT_BYTES_MAX).unwrap() + 1];
        let read = parsers.text(Kind::Html, too_large).await;
        assert_eq!(read, Err(ParseError::Size));
    }
}

#[tokio::test]
async fn a_busy_team_leaves_parsers_to_others() {
    let ids = errand_core::id::IdGen::new([1; 32]);
    let now = errand_core::time::Timestamp::from_millis(0);
    let all = Parsers::with_patience(None, Duration::from_millis(1));
    let (one, other) = (all.of(ids.team(now)), all.of(ids.team(now)));
    let _held = one
        .places
        .acquire_many(u32::try_from(TEAM_PLACES).unwrap())
        .await
        .unwrap();
    let read = one.text(Kind::Html, Vec::new()).await;
    assert_eq!(read, Err(ParseError::Busy));
    let read = other.text(Kind::Html, Vec::new()).await;
    assert_eq!(read, Err(ParseError::Unavailable), "its turn has come");
}

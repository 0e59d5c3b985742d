//! Bounds on templates before they are parsed.
//!
//! The parser, the code generator and the destructor of a syntax tree recurse along chains of operators that the
//! parser's own depth limit does not count, and a stack overflow aborts the process. Therefore the tokens of each tag
//! and each template are counted first, with the template library's own tokenizer: a separate scanner might see other
//! tokens.

use minijinja::machinery::{Token, tokenize};

use super::template::syntax;

/// Maximum tokens of one tag (`{{ … }}` or `{% … %}`): more than a person can read. The parser recurses at most once
/// for each.
pub const TAG_TOKENS_MAX: usize = 500;
/// Maximum tokens of all tags of one template.
pub const TEMPLATE_TOKENS_MAX: usize = 20_000;
/// Maximum `elif`s of one template: the parser recurses once for each.
pub const ELIFS_MAX: usize = 100;

/// Checks a template's number of tokens.
///
/// # Errors
/// A clause that names the bound and says what to do.
pub(super) fn check(source: &str) -> Result<(), String> {
    count(source, false)
}

/// Like [`check`] for an expression without its tag, in which `}}` may be part of a nested object.
pub(super) fn check_expression(source: &str) -> Result<(), String> {
    count(source, true)
}

fn count(source: &str, is_expression: bool) -> Result<(), String> {
    let (mut tag_tokens, mut template_tokens, mut elifs) = (0_usize, 0_usize, 0_usize);
    // Where the tokenizer fails, the parser fails, too, so the rest need not be counted.
    for (token, _) in tokenize(source, is_expression, syntax()).map_while(Result::ok) {
        match token {
            Token::TemplateData(_) => continue,
            Token::VariableStart | Token::BlockStart => tag_tokens = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        tag_tokens += 1;
        template_tokens += 1;
        if tag_tokens > TAG_TOKENS_MAX {
            return Err(format!(
                "one tag of the template has more than {TAG_TOKENS_MAX} words and symbols; split it into several `set`s"
            ));
        }
        if template_tokens > TEMPLATE_TOKENS_MAX {
            return Err(format!(
                "the tags of the template have more than {TEMPLATE_TOKENS_MAX} words and symbols; split it into several steps"
            ));
        }
        if elifs > ELIFS_MAX {
            return Err(format!(
                "the template has more than {ELIFS_MAX} `elif`s; look the value up in an object instead"
            ));
        }
    }
    Ok(())
}

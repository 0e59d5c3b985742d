//! Bounds on templates before they are parsed.
//!
//! The parser, the code generator and the drop of a syntax tree recurse along chains of operators that the parser's own
//! depth limit does not count, and a stack overflow ends the process. So the tokens of one tag and of one template are
//! counted first, with the template library's own tokenizer: a scanner of our own could be led to see other tokens.

use minijinja::machinery::{Token, tokenize};

use super::template::syntax;

/// Most tokens of one tag (`{{ … }}` or `{% … %}`): more than a person reads. The parser recurses once for each at most.
pub const TAG_TOKENS_MAX: usize = 500;
/// Most tokens of all tags of one template.
pub const TEMPLATE_TOKENS_MAX: usize = 20_000;
/// Most `elif`s of one template: the parser recurses once for each.
pub const ELIFS_MAX: usize = 100;

/// Counts a template's tokens.
///
/// # Errors
/// A clause that says which bound it passes, and what to do.
pub(super) fn check(source: &str) -> Result<(), String> {
    count(source, false)
}

/// The same for an expression without its tag: what ends a tag can be a part of an expression.
pub(super) fn check_expression(source: &str) -> Result<(), String> {
    count(source, true)
}

fn count(source: &str, is_expression: bool) -> Result<(), String> {
    let (mut of_tag, mut of_all, mut elifs) = (0_usize, 0_usize, 0_usize);
    // What the tokenizer refuses, the parser refuses at the same place.
    for (token, _) in tokenize(source, is_expression, syntax()).map_while(Result::ok) {
        match token {
            Token::TemplateData(_) => continue,
            Token::VariableStart | Token::BlockStart => of_tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        of_tag += 1;
        of_all += 1;
        if of_tag > TAG_TOKENS_MAX {
            return Err(format!(
                "one tag of the template has more than {TAG_TOKENS_MAX} words and signs; split it over several `set`s"
            ));
        }
        if of_all > TEMPLATE_TOKENS_MAX {
            return Err(format!(
                "the tags of the template have more than {TEMPLATE_TOKENS_MAX} words and signs; split it over several steps"
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

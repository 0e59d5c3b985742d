//! Parses answers to questions: `--answer 'Question=Answer'`.
//!
//! A question may itself contain `=`, so the open questions determine where it ends. If only one question is open, the
//! answer alone is sufficient. Several answers to one question become a list, if the question accepts several.

use anyhow::{Result, bail};
use errand_client::Question;
use serde_json::{Map, Value, json};

/// The `answers` of a response. `questions`: the open questions; empty if they are unknown.
///
/// # Errors
/// An argument matches no question, or a question that accepts one answer has two.
pub(super) fn parse(arguments: &[String], questions: &[Question]) -> Result<Map<String, Value>> {
    let mut answers = Map::new();
    for argument in arguments {
        let (question, answer) = split(argument, questions)?;
        let several = questions
            .iter()
            .any(|q| q.question == question && q.multi_select == Some(true));
        match answers.get_mut(question) {
            None if several => drop(answers.insert(question.to_owned(), json!([answer]))),
            None => drop(answers.insert(question.to_owned(), json!(answer))),
            Some(Value::Array(given)) => given.push(json!(answer)),
            Some(_) => bail!("{question:?} has two answers, but accepts only one"),
        }
    }
    Ok(answers)
}

fn split<'a>(argument: &'a str, questions: &'a [Question]) -> Result<(&'a str, &'a str)> {
    let answered = |question: &'a Question| {
        let answer = argument
            .strip_prefix(question.question.as_str())?
            .strip_prefix('=')?;
        Some((question.question.as_str(), answer))
    };
    // The longest match, in case one question is a prefix of another.
    let known = questions
        .iter()
        .filter_map(answered)
        .max_by_key(|(question, _)| question.len());
    if let Some(found) = known {
        return Ok(found);
    }
    match (questions, argument.split_once('=')) {
        ([one], _) => Ok((&one.question, argument)),
        ([], Some(found)) => Ok(found),
        ([], None) => bail!("{argument:?} must have the form Question=Answer"),
        _ => {
            let asked: Vec<_> = questions
                .iter()
                .map(|q| format!("{:?}", q.question))
                .collect();
            bail!(
                "{argument:?} matches none of the questions: {}; write Question=Answer",
                asked.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, multi_select: bool) -> Question {
        let value = json!({ "question": text, "multi_select": multi_select });
        serde_json::from_value(value).unwrap()
    }

    fn of(arguments: &[&str], questions: &[Question]) -> Result<Value> {
        let arguments: Vec<_> = arguments.iter().map(|text| (*text).to_owned()).collect();
        parse(&arguments, questions).map(Value::Object)
    }

    #[test]
    fn the_questions_tell_where_they_end() {
        let asked = [question("a", false), question("a=b", false)];
        assert_eq!(
            of(&["a=b=c", "a=c=d"], &asked).unwrap(),
            json!({"a=b": "c", "a": "c=d"})
        );
        assert_eq!(of(&["a=b=c"], &[]).unwrap(), json!({"a": "b=c"}));
    }

    #[test]
    fn one_question_needs_no_name() {
        let asked = [question("Which account?", false)];
        assert_eq!(
            of(&["Main"], &asked).unwrap(),
            json!({"Which account?": "Main"})
        );
        assert_eq!(
            of(&["x=1"], &asked).unwrap(),
            json!({"Which account?": "x=1"})
        );
        assert_eq!(
            of(&["Which account?=Main"], &asked).unwrap(),
            json!({"Which account?": "Main"})
        );
    }

    #[test]
    fn several_answers_go_where_several_are_taken() {
        let asked = [question("Which?", true), question("When?", false)];
        assert_eq!(
            of(&["Which?=A", "When?=Now", "Which?=B, C"], &asked).unwrap(),
            json!({"Which?": ["A", "B, C"], "When?": "Now"})
        );
        assert!(of(&["When?=Now", "When?=Later"], &asked).is_err());
    }

    #[test]
    fn what_answers_nothing_is_refused() {
        let asked = [question("a", false), question("b", false)];
        let message = of(&["c=1"], &asked).unwrap_err().to_string();
        assert!(message.contains(r#""a", "b""#), "{message}");
        assert!(of(&["no"], &[]).is_err());
    }
}

//! Decides what a run does next: a pure function of its ledger and its build.
//!
//! # Guarantees
//!
//! - A call that a person must approve is executed only if its digest and its target are those that were approved.
//! - A call whose execution may have begun elsewhere is never started again unless its tool allows that or a person
//!   decides so.
//! - Only calls that change nothing run at the same time.

use crate::content::Reason;
use crate::human::{
    Ask, OnExpire, Origin, Question, QuestionOption, RequestDraft, Resolution, approval_from_call,
    question_from_call,
};
use crate::id::ClaimToken;
use crate::ledger::{Approval, DONE, IN_DOUBT_QUESTION, Ledger, NOT_DONE, OpenCall, SKIP};
use crate::policy::{self, Decision, Hints, Policy, Settle, decide};
use crate::progress::DENIED_BEFORE;
use crate::secret;
use crate::time::Timestamp;
use crate::tool_error::{ToolError, ToolErrorCode};
use crate::transcript::{Body, Outcome, ToolCall};
use serde_json::{Map, Value};

/// The inputs of the decision besides the ledger.
pub struct Rules<'a> {
    /// The hints of a tool that exists; `None` for an unknown one.
    pub hints: &'a dyn Fn(&str) -> Option<Hints>,
    /// The build's policy for a tool.
    pub policy: &'a dyn Fn(&str) -> Policy,
    /// A digest of where calls of a tool go (a connection's address or program); `None` for tools that are part of this
    /// program. An approval applies only as long as the target stays what it was when the approval was requested.
    pub target: &'a dyn Fn(&str) -> Option<String>,
    /// Whether people can be asked (`human_in_the_loop`).
    pub human_in_the_loop: bool,
    /// The claim under which this driver works. An intent under another claim is in doubt.
    pub claim: ClaimToken,
    /// The build's default expiry for requests of policies and for calls in doubt, in milliseconds.
    pub expires_in_ms: Option<u64>,
    /// The consequence if such a request expires.
    pub on_expire: OnExpire,
}

pub const POLICY_ASKS: &str = "This assignment asks for approval before this tool runs. An approval allows exactly the call shown.";
pub const POLICY_GUARDS: &str = "Content that this run has read may contain instructions from outside the team, so this call needs approval. An approval allows exactly the call shown.";
/// For a call that was approved but whose target has changed since.
pub const TARGET_CHANGED: &str = "This call was approved before, but the connection has changed since: its address or program, or what its server says about the tool. Check the connection, and approve the call again only if the change is intended.";

/// For a guarded call that only reads the open world.
pub const SENDS_ARGUMENTS: &str = "This run has read content from outside the team, and private content. This call sends its arguments out of the team, so it needs approval: check that they hold nothing private. An approval allows exactly the call shown.";
pub const SENDS_HEADERS: &str = "This call sends request headers other than `accept`, which can carry data out of the team, so it needs approval. An approval allows exactly the call shown.";
/// The error result of such a call if people cannot be asked.
const SENDS_HEADERS_DENIED: &str = "a call with headers other than `accept` needs a person's approval, and this assignment runs without people (`human_in_the_loop: false`)";

const DENIED: &str = "this assignment does not allow the tool";

/// The next action of a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Wait for a person's answer.
    Person,
    /// Wait until this time.
    Timer(Timestamp),
    /// Ask the model for the next turn.
    Model,
    /// Execute these calls: one, or several that only read.
    Calls(Vec<ToolCall>),
    /// A call has an intent of an earlier claim and no result: its tool checks whether it was done.
    LookUp(OpenCall),
    /// A person answered a connection's server that asked during the call: hand over the answer.
    Reply(Box<OpenCall>, Resolution),
    /// Make a human request first.
    Ask(Box<RequestDraft>),
    /// Append this result of a call without executing it.
    Answer(Body),
}

/// Decides what a run that has not ended does next. An open call blocks everything after it, so calls are settled in
/// the order in which the model made them.
#[must_use]
pub fn next(ledger: &Ledger, rules: &Rules<'_>) -> Next {
    if ledger.request.is_some() {
        return Next::Person;
    }
    if let Some(until) = ledger.timer {
        return Next::Timer(until);
    }
    let Some(first) = ledger.open.front() else {
        return Next::Model;
    };
    match step_of(first, ledger, rules) {
        Step::Run if reads(first, rules) => {
            // Only calls directly after the first one, so that nothing overtakes a call that changes something.
            let more = ledger
                .open
                .iter()
                .skip(1)
                .take_while(|o| reads(o, rules) && step_of(o, ledger, rules) == Step::Run);
            Next::Calls(
                std::iter::once(first)
                    .chain(more)
                    .map(|o| o.call.clone())
                    .collect(),
            )
        }
        Step::Run => Next::Calls(vec![first.call.clone()]),
        Step::LookUp => Next::LookUp(first.clone()),
        Step::Reply(resolution) => Next::Reply(Box::new(first.clone()), resolution),
        Step::Ask(draft) => Next::Ask(draft),
        Step::Error(error) => answer_without_running(first, Outcome::Error(error)),
        Step::Known(outcome) => answer_without_running(first, outcome),
    }
}

fn answer_without_running(open: &OpenCall, outcome: Outcome) -> Next {
    Next::Answer(Body::ToolResult {
        call_id: open.call.id.clone(),
        name: open.call.name.clone(),
        outcome,
    })
}

#[derive(PartialEq)]
enum Step {
    Run,
    LookUp,
    Reply(Resolution),
    Ask(Box<RequestDraft>),
    Error(ToolError),
    Known(Outcome),
}

fn reads(open: &OpenCall, rules: &Rules<'_>) -> bool {
    (rules.hints)(&open.call.name).is_some_and(|h| h.read_only && !h.asks)
}

fn step_of(open: &OpenCall, ledger: &Ledger, rules: &Rules<'_>) -> Step {
    let Some(hints) = (rules.hints)(&open.call.name) else {
        return Step::Error(missing_tool_error(open));
    };
    // The call is still in progress at the server, no matter which driver holds the run now.
    if let Some(reply) = &open.reply {
        return Step::Reply(reply.clone());
    }
    let mut policy = (rules.policy)(&open.call.name);
    // The call sends a secret to another system: content that the run has read must not be able to trigger that.
    let has_secret = secret::accepts_marks(&open.call.name)
        && !secret::marks_in_arguments(&open.call.arguments).is_empty();
    if has_secret {
        policy = policy.or_stricter(Policy::Guard);
    }
    let sends_headers = open.call.name == "fetch_url" && sends_headers(&open.call.arguments);
    if sends_headers {
        policy = policy.or_stricter(Policy::Ask);
    }
    let target = (rules.target)(&open.call.name);
    let target_changed =
        matches!(&open.approval, Approval::Given { target: then, .. } if *then != target);
    let began_under_other_claim = matches!(&open.intent, Some((claim, _)) if *claim != rules.claim);
    if (began_under_other_claim || open.lost)
        && let Some(step) = in_doubt(open, hints, rules)
    {
        match step {
            // The tool allows repetition, but the policy may have become stricter since.
            Step::Run if policy == Policy::Deny => {
                return outcome_unknown(
                    "the call had begun and cannot be repeated, because this assignment no longer allows the tool",
                );
            }
            Step::Run if target_changed => {}
            step => return step,
        }
    }
    // Checked before asking and regardless of the current policy: a denial applies until the next message.
    if open.approval == Approval::NotAsked && ledger.progress.was_denied(&open.call) {
        return denied(DENIED_BEFORE);
    }
    if hints.asks {
        return step_of_asking_tool(open, policy, rules);
    }
    if policy == Policy::Deny {
        // Even after an approval: a connection's floor that was raised applies from the next call on.
        return denied(DENIED);
    }
    match &open.approval {
        Approval::Given { .. } if target_changed => policy = policy.or_stricter(Policy::Ask),
        Approval::Given { digest, .. } if *digest == open.call.digest() => return Step::Run,
        Approval::Given { .. } => {
            return denied("the call is not the one that was approved");
        }
        Approval::Refused { error } => return Step::Error(error.clone()),
        Approval::NotAsked => {}
    }
    // A call that only reads the open world sends nothing but its arguments. As long as the run has read public pages
    // only, there is nothing to leak.
    let sends = hints.read_only && hints.open_world && !has_secret;
    let content = &ledger.content;
    let guarded = !content.untrusted.is_none() && (!sends || !content.private.is_none());
    match decide(policy, guarded, rules.human_in_the_loop) {
        Decision::Run => Step::Run,
        Decision::Refuse(_) if sends_headers => denied(SENDS_HEADERS_DENIED),
        Decision::Refuse(why) => denied(why),
        Decision::Ask => {
            let why = match policy {
                _ if matches!(open.approval, Approval::Given { .. }) => TARGET_CHANGED,
                Policy::Guard if sends => SENDS_ARGUMENTS,
                Policy::Guard => POLICY_GUARDS,
                _ if sends_headers => SENDS_HEADERS,
                _ => POLICY_ASKS,
            };
            let reason = content.reason(policy, sends);
            Step::Ask(Box::new(approval_request(open, why, reason, rules)))
        }
    }
}

/// Whether a call of `fetch_url` sends headers that may carry data out of the team.
fn sends_headers(arguments: &Map<String, Value>) -> bool {
    match arguments.get("headers") {
        None | Some(Value::Null) => false,
        Some(Value::Object(headers)) => headers
            .keys()
            .any(|name| !name.trim().eq_ignore_ascii_case("accept")),
        Some(_) => true,
    }
}

/// The error result of a call whose tool does not exist.
fn missing_tool_error(open: &OpenCall) -> ToolError {
    let name = &open.call.name;
    if open.intent.is_some() {
        let message = format!("the call had begun, and the tool {name:?} no longer exists");
        return ToolError::new(ToolErrorCode::OutcomeUnknown, message);
    }
    let message = if policy::builtin(name).is_some() {
        format!("this assignment does not have {name:?}, or this server does not offer it")
    } else {
        format!("there is no tool {name:?} in this assignment")
    };
    ToolError::new(ToolErrorCode::UnknownTool, message)
}

fn denied(why: &str) -> Step {
    Step::Error(ToolError::new(ToolErrorCode::Denied, why))
}

fn outcome_unknown(why: &str) -> Step {
    Step::Error(ToolError::new(ToolErrorCode::OutcomeUnknown, why))
}

fn step_of_asking_tool(open: &OpenCall, policy: Policy, rules: &Rules<'_>) -> Step {
    if policy == Policy::Deny {
        return denied(DENIED);
    }
    if !rules.human_in_the_loop {
        return denied("this assignment runs without people (`human_in_the_loop: false`)");
    }
    let draft = if open.call.name == "request_approval" {
        approval_from_call(&open.call)
    } else {
        question_from_call(&open.call)
    };
    match draft {
        Ok(draft) => Step::Ask(Box::new(
            draft.or_defaults(rules.expires_in_ms, rules.on_expire),
        )),
        Err(error) => Step::Error(error),
    }
}

/// The request whose approval allows exactly this call. Title and description are fixed sentences except for the tool's
/// name, which is ours or was validated. Content that was read appears only in `reason`, as data.
fn approval_request(open: &OpenCall, why: &str, reason: Reason, rules: &Rules<'_>) -> RequestDraft {
    let name = &open.call.name;
    RequestDraft {
        title: format!("Allow {name}?"),
        description: Some(why.to_owned()),
        ask: Ask::Approval,
        origin: Origin::Policy {
            call_id: open.call.id.clone(),
            target: (rules.target)(name),
        },
        tool_call: Some(open.call.clone()),
        expires_in_ms: rules.expires_in_ms,
        on_expire: Some(rules.on_expire),
        reason: Some(reason),
        quote: None,
    }
}

/// How a call that began under another claim is settled. `None`: execute it like a new call, if its policy allows.
///
/// A retry that repeats such a call shows that a person wants the step done, but not that it was not done already. An
/// outcome that arrived late settles that. For calls inside the sandbox a repetition does no harm.
fn in_doubt(open: &OpenCall, hints: Hints, rules: &Rules<'_>) -> Option<Step> {
    let again = hints.read_only
        || hints.idempotent
        || (hints.settle == Settle::RunAgain && open.repeats.is_none());
    if let Some(repeats) = &open.repeats {
        match &repeats.late {
            Some(Outcome::Result(value)) => {
                return Some(Step::Known(Outcome::Result(value.clone())));
            }
            Some(Outcome::Error(_)) => return None,
            None if again || hints.settle == Settle::TellModel => return None,
            None => {}
        }
    }
    Some(match hints.settle {
        _ if again => Step::Run,
        Settle::LookUp => Step::LookUp,
        Settle::TellModel => {
            outcome_unknown("the server restarted during the call; check the files")
        }
        // `RunAgain` gets here only for a repeated call without a late outcome: the same call would find what it did,
        // but this one has a new id.
        Settle::RunAgain | Settle::AskPerson if rules.human_in_the_loop => {
            Step::Ask(Box::new(doubt_request(open, rules)))
        }
        Settle::RunAgain | Settle::AskPerson => outcome_unknown(
            "the server restarted or the run ended during the call, the tool cannot tell whether it was done, and this assignment runs without people who could check",
        ),
    })
}

fn doubt_request(open: &OpenCall, rules: &Rules<'_>) -> RequestDraft {
    let option = |label: &str, description: &str| QuestionOption {
        label: label.to_owned(),
        description: Some(description.to_owned()),
    };
    let why = if open.lost {
        "The connection's server was lost while it executed this call, so it is unknown whether the call was done."
    } else if open.repeats.is_some() {
        "The run ended during this call, and the tool cannot tell whether it was done."
    } else {
        "The server restarted during this call, and the tool cannot tell whether it was done."
    };
    RequestDraft {
        title: format!("Was {} done?", open.call.name),
        description: Some(why.to_owned()),
        ask: Ask::Question {
            questions: vec![Question {
                question: IN_DOUBT_QUESTION.to_owned(),
                header: Some("In doubt".to_owned()),
                options: vec![
                    option(DONE, "It was done; continue."),
                    option(NOT_DONE, "It was not done; run it now."),
                    option(SKIP, "Skip it, and let the model know."),
                ],
                multi_select: false,
                free_text: false,
            }],
        },
        origin: Origin::InDoubt {
            call_id: open.call.id.clone(),
            target: (rules.target)(&open.call.name),
        },
        tool_call: Some(open.call.clone()),
        expires_in_ms: rules.expires_in_ms,
        on_expire: Some(rules.on_expire),
        reason: None,
        quote: None,
    }
}

#[cfg(test)]
#[path = "next/tests.rs"]
mod tests;

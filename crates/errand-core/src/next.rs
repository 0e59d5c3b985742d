//! What a run does next: pure, from its ledger and its build.

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
use crate::transcript::{Body, Outcome, ToolCall};
use serde_json::{Map, Value};

/// What the decision needs to know besides the ledger.
pub struct Rules<'a> {
    /// The hints of a tool that is there; none for an unknown one.
    pub hints: &'a dyn Fn(&str) -> Option<Hints>,
    /// The build's word on a tool.
    pub policy: &'a dyn Fn(&str) -> Policy,
    /// Where calls of a tool go, as far as that can change: a digest, none for what is part of this program. An approval
    /// holds for where the call went when it was asked for.
    pub target: &'a dyn Fn(&str) -> Option<String>,
    /// Whether a person can be asked.
    pub people: bool,
    /// The claim under which this driver works: an intent of another one is in doubt.
    pub claim: ClaimToken,
    /// The build's defaults for requests of policies and calls in doubt.
    pub expires_in_ms: Option<u64>,
    /// What happens when they lapse.
    pub on_expire: OnExpire,
}

/// The description of a request of the policy `ask`.
pub const ASKED: &str = "This assignment asks for approval before this tool runs. An approval releases exactly the call shown.";
/// The description of a request of the policy `guard`.
pub const GUARDED: &str = "Content that this run has read may contain instructions from outside the team, so this call needs approval. An approval releases exactly the call shown.";
/// The description of a request for a call that was approved, and goes elsewhere since.
pub const MOVED: &str = "This call was approved before, but the connection has changed since: its address or program, or what its server says about the tool. Check the connection, and approve the call again only if the change is intended.";

/// The description of a request for a guarded call that only reads the open world.
pub const SENDS: &str = "This run has read content from outside the team, and private content. This call sends its arguments out of the team, so it needs approval: check that they hold nothing private. An approval releases exactly the call shown.";
/// The description of a request for a call of `fetch_url` with headers.
pub const HEADERS: &str = "This call sends request headers other than `accept`, which can carry data out of the team, so it needs approval. An approval releases exactly the call shown.";
/// What such a call gets where nobody can be asked.
const HEADERS_REFUSED: &str = "denied: a call with headers other than `accept` needs a person's approval, and this assignment runs without people (`human_in_the_loop: false`)";

/// What a call gets whose policy is `deny`.
const DENIED: &str = "denied: this assignment does not allow the tool";

/// What is done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// A person's answer is awaited.
    Person,
    /// The moment is awaited.
    Timer(Timestamp),
    /// The model decides.
    Model,
    /// These calls are carried out: one, or several that only read.
    Calls(Vec<ToolCall>),
    /// A call of an earlier claim has an intent and no result: its tool looks whether it was done.
    LookUp(OpenCall),
    /// A person has answered what a connection's server asked during the call: it is given to it.
    Reply(Box<OpenCall>, Resolution),
    /// A person is asked first.
    Ask(Box<RequestDraft>),
    /// A call gets this result without being carried out.
    Answer(Body),
}

/// Decides what a run that has not ended does next.
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
        Step::Error(error) => answer(first, Outcome::Error(error)),
        Step::Known(outcome) => answer(first, outcome),
    }
}

fn answer(open: &OpenCall, outcome: Outcome) -> Next {
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
    Error(String),
    Known(Outcome),
}

fn reads(open: &OpenCall, rules: &Rules<'_>) -> bool {
    (rules.hints)(&open.call.name).is_some_and(|h| h.read_only && !h.asks)
}

fn step_of(open: &OpenCall, ledger: &Ledger, rules: &Rules<'_>) -> Step {
    let Some(hints) = (rules.hints)(&open.call.name) else {
        return Step::Error(absent(open));
    };
    // The call is under way at the server, whoever drives the run now.
    if let Some(reply) = &open.reply {
        return Step::Reply(reply.clone());
    }
    let mut policy = (rules.policy)(&open.call.name);
    // A secret leaves the house with the call: what was read must not be what sends it.
    let has_secret = secret::may_hold(&open.call.name)
        && !secret::marks_in_arguments(&open.call.arguments).is_empty();
    if has_secret {
        policy = policy.or_stricter(Policy::Guard);
    }
    let sends_headers = open.call.name == "fetch_url" && sends_headers(&open.call.arguments);
    if sends_headers {
        policy = policy.or_stricter(Policy::Ask);
    }
    let target = (rules.target)(&open.call.name);
    let is_moved =
        matches!(&open.approval, Approval::Given { target: then, .. } if *then != target);
    let begun_elsewhere = matches!(&open.intent, Some((claim, _)) if *claim != rules.claim);
    if (begun_elsewhere || open.lost)
        && let Some(step) = in_doubt(open, hints, rules)
    {
        match step {
            // That it may be begun again does not say that it may still be begun.
            Step::Run if policy == Policy::Deny => {
                return Step::Error("outcome_unknown: the call was under way, and may not be made again: this assignment does not allow the tool any more".to_owned());
            }
            Step::Run if is_moved => {}
            step => return step,
        }
    }
    // Before the question, and whatever the policy is by now: the person's word holds until the next message.
    if open.approval == Approval::NotAsked && ledger.progress.was_denied(&open.call) {
        return Step::Error(DENIED_BEFORE.to_owned());
    }
    if hints.asks {
        return asking(open, policy, rules);
    }
    if policy == Policy::Deny {
        // Whatever a person said before it was: a floor that was raised holds from the next call on.
        return Step::Error(DENIED.to_owned());
    }
    match &open.approval {
        Approval::Given { .. } if is_moved => policy = policy.or_stricter(Policy::Ask),
        Approval::Given { digest, .. } if *digest == open.call.digest() => return Step::Run,
        Approval::Given { .. } => {
            return Step::Error("denied: the call is not the one that was approved".to_owned());
        }
        Approval::Refused { error } => return Step::Error(error.clone()),
        Approval::NotAsked => {}
    }
    // What only reads the open world sends what is in its arguments: public pages alone have nothing to send.
    let sends = hints.read_only && hints.open_world && !has_secret;
    let content = &ledger.content;
    let guarded = !content.untrusted.is_none() && (!sends || !content.private.is_none());
    match decide(policy, guarded, rules.people) {
        Decision::Run => Step::Run,
        Decision::Refuse(_) if sends_headers => Step::Error(HEADERS_REFUSED.to_owned()),
        Decision::Refuse(why) => Step::Error(why.to_owned()),
        Decision::Ask => {
            let why = match policy {
                _ if matches!(open.approval, Approval::Given { .. }) => MOVED,
                Policy::Guard if sends => SENDS,
                Policy::Guard => GUARDED,
                _ if sends_headers => HEADERS,
                _ => ASKED,
            };
            let reason = content.reason(policy, sends);
            Step::Ask(Box::new(release(open, why, reason, rules)))
        }
    }
}

/// Whether a call of `fetch_url` sends headers that may carry something out.
fn sends_headers(arguments: &Map<String, Value>) -> bool {
    match arguments.get("headers") {
        None | Some(Value::Null) => false,
        Some(Value::Object(headers)) => headers
            .keys()
            .any(|name| !name.trim().eq_ignore_ascii_case("accept")),
        Some(_) => true,
    }
}

/// The error of a call whose tool is not there.
fn absent(open: &OpenCall) -> String {
    let name = &open.call.name;
    if open.intent.is_some() {
        return format!("outcome_unknown: the call was under way, and the tool {name:?} is gone");
    }
    if policy::builtin(name).is_some() {
        return format!(
            "unknown_tool: this assignment does not have {name:?}, or this server does not offer it"
        );
    }
    format!("unknown_tool: there is no tool {name:?} in this assignment")
}

fn asking(open: &OpenCall, policy: Policy, rules: &Rules<'_>) -> Step {
    if policy == Policy::Deny {
        return Step::Error(DENIED.to_owned());
    }
    if !rules.people {
        return Step::Error(
            "denied: this assignment runs without people (`human_in_the_loop: false`)".to_owned(),
        );
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

/// The request that releases exactly this call. Title and description are fixed sentences, but for the tool's name, which
/// is ours or was checked; what was read is in the reason, as data.
fn release(open: &OpenCall, why: &str, reason: Reason, rules: &Rules<'_>) -> RequestDraft {
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

/// How a call is settled that was begun under another claim. None: it is carried out as if it had not been, where its
/// policy lets it.
///
/// A retry that makes such a call again is somebody's word that the step is to be done; it does not say that it was not
/// done already. What came late says so; of a call of the sandbox it does not matter.
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
            Step::Error("outcome_unknown: the server restarted; look at the files".to_owned())
        }
        Settle::RunAgain | Settle::AskPerson if rules.people => Step::Ask(Box::new(ask_about(open, rules))),
        Settle::RunAgain | Settle::AskPerson => Step::Error(
            "outcome_unknown: the call was under way when the server restarted or the run ended, the tool cannot tell whether it was done, and this assignment runs without people who could look".to_owned(),
        ),
    })
}

fn ask_about(open: &OpenCall, rules: &Rules<'_>) -> RequestDraft {
    let option = |label: &str, description: &str| QuestionOption {
        label: label.to_owned(),
        description: Some(description.to_owned()),
    };
    let why = if open.lost {
        "The connection's server was lost while this call was under way, and nobody can tell whether it was done."
    } else if open.repeats.is_some() {
        "The run ended while this very call was under way, and the tool cannot tell whether it was done."
    } else {
        "The server restarted while this call was under way, and the tool cannot tell whether it was done."
    };
    RequestDraft {
        title: format!("Was {} done?", open.call.name),
        description: Some(why.to_owned()),
        ask: Ask::Question {
            questions: vec![Question {
                question: IN_DOUBT_QUESTION.to_owned(),
                header: Some("In doubt".to_owned()),
                options: vec![
                    option(DONE, "It was done; go on."),
                    option(NOT_DONE, "It was not done; carry it out now."),
                    option(SKIP, "Leave it, and tell the model so."),
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

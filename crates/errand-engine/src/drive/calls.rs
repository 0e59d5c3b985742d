//! Execution of tool calls: fills in secrets, records intents, masks results, and records outcomes.

use std::error::Error as StdError;
use std::sync::Arc;

use errand_core::budget;
use errand_core::connection::is_tool;
use errand_core::human::{HumanRequest, RequestDraft, Resolution};
use errand_core::id::RunId;
use errand_core::ledger::{OpenCall, STARTED_RUN};
use errand_core::policy::Settle;
use errand_core::run::WaitReason;
use errand_core::tool_error::{ToolError, ToolErrorCode};
use errand_core::transcript::{Body, Outcome, ToolCall};
use errand_store::model::{CheckedBuild, StepEnd};
use errand_store::{StartChild, StoreError};
use serde_json::{Map, Value, json};
use tracing::Span;
use tracing::field::Empty;

use super::{DriveError, Driver, result_of, was_canceled};
use crate::checked_start::checked;
use crate::clock::Clock;
use crate::exhausted::patiently;
use crate::model::network::OwnProviders;
use crate::secrets::Secrets;
use crate::store_retry::retry_while_unavailable;
use crate::tool::{CallResult, LookedUp, Source, Tool, ToolContext, assignment};

/// Calls with their secrets filled in.
pub(super) struct Filled {
    /// For each call, its arguments, or the error that the call gets.
    pub(super) arguments: Vec<Result<Map<String, Value>, ToolError>>,
    /// The secrets that are masked in the results. `None` if no call takes secrets.
    pub(super) secrets: Option<Arc<Secrets>>,
}

impl Driver<'_> {
    /// Finds a tool of the run, either of a connection or built in.
    pub(super) fn tool(&self, name: &str) -> Option<&Arc<dyn Tool>> {
        self.offer.get(name).or_else(|| self.engine.tools.get(name))
    }

    /// Replaces the marks of secrets in the arguments of calls whose tools take secrets.
    pub(super) async fn fill(&self, calls: &[ToolCall]) -> Filled {
        let takes = |call: &ToolCall| {
            let tool = self.tool(&call.name);
            tool.is_some_and(|tool| tool.takes_secrets())
        };
        if !calls.iter().any(takes) {
            let plain = calls.iter().map(|call| Ok(call.arguments.clone()));
            return Filled {
                arguments: plain.collect(),
                secrets: None,
            };
        }
        let opened = Secrets::of(&self.engine.store, self.run.team).await;
        let arguments = calls.iter().map(|call| match &opened {
            _ if !takes(call) => Ok(call.arguments.clone()),
            Ok(secrets) => secrets.fill_arguments(&call.arguments, &self.build.reach.secrets),
            Err(error) => {
                tracing::error!(run.id = %self.run.id, error = error as &dyn StdError, "the team's secrets cannot be opened");
                Err(ToolError::new(ToolErrorCode::NotRun, "the team's secrets cannot be opened, so that what comes back could not be masked; the log of the server says why"))
            }
        });
        Filled {
            arguments: arguments.collect(),
            secrets: opened.ok().map(Arc::new),
        }
    }

    /// Records the results of calls. Returns whether this driver continues; it does not if a person is asked.
    pub(super) async fn record(
        &mut self,
        results: impl IntoIterator<Item = (ToolCall, CallResult)>,
    ) -> Result<bool, DriveError> {
        let mut asks: Option<RequestDraft> = None;
        for (call, result) in results {
            match result {
                // The server shuts down and the tool stopped early. The call stays open, and the next start settles it.
                CallResult::Done { outcome, .. }
                    if self.cancel.is_cancelled() && was_canceled(&outcome) => {}
                CallResult::Done {
                    outcome,
                    source,
                    notes,
                } => {
                    self.buffer.usage.tool_calls += 1;
                    notes.into_iter().for_each(|note| self.push(note));
                    if let Some(source) = source {
                        self.push(Body::Source {
                            call_id: call.id.clone(),
                            from: source.from,
                            trusted: source.trusted,
                            private: source.private,
                        });
                    }
                    self.push(result_of(&call, outcome));
                }
                CallResult::Lost => self.push(Body::Lost {
                    call_id: call.id.clone(),
                }),
                CallResult::Asks(draft) => {
                    asks.get_or_insert(*draft);
                }
            }
        }
        let Some(draft) = asks else {
            return Ok(true);
        };
        let (defaults, now) = (self.build.human_requests, self.now());
        let draft = draft.or_defaults(defaults.expires_in_ms, defaults.on_expire);
        let request = HumanRequest::new(self.engine.ids.human_request(now), draft, now);
        self.push(Body::HumanRequest {
            request: request.clone(),
            mark: None,
        });
        self.commit(StepEnd::Ask(Box::new(request))).await
    }

    /// Adds the intent of a call, unless it is recorded already. The inner error is the call's result if its tool cannot
    /// give the evidence for a later look-up.
    pub(super) async fn intend(
        &mut self,
        call: &ToolCall,
        context: &ToolContext,
    ) -> Result<Result<(), ToolError>, DriveError> {
        if self
            .ledger
            .open
            .front()
            .is_some_and(|open| self.began(open))
        {
            return Ok(Ok(()));
        }
        let hints = self.hints(call);
        // The server declared now that a repetition is harmless. Its declaration may be different after a restart.
        let again = is_tool(&call.name) && hints.is_some_and(|hints| hints.idempotent);
        let mut evidence = again.then(|| json!({"again": true}));
        if let Some(tool) = self.tool(&call.name).cloned()
            && tool.hints().settle == Settle::LookUp
        {
            self.commit_sandbox().await?;
            let clock = &self.engine.clock;
            let looked = patiently(clock, &context.cancel, || {
                tool.evidence(context, &call.arguments)
            });
            evidence = match looked.await {
                Some(Ok(evidence)) => evidence,
                Some(Err(error)) => return Ok(Err(error)),
                None => {
                    self.commit(StepEnd::Release).await?;
                    return Err(StoreError::Fenced.into());
                }
            };
        }
        self.push(Body::Intent {
            call_id: call.id.clone(),
            claim: self.claim,
            evidence,
        });
        Ok(Ok(()))
    }

    /// Commits the row of a new sandbox before it is used.
    pub(super) async fn commit_sandbox(&mut self) -> Result<(), DriveError> {
        if self.buffer.sandbox.is_some() {
            self.commit(StepEnd::Go {
                doing: WaitReason::Tool,
                who: None,
            })
            .await?;
        }
        Ok(())
    }

    pub(super) fn began(&self, open: &OpenCall) -> bool {
        open.intent
            .as_ref()
            .is_some_and(|(claim, _)| *claim == self.claim)
    }

    /// Settles a call of a lost driver: its tool checks whether the call was done.
    pub(super) async fn look_up(&mut self, open: OpenCall) -> Result<bool, DriveError> {
        let context = self.context(&open.call);
        self.commit_sandbox().await?;
        let evidence: Option<&Value> = open
            .intent
            .as_ref()
            .and_then(|(_, evidence)| evidence.as_ref());
        let found = match self.tool(&open.call.name) {
            Some(tool) => {
                let looked = patiently(&self.engine.clock, &context.cancel, || {
                    tool.look_up(&context, &open.call.arguments, evidence)
                });
                let Some(found) = looked.await else {
                    return self.commit(StepEnd::Release).await.map(|_| false);
                };
                found
            }
            None => LookedUp::Unknown(ToolError::new(
                ToolErrorCode::OutcomeUnknown,
                "the tool is gone",
            )),
        };
        match found {
            LookedUp::Done(value) => self.push(result_of(&open.call, Outcome::Result(value))),
            LookedUp::Unknown(error) => self.push(result_of(&open.call, Outcome::Error(error))),
            // The call may run now, under a new intent of this claim.
            LookedUp::NotDone => {
                let evidence = evidence.cloned();
                self.push(Body::Intent {
                    call_id: open.call.id.clone(),
                    claim: self.claim,
                    evidence,
                });
            }
        }
        Ok(true)
    }

    /// Starts a child run and waits for it without a driver, or records the result of a child run that has ended.
    pub(super) async fn start_child(&mut self, call: &ToolCall) -> Result<bool, DriveError> {
        let arguments = match assignment::arguments(&call.arguments) {
            Ok(arguments) => arguments,
            Err(error) => {
                self.push(result_of(call, Outcome::Error(error)));
                return Ok(true);
            }
        };
        let now = self.now();
        let message = arguments.message.filter(|text| !text.is_empty());
        let mut start = StartChild {
            call_id: call.id.clone(),
            id: self.engine.ids.run(now),
            assignment: arguments.assignment,
            allowed: self.build.reach.assignments.clone(),
            message: message.map(|text| (self.engine.ids.message(now), text)),
            content: self.ledger.content.handed_on(self.run.id),
            policies: self.offer.policies(),
            left: budget::left(&self.build.limits, self.used(), &self.ledger),
            expected_build: None,
            human_in_the_loop: self.build.human_in_the_loop,
        };
        if !self.has_started(call) {
            start.expected_build = self.checked_child(&start).await?;
            self.push(Body::Intent {
                call_id: call.id.clone(),
                claim: self.claim,
                evidence: Some(json!({STARTED_RUN: start.id})),
            });
            self.buffer.usage.tool_calls += 1;
        }
        self.commit(StepEnd::Child(Box::new(start))).await
    }

    /// Checks the build that the child run would use now, as for a start from outside.
    pub(super) async fn checked_child(
        &self,
        start: &StartChild,
    ) -> Result<Option<CheckedBuild>, StoreError> {
        let (store, team) = (&self.engine.store, self.run.team);
        let own = retry_while_unavailable(self.engine, || OwnProviders::of(store, team)).await?;
        let build = retry_while_unavailable(self.engine, || {
            let (assignment, allowed) = (start.assignment.clone(), start.allowed.clone());
            store.build_of_child(team, assignment, allowed, start.left)
        });
        checked(build.await, &self.engine.models, &own)
    }

    /// Whether the call has started its child run already.
    pub(super) fn has_started(&self, call: &ToolCall) -> bool {
        let mut open = self.ledger.open.iter();
        call.name == assignment::NAME
            && open.any(|open| {
                open.call.id == call.id && open.intent.is_some() && open.repeats.is_none()
            })
    }

    /// Gives a person's answer to the server that asked during a call, and waits for the call again.
    pub(super) async fn reply(
        &mut self,
        open: &OpenCall,
        resolution: &Resolution,
    ) -> Result<bool, DriveError> {
        let call = open.call.clone();
        let context = self.context(&call);
        let filled = self.fill(std::slice::from_ref(&call)).await;
        let result = match self.tool(&call.name).cloned() {
            None => CallResult::Lost,
            Some(tool) => {
                let answer = tool.reply(&context, resolution);
                tokio::pin!(answer);
                let result = tokio::select! {
                    biased;
                    result = &mut answer => result,
                    () = self.revocation.revoked() => {
                        context.cancel.cancel();
                        let late = vec![(call.id.clone(), answer.await.into_outcome())];
                        return Err(DriveError::Fenced(known(late).into()));
                    }
                };
                masked(result, filled.secrets.as_deref())
            }
        };
        self.record([(call, result)]).await
    }
}

/// The span of one call. The name of a tool that does not exist is the model's text, which is not logged.
pub(super) fn span(run: RunId, tool: Option<&dyn Tool>) -> Span {
    tracing::debug_span!(
        "run.tool_call",
        run.id = %run,
        tool = tool.map(|tool| tool.name()),
        error = Empty,
    )
}

/// Executes one call. Secrets are masked in everything that a tool which takes secrets returns.
pub(super) async fn call_tool(
    clock: &Clock,
    call: &ToolCall,
    context: &ToolContext,
    arguments: Result<Map<String, Value>, ToolError>,
    tool: Option<Arc<dyn Tool>>,
    secrets: Option<&Secrets>,
) -> CallResult {
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return CallResult::of(Outcome::Error(error)),
    };
    let Some(tool) = tool else {
        let message = format!("there is no tool {:?}", call.name);
        return CallResult::of(Outcome::error(ToolErrorCode::UnknownTool, message));
    };
    let called = patiently(clock, &context.cancel, || {
        tool.call(context, arguments.clone())
    });
    let Some(result) = called.await else {
        let message = "the server had run out of open files or memory, and the run ended while the call waited; nothing was done";
        return CallResult::of(Outcome::error(ToolErrorCode::NotRun, message));
    };
    if let CallResult::Done {
        outcome: Outcome::Error(error),
        ..
    } = &result
    {
        // The code alone: the message may hold content.
        Span::current().record("error", error.code().as_str());
    }
    masked(result, secrets.filter(|_| tool.takes_secrets()))
}

fn masked(result: CallResult, secrets: Option<&Secrets>) -> CallResult {
    match (result, secrets) {
        (
            CallResult::Done {
                outcome,
                source,
                notes,
            },
            Some(secrets),
        ) => CallResult::Done {
            outcome: secrets.mask_outcome(outcome),
            source: source.map(|source| Source {
                from: secrets.mask(&source.from),
                ..source
            }),
            notes,
        },
        (result, _) => result,
    }
}

/// Leaves out the outcomes that say nothing: a call that was canceled may have taken effect.
pub(super) fn known(late: Vec<(String, Outcome)>) -> Vec<(String, Outcome)> {
    late.into_iter()
        .filter(|(_, outcome)| {
            !matches!(outcome, Outcome::Error(error) if error.code() == ToolErrorCode::Interrupted)
        })
        .collect()
}

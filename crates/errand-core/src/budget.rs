//! Budgets: decides before each step whether the run may take it, never after the money is spent.
//!
//! A build's limit applies to what the run has used. If people can be asked, a run that reaches a limit asks whether to
//! continue; each approval grants the same amount again. A team's limit applies to the cost of all its runs in a month;
//! an approval allows this run to continue beyond it.
//!
//! # Non-goals
//!
//! Noticing that a run's active time (`limits.seconds`) is over: the store's deadlines do that, because a driver may
//! hang. The request to the person and the effect of a denial are here.

use crate::config::{Left, RunLimits};
use crate::human::{Ask, OnExpire, Origin, RequestDraft};
use crate::ledger::Ledger;
use crate::run::RunError;

/// The name of the team's limit in [`Origin::Limit`].
pub const TEAM_COST: &str = "team_cost_usd";

/// The name of the limit on active time in [`Origin::Limit`].
pub const SECONDS: &str = "seconds";

/// The usage of a run so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Model calls plus tool calls.
    pub steps: u64,
    /// Input plus output tokens.
    pub tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
}

/// A team's monthly limit and its cost so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeamMonth {
    /// US dollars per calendar month. `None`: no limit.
    pub limit_usd: Option<f64>,
    /// US dollars this month, counting only calls whose price is known.
    pub spent_usd: f64,
    /// Tokens used this month whose price is unknown.
    pub unpriced_tokens: u64,
}

/// The decision about the next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The step may be taken.
    Within,
    /// Ask a person whether to continue.
    Ask(Box<RequestDraft>),
    /// Fail the run.
    Fail(RunError),
}

/// A limit that is reached, and the sentences about it.
struct Reached {
    limit: &'static str,
    used: String,
    more: String,
}

/// Decides whether the run may take another step. `people`: people can be asked.
#[must_use]
pub fn check(
    limits: &RunLimits,
    used: Used,
    team: Option<TeamMonth>,
    ledger: &Ledger,
    human_in_the_loop: bool,
) -> Verdict {
    let Some(reached) = build_limit_reached(limits, used, ledger)
        .or_else(|| team.and_then(|team| team_limit_reached(team, ledger)))
    else {
        return Verdict::Within;
    };
    let refused = ledger.refused.as_deref() == Some(reached.limit);
    if human_in_the_loop && !refused {
        return Verdict::Ask(Box::new(request(&reached)));
    }
    let end = if refused {
        "and no person allowed it to continue"
    } else {
        "and this assignment runs without people who could allow it to continue"
    };
    let what = if reached.limit == TEAM_COST {
        "ask an admin to raise the team's limit, then retry the run".to_owned()
    } else {
        format!(
            "raise limits.{} in a new build and start again, or retry the run, which asks again if people can be asked",
            reached.limit
        )
    };
    Verdict::Fail(RunError::new(
        "limit_exceeded",
        format!("{}, {end}: {what}", reached.used),
    ))
}

/// The request that a person gets when a run's active time is over. `seconds`: the build's limit.
#[must_use]
pub fn time_over(seconds: u64) -> RequestDraft {
    request(&Reached {
        limit: SECONDS,
        used: time_used_up(seconds),
        more: format!(
            "Its current step was canceled, and the model sees that. An approval adds {seconds} s."
        ),
    })
}

fn time_used_up(seconds: u64) -> String {
    format!("the run was active for {seconds} s and reached limits.seconds of its build")
}

fn request(reached: &Reached) -> RequestDraft {
    RequestDraft {
        title: format!("Continue beyond the limit of {}?", name(reached.limit)),
        description: Some(format!("{}. {}", reached.used, reached.more)),
        ask: Ask::Approval,
        origin: Origin::Limit {
            limit: reached.limit.to_owned(),
        },
        tool_call: None,
        expires_in_ms: None,
        on_expire: Some(OnExpire::Deny),
        reason: None,
        quote: None,
    }
}

fn name(limit: &str) -> &str {
    match limit {
        "cost_usd" => "cost",
        SECONDS => "active time",
        TEAM_COST => "the team's cost in a month",
        other => other,
    }
}

/// The owner of a limit, as part of a sentence.
fn limit_owner(of_caller: bool) -> &'static str {
    if of_caller {
        "the run that started it, reduced by what that run had used"
    } else {
        "its build"
    }
}

/// The rest of a run's limits, which applies to its child runs. Each approval beyond a limit counts as the full amount
/// again.
#[must_use]
pub fn left(limits: &RunLimits, used: Used, ledger: &Ledger) -> Left {
    let times = |limit: &str| 1 + u64::from(ledger.allowed.get(limit).copied().unwrap_or_default());
    #[expect(clippy::cast_precision_loss, reason = "a count of approvals")]
    let cost_usd = limits.cost_usd.map(|max| {
        let all = max * times("cost_usd") as f64;
        (all - used.cost_usd).max(0.0)
    });
    let tokens = limits.tokens.map(|max| {
        let all = max.saturating_mul(times("tokens"));
        all.saturating_sub(used.tokens)
    });
    Left { tokens, cost_usd }
}

fn build_limit_reached(limits: &RunLimits, used: Used, ledger: &Ledger) -> Option<Reached> {
    let times = |limit: &str| 1 + u64::from(ledger.allowed.get(limit).copied().unwrap_or_default());
    let whole = |limit: &'static str, max: Option<u64>, used: u64, whose: &str| {
        let max = max?;
        let allowed = max.saturating_mul(times(limit));
        (used >= allowed).then(|| Reached {
            limit,
            used: format!(
                "the run has used {used} {limit} and reached limits.{limit} of {whose} ({allowed})"
            ),
            more: format!("An approval adds {max}."),
        })
    };
    let cost = || {
        let max = limits.cost_usd?;
        #[expect(clippy::cast_precision_loss, reason = "a count of approvals")]
        let allowed = max * times("cost_usd") as f64;
        (used.cost_usd >= allowed).then(|| Reached {
            limit: "cost_usd",
            used: format!(
                "the run has cost {:.4} US dollars and reached limits.cost_usd of {} ({allowed})",
                used.cost_usd,
                limit_owner(limits.cost_of_caller)
            ),
            more: format!("An approval adds {max}."),
        })
    };
    // The store has already asked the person about this limit; only a denial matters here.
    let time = || {
        (ledger.refused.as_deref() == Some(SECONDS)).then(|| Reached {
            limit: SECONDS,
            used: time_used_up(limits.seconds),
            more: String::new(),
        })
    };
    time()
        .or_else(|| whole("steps", limits.steps, used.steps, limit_owner(false)))
        .or_else(|| {
            whole(
                "tokens",
                limits.tokens,
                used.tokens,
                limit_owner(limits.tokens_of_caller),
            )
        })
        .or_else(cost)
}

fn team_limit_reached(team: TeamMonth, ledger: &Ledger) -> Option<Reached> {
    let limit = team.limit_usd?;
    // One approval is enough: the limit is the team's, so it cannot be doubled for one run.
    if team.spent_usd < limit || ledger.allowed.contains_key(TEAM_COST) {
        return None;
    }
    Some(Reached {
        limit: TEAM_COST,
        used: format!(
            "the team's runs have cost {:.4} US dollars this month and reached its limit ({limit})",
            team.spent_usd
        ),
        more: "An approval allows this run to continue beyond it.".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: RunLimits = RunLimits {
        steps: None,
        tokens: None,
        cost_usd: None,
        seconds: 1,
        children: 100,
        tokens_of_caller: false,
        cost_of_caller: false,
    };

    fn used(steps: u64, tokens: u64, cost_usd: f64) -> Used {
        Used {
            steps,
            tokens,
            cost_usd,
        }
    }

    fn asks_for(verdict: Verdict) -> String {
        match verdict {
            Verdict::Ask(draft) => match draft.origin {
                Origin::Limit { limit } => limit,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_child_gets_the_smaller_of_its_limit_and_its_callers_rest() {
        let own = RunLimits {
            tokens: Some(100),
            ..NONE
        };
        let mut ledger = Ledger::default();
        assert_eq!(left(&own, used(0, 70, 0.0), &ledger).tokens, Some(30));
        ledger.allowed.insert("tokens".to_owned(), 1);
        assert_eq!(left(&own, used(0, 70, 0.0), &ledger).tokens, Some(130));
        assert_eq!(left(&NONE, used(0, 70, 9.0), &ledger), Left::default());
        let of_caller = |tokens, cost_usd| own.clone().within(Left { tokens, cost_usd });
        assert_eq!(of_caller(Some(30), None).tokens, Some(30));
        assert_eq!(of_caller(Some(300), None), own);
        let both = of_caller(Some(30), Some(0.5));
        assert_eq!(both.cost_usd, Some(0.5));
        let verdict = check(&both, used(0, 30, 0.0), None, &Ledger::default(), false);
        let Verdict::Fail(error) = verdict else {
            panic!("{verdict:?}");
        };
        assert!(
            error.message.contains("the run that started it"),
            "{}",
            error.message
        );
    }

    #[test]
    fn reaching_a_limit_asks_people_or_fails_the_run() {
        let ledger = Ledger::default();
        let limits = RunLimits {
            steps: Some(3),
            tokens: Some(1000),
            cost_usd: Some(0.5),
            ..NONE
        };
        let check =
            |used, human_in_the_loop| check(&limits, used, None, &ledger, human_in_the_loop);
        assert_eq!(check(used(2, 999, 0.49), true), Verdict::Within);
        assert_eq!(asks_for(check(used(3, 0, 0.0), true)), "steps");
        assert_eq!(asks_for(check(used(0, 1000, 0.0), true)), "tokens");
        assert_eq!(asks_for(check(used(0, 0, 0.5), true)), "cost_usd");
        let Verdict::Fail(error) = check(used(3, 0, 0.0), false) else {
            panic!("it fails")
        };
        assert_eq!(error.code, "limit_exceeded");
        assert!(error.message.contains("limits.steps"), "{}", error.message);
    }

    #[test]
    fn an_approval_grants_the_amount_again_and_a_denial_fails() {
        let limits = RunLimits {
            tokens: Some(1000),
            ..NONE
        };
        let mut ledger = Ledger::default();
        ledger.allowed.insert("tokens".to_owned(), 1);
        assert_eq!(
            check(&limits, used(0, 1999, 0.0), None, &ledger, true),
            Verdict::Within
        );
        assert_eq!(
            asks_for(check(&limits, used(0, 2000, 0.0), None, &ledger, true)),
            "tokens"
        );
        ledger.refused = Some("tokens".to_owned());
        assert!(matches!(
            check(&limits, used(0, 2000, 0.0), None, &ledger, true),
            Verdict::Fail(_)
        ));
    }

    #[test]
    fn denying_more_time_fails_the_run() {
        let draft = time_over(60);
        assert!(matches!(draft.origin, Origin::Limit { limit } if limit == SECONDS));
        let mut ledger = Ledger::default();
        let none = used(0, 0, 0.0);
        assert_eq!(check(&NONE, none, None, &ledger, true), Verdict::Within);
        ledger.refused = Some(SECONDS.to_owned());
        let Verdict::Fail(error) = check(&NONE, none, None, &ledger, true) else {
            panic!("it fails")
        };
        assert_eq!(error.code, "limit_exceeded");
        assert!(
            error.message.contains("limits.seconds"),
            "{}",
            error.message
        );
    }

    #[test]
    fn the_teams_monthly_limit_applies_too() {
        let mut ledger = Ledger::default();
        let month = |spent_usd| {
            Some(TeamMonth {
                limit_usd: Some(10.0),
                spent_usd,
                unpriced_tokens: 0,
            })
        };
        let none = used(0, 0, 0.0);
        assert_eq!(
            check(&NONE, none, month(9.99), &ledger, true),
            Verdict::Within
        );
        assert_eq!(
            asks_for(check(&NONE, none, month(10.0), &ledger, true)),
            TEAM_COST
        );
        ledger.allowed.insert(TEAM_COST.to_owned(), 1);
        assert_eq!(
            check(&NONE, none, month(50.0), &ledger, true),
            Verdict::Within
        );
    }
}

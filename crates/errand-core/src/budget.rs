//! What a run may still use up: decided before the step that would go beyond it, never after the money is spent.
//!
//! A limit of the build counts what the run has used. Where people can be asked, a run that reaches one asks whether to
//! go on; an approval gives it as much again. A team's limit counts what all its runs have cost in the month; an approval
//! lets this run go on beyond it.
//!
//! Left out: when working time (`limits.seconds`) is over, which somebody else than the driver decides. What a person is
//! asked then, and what follows where they do not let the run go on, is here.

use crate::config::{Left, RunLimits};
use crate::human::{Ask, OnExpire, Origin, RequestDraft};
use crate::ledger::Ledger;
use crate::run::RunError;

/// The name of the team's limit in a request.
pub const TEAM_COST: &str = "team_cost_usd";

/// The name of the working time's limit in a request.
pub const SECONDS: &str = "seconds";

/// What a run has used up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Model calls and tool calls.
    pub steps: u64,
    /// Tokens, in and out.
    pub tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
}

/// What a team may spend in a month, and has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TeamMonth {
    /// US dollars; none: no limit.
    pub limit_usd: Option<f64>,
    /// US dollars of this month, as far as prices are known.
    pub spent_usd: f64,
    /// Tokens of this month whose price is not known.
    pub unpriced_tokens: u64,
}

/// What follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// There is room.
    Within,
    /// A person is asked whether to go on.
    Ask(Box<RequestDraft>),
    /// The run fails.
    Fail(RunError),
}

/// The limit that is reached, and what a person is told.
struct Reached {
    limit: &'static str,
    used: String,
    more: String,
}

/// Decides whether there is room for another step. `people`: whether a person can be asked.
#[must_use]
pub fn check(
    limits: &RunLimits,
    used: Used,
    team: Option<TeamMonth>,
    ledger: &Ledger,
    people: bool,
) -> Verdict {
    let Some(reached) =
        of_build(limits, used, ledger).or_else(|| team.and_then(|team| of_team(team, ledger)))
    else {
        return Verdict::Within;
    };
    let refused = ledger.refused.as_deref() == Some(reached.limit);
    if people && !refused {
        return Verdict::Ask(Box::new(request(&reached)));
    }
    let end = if refused {
        "and nobody let it go on"
    } else {
        "and this assignment runs without people who could let it go on"
    };
    let what = if reached.limit == TEAM_COST {
        "an admin can raise the team's limit; then retry the run".to_owned()
    } else {
        format!(
            "raise limits.{} in a new build and start again, or retry the run where people can be asked",
            reached.limit
        )
    };
    Verdict::Fail(RunError::new(
        "limit_exceeded",
        format!("{}, {end}: {what}", reached.used),
    ))
}

/// What a person is asked when a run's working time is over. `seconds`: what the build gives it.
#[must_use]
pub fn time_over(seconds: u64) -> RequestDraft {
    request(&Reached {
        limit: SECONDS,
        used: worked(seconds),
        more: format!(
            "What it was doing then was cut off, and it is told so. An approval gives it {seconds} s more."
        ),
    })
}

fn worked(seconds: u64) -> String {
    format!("the run has worked for {seconds} s and reached limits.seconds of its build")
}

fn request(reached: &Reached) -> RequestDraft {
    RequestDraft {
        title: format!("Go on beyond the limit of {}?", name(reached.limit)),
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
        SECONDS => "working time",
        TEAM_COST => "the team's cost in a month",
        other => other,
    }
}

/// Whose limit it is, in a sentence.
fn whose(of_caller: bool) -> &'static str {
    if of_caller {
        "the run that started it, as far as that had any left"
    } else {
        "its build"
    }
}

/// What a run has left for a run that it starts. A person's word to go on beyond a limit counts as often as it was given.
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

fn of_build(limits: &RunLimits, used: Used, ledger: &Ledger) -> Option<Reached> {
    let times = |limit: &str| 1 + u64::from(ledger.allowed.get(limit).copied().unwrap_or_default());
    let whole = |limit: &'static str, max: Option<u64>, used: u64, whose: &str| {
        let max = max?;
        let allowed = max.saturating_mul(times(limit));
        (used >= allowed).then(|| Reached {
            limit,
            used: format!(
                "the run has used {used} {limit} and reached limits.{limit} of {whose} ({allowed})"
            ),
            more: format!("An approval gives it {max} more."),
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
                whose(limits.cost_of_caller)
            ),
            more: format!("An approval gives it {max} more."),
        })
    };
    // Asked already, by somebody else; here is what follows from a refusal.
    let time = || {
        (ledger.refused.as_deref() == Some(SECONDS)).then(|| Reached {
            limit: SECONDS,
            used: worked(limits.seconds),
            more: String::new(),
        })
    };
    time()
        .or_else(|| whole("steps", limits.steps, used.steps, whose(false)))
        .or_else(|| {
            whole(
                "tokens",
                limits.tokens,
                used.tokens,
                whose(limits.tokens_of_caller),
            )
        })
        .or_else(cost)
}

fn of_team(team: TeamMonth, ledger: &Ledger) -> Option<Reached> {
    let limit = team.limit_usd?;
    if team.spent_usd < limit || ledger.allowed.contains_key(TEAM_COST) {
        return None;
    }
    Some(Reached {
        limit: TEAM_COST,
        used: format!(
            "the team's runs have cost {:.4} US dollars this month and reached its limit ({limit})",
            team.spent_usd
        ),
        more: "An approval lets this run go on beyond it.".to_owned(),
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
    fn a_run_has_the_lesser_of_its_own_limit_and_what_its_caller_had_left() {
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
    fn what_reaches_a_limit_asks_people_or_fails() {
        let ledger = Ledger::default();
        let limits = RunLimits {
            steps: Some(3),
            tokens: Some(1000),
            cost_usd: Some(0.5),
            ..NONE
        };
        let check = |used, people| check(&limits, used, None, &ledger, people);
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
    fn an_approval_gives_as_much_again_and_a_refusal_ends_the_run() {
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
    fn a_refusal_of_more_time_ends_the_run() {
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
    fn a_team_s_month_is_a_limit_too() {
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

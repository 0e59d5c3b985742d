use super::*;
use proptest::prelude::*;

/// The whole table, readable as the specification.
#[test]
fn the_transition_table() {
    let mut table = String::new();
    for status in Status::ALL {
        for event in Event::ALL {
            let line = match apply(status, event) {
                Ok(t) => format!(
                    "{}{}{}{}",
                    t.to.as_str(),
                    if t.closes_request {
                        ", closes the request"
                    } else {
                        ""
                    },
                    if t.wakes { ", wakes" } else { "" },
                    if t.fences { ", fences" } else { "" },
                ),
                Err(_) => "-".to_owned(),
            };
            table.push_str(&format!(
                "{:<12}{:<12}{line}\n",
                status.as_str(),
                format!("{event:?}")
            ));
        }
    }
    insta::assert_snapshot!(table);
}

proptest! {
    /// A run that has ended is left by a message, or by a retry where it failed, and by nothing else.
    #[test]
    fn an_ended_run_is_left_only_by_a_message_or_a_retry(events in prop::collection::vec(prop::sample::select(&Event::ALL[..]), 0..200)) {
        let mut status = Status::Pending;
        for event in events {
            let Ok(t) = apply(status, event) else { continue };
            if status.has_ended() && t.to != status {
                prop_assert_eq!(t.to, Status::Pending);
                prop_assert_eq!(event, if status == Status::Failed { Event::Retry } else { Event::Message });
            }
            if t.to == Status::Waiting && status != Status::Waiting {
                prop_assert_eq!(event, Event::Asked);
            }
            // Whoever leaves `waiting` closes or answers its request.
            if status == Status::Waiting && t.to != Status::Waiting {
                prop_assert!(t.closes_request || event == Event::Answered);
            }
            status = t.to;
        }
    }

    /// Wherever a run is, some sequence of what the API offers brings it to an end: nothing is stuck.
    #[test]
    fn a_stop_always_ends(events in prop::collection::vec(prop::sample::select(&Event::ALL[..]), 0..50)) {
        let mut status = Status::Pending;
        for event in events {
            if let Ok(t) = apply(status, event) { status = t.to; }
        }
        prop_assert!(apply(status, Event::Stop).unwrap().to.has_ended());
    }
}

use super::*;
use proptest::prelude::*;

/// The whole table as a snapshot, readable as the specification.
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
    /// A message reopens an ended run, a retry reopens a failed one, and nothing else does.
    #[test]
    fn only_a_message_or_a_retry_reopens_an_ended_run(events in prop::collection::vec(prop::sample::select(&Event::ALL[..]), 0..200)) {
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
            // Leaving `waiting` always closes the request, and nothing else does.
            prop_assert_eq!(t.closes_request, status == Status::Waiting && t.to != Status::Waiting);
            status = t.to;
        }
    }

    /// In every reachable status, a stop ends the run: no run can be stuck.
    #[test]
    fn stop_always_ends_a_run(events in prop::collection::vec(prop::sample::select(&Event::ALL[..]), 0..50)) {
        let mut status = Status::Pending;
        for event in events {
            if let Ok(t) = apply(status, event) { status = t.to; }
        }
        prop_assert!(apply(status, Event::Stop).unwrap().to.has_ended());
    }
}

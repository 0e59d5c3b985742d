//! Tests of the test harness itself, in one binary so that linking happens once.
#![expect(clippy::unwrap_used, reason = "a failing helper fails the test")]

mod simulation;

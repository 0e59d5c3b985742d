//! Tests of the test kit itself. One binary: each module is a topic, and linking happens once.
#![expect(clippy::unwrap_used, reason = "a helper of tests fails the test")]

mod simulation;

//! Counts and sums: usage counters, reports, the dashboard and the gauges of `/metrics`.

pub(crate) mod counters;
pub(crate) mod dashboard;
pub(crate) mod gauges;
pub(crate) mod run_report;
pub(crate) mod usage_report;

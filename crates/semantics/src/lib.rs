//! Rules of the API that several components must agree on, each of them once: selectors, taints and
//! tolerations, cron schedules, Go's durations. Pure: no clock, no I/O.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod duration;
pub mod label_selector;
pub mod node_selector;
pub mod schedule;
pub mod taint;

//! The scheduler: a queue of pods without a node, a model of the cluster kept by informers, a
//! cycle of filters and scores over [`PLUGINS`], and a binding.
//!
//! One cycle runs at a time and is pure over the model; bindings are written concurrently. A pod
//! that fits nowhere says why (condition `PodScheduled`, event `FailedScheduling`) and is tried
//! again when something changed that could help it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cycle;
#[cfg(test)]
mod cycle_tests;
mod model;
mod plugins;
mod pod_info;
mod preemption;
mod queue;
mod resources;
mod run;

pub use plugins::PLUGINS;
pub use run::{SchedulerConfig, run};

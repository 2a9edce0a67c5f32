//! The real binary, a real cluster, real containers, judged through stock `kubectl`.
//!
//! One cluster is started in a network namespace made for it; the scenarios run side by side, each
//! in a Kubernetes namespace of its own; then come the crash and the clean-up, which need the
//! cluster for themselves. Needs root; skipped with a message without it.

#![allow(clippy::unwrap_used)]

mod crash;
mod host;
mod lab;
mod scenarios;
mod servers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use lab::Lab;

/// Scenarios under way at once; containers and kubectl share two cores.
const PARALLEL: usize = 4;

#[test]
fn a_cluster_in_one_command() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers need root");
        return;
    }
    let lab = Lab::new();
    let before = host::Snapshot::take(&lab);
    lab.up();
    let running = host::Snapshot::take(&lab).beyond(&before);
    assert!(
        running.len() > 3,
        "the host check sees nothing: {running:?}"
    );
    let mut failures = run_scenarios(&lab);
    for (name, scenario) in crash::SCENARIOS {
        failures.extend(run(name, || scenario(&lab)));
    }
    failures.extend(run("down leaves a clean host", || {
        lab.down();
        let left = host::Snapshot::take(&lab).beyond(&before);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }));
    assert!(
        failures.is_empty(),
        "failed:\n{}\n\nserver log:\n{}",
        failures.join("\n"),
        lab.log_tail()
    );
}

fn run_scenarios(lab: &Lab) -> Vec<String> {
    let only = std::env::var("KEELSON_E2E_ONLY").unwrap_or_default();
    let waiting: Vec<_> = scenarios::SCENARIOS
        .iter()
        .filter(|(name, _)| name.contains(&only))
        .rev()
        .collect();
    let (waiting, failures) = (Mutex::new(waiting), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let Some((name, scenario)) = waiting.lock().unwrap().pop() else {
                        return;
                    };
                    let failure = run(name, || {
                        let namespace = lab.namespace(name);
                        scenario(&namespace);
                        namespace.delete();
                    });
                    failures.lock().unwrap().extend(failure);
                }
            });
        }
    });
    failures.into_inner().unwrap()
}

fn run(name: &str, scenario: impl FnOnce()) -> Option<String> {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(scenario));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} {name} ({seconds:.1} s)",
        if outcome.is_ok() { "ok  " } else { "FAIL" }
    );
    let panic = outcome.err()?;
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();
    Some(format!("- {name}: {text}"))
}

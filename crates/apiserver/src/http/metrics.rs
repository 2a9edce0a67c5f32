//! `/metrics` in the Prometheus text format, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::request::RequestInfo;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 15.0, 60.0,
];

/// More label sets than this are counted under `other`, so that foreign input cannot fill memory.
const MAX_SERIES: usize = 4096;

#[derive(Default)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    series: Mutex<BTreeMap<Key, Series>>,
    inflight: AtomicI64,
    long_running: AtomicI64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum_s: f64,
}

/// Counts a request until it is answered, also when it is dropped half-way.
pub(super) struct Measured {
    inner: Arc<Inner>,
    key: Key,
    long_running: bool,
}

impl Metrics {
    pub(super) fn begin(&self, info: &RequestInfo) -> Measured {
        let scope = match (
            info.is_resource,
            info.name.is_empty(),
            info.namespace.is_empty(),
        ) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let key = Key {
            verb: if info.is_resource {
                info.verb.to_uppercase()
            } else {
                "GET".to_owned()
            },
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: if info.is_resource {
                info.subresource.clone()
            } else {
                String::new()
            },
            scope,
        };
        let long_running = info.is_long_running();
        self.inner
            .gauge(long_running)
            .fetch_add(1, Ordering::Relaxed);
        Measured {
            inner: Arc::clone(&self.inner),
            key,
            long_running,
        }
    }

    pub(super) fn render(&self) -> String {
        let mut out = String::with_capacity(32 * 1024);
        let _ = writeln!(
            out,
            "# HELP apiserver_current_inflight_requests Requests being served."
        );
        let _ = writeln!(out, "# TYPE apiserver_current_inflight_requests gauge");
        let inflight = self.inner.inflight.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "apiserver_current_inflight_requests{{request_kind=\"all\"}} {inflight}"
        );
        let _ = writeln!(
            out,
            "# HELP apiserver_longrunning_requests Watches, logs and upgrades being opened."
        );
        let _ = writeln!(out, "# TYPE apiserver_longrunning_requests gauge");
        let _ = writeln!(
            out,
            "apiserver_longrunning_requests {}",
            self.inner.long_running.load(Ordering::Relaxed)
        );
        let series = self
            .inner
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "# HELP apiserver_request_total Requests answered.");
        let _ = writeln!(out, "# TYPE apiserver_request_total counter");
        for (key, one) in series.iter() {
            for (code, count) in &one.codes {
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{{},code=\"{code}\"}} {count}",
                    key.labels()
                );
            }
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Time until the answer's head is sent."
        );
        let _ = writeln!(out, "# TYPE apiserver_request_duration_seconds histogram");
        for (key, one) in series.iter() {
            let labels = key.labels();
            for (bound, count) in BUCKETS.iter().zip(one.buckets) {
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}"
                );
            }
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}",
                one.count
            );
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_sum{{{labels}}} {}",
                one.sum_s
            );
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_count{{{labels}}} {}",
                one.count
            );
        }
        drop(series);
        process(&mut out);
        out
    }
}

impl Key {
    fn labels(&self) -> String {
        let clean = |text: &str| text.replace(['"', '\\', '\n'], "_");
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            clean(&self.group),
            clean(&self.resource),
            self.scope,
            clean(&self.subresource),
            clean(&self.verb),
            clean(&self.version)
        )
    }
}

impl Inner {
    fn gauge(&self, long_running: bool) -> &AtomicI64 {
        if long_running {
            &self.long_running
        } else {
            &self.inflight
        }
    }
}

impl Measured {
    pub(super) fn end(mut self, code: u16, took: Duration) {
        let mut series = self
            .inner
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if series.len() >= MAX_SERIES && !series.contains_key(&self.key) {
            self.key.resource = "other".to_owned();
            self.key.group.clear();
            self.key.version.clear();
            self.key.subresource.clear();
            self.key.verb = "OTHER".to_owned();
        }
        let one = series.entry(self.key.clone()).or_default();
        *one.codes.entry(code).or_default() += 1;
        let seconds = took.as_secs_f64();
        one.count += 1;
        one.sum_s += seconds;
        for (bound, count) in BUCKETS.iter().zip(one.buckets.iter_mut()) {
            if seconds <= *bound {
                *count += 1;
            }
        }
        drop(series);
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.inner
            .gauge(self.long_running)
            .fetch_sub(1, Ordering::Relaxed);
    }
}

fn process(out: &mut String) {
    let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else {
        return;
    };
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let _ = writeln!(out, "# HELP process_resident_memory_bytes Resident memory.");
    let _ = writeln!(out, "# TYPE process_resident_memory_bytes gauge");
    let _ = writeln!(out, "process_resident_memory_bytes {}", pages * 4096);
}

//! `/metrics` in the Prometheus text format, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::guarded::guarded;
use crate::request::{RequestInfo, Response};

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

/// What parts of the server count on their own, beside the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Counter {
    StreamTranslator,
    StreamTunnel,
    WebSocketStreaming,
    GeneratedTokens,
    InvalidatedTokens,
    LegacyTokens,
    ManualTokens,
    StaleTokens,
    ValidTokens,
}

impl Counter {
    fn name(self) -> &'static str {
        match self {
            Counter::StreamTranslator => "apiserver_stream_translator_requests_total",
            Counter::StreamTunnel => "apiserver_stream_tunnel_requests_total",
            Counter::WebSocketStreaming => "apiserver_websocket_streaming_requests_total",
            Counter::GeneratedTokens => "serviceaccount_legacy_auto_token_uses_total",
            Counter::InvalidatedTokens => "serviceaccount_invalid_legacy_auto_token_uses_total",
            Counter::LegacyTokens => "serviceaccount_legacy_tokens_total",
            Counter::ManualTokens => "serviceaccount_legacy_manual_token_uses_total",
            Counter::StaleTokens => "serviceaccount_stale_tokens_total",
            Counter::ValidTokens => "serviceaccount_valid_tokens_total",
        }
    }

    fn help(self) -> &'static str {
        match self {
            Counter::StreamTranslator => "Remote commands translated from WebSocket to SPDY.",
            Counter::StreamTunnel => "Port forwardings tunnelled through WebSocket.",
            Counter::WebSocketStreaming => "Streams by the place where WebSocket is understood.",
            Counter::GeneratedTokens => "Uses of tokens in Secrets made by themselves.",
            Counter::InvalidatedTokens => "Uses of tokens in Secrets marked invalid.",
            Counter::LegacyTokens => "Uses of tokens in Secrets.",
            Counter::ManualTokens => "Uses of tokens in Secrets made by hand.",
            Counter::StaleTokens => "Uses of tokens that should have been renewed.",
            Counter::ValidTokens => "Uses of tokens of pods in their time.",
        }
    }
}

#[derive(Default)]
struct Inner {
    counters: Mutex<BTreeMap<(Counter, String), u64>>,
    series: Mutex<BTreeMap<Key, Series>>,
    mutating: AtomicI64,
    reading: AtomicI64,
    /// Open ones by what they are.
    long_running: Mutex<BTreeMap<Key, i64>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: bool,
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
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mutating,
    Reading,
    LongRunning,
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
            verb: verb_label(info),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: if info.is_resource {
                info.subresource.clone()
            } else {
                String::new()
            },
            scope,
            dry_run: info.is_resource && info.query.all("dryRun").any(|value| value == "All"),
        };
        let kind = if info.is_long_running() {
            Kind::LongRunning
        } else if matches!(info.verb.as_str(), "get" | "list" | "watch" | "head") {
            Kind::Reading
        } else {
            Kind::Mutating
        };
        self.inner.count(kind, &key, 1);
        Measured {
            inner: Arc::clone(&self.inner),
            key,
            kind,
        }
    }

    /// Label values are this server's own words, so that there are few.
    pub(crate) fn count(&self, counter: Counter, labels: &[(&str, &str)]) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{value}\""))
            .collect();
        let mut counters = self
            .inner
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *counters.entry((counter, labels.join(","))).or_default() += 1;
    }

    fn counters(&self, out: &mut String) {
        let counters = self
            .inner
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for ((counter, labels), count) in counters.iter() {
            let name = counter.name();
            if last.replace(*counter) != Some(*counter) {
                let _ = writeln!(out, "# HELP {name} {}", counter.help());
                let _ = writeln!(out, "# TYPE {name} counter");
            }
            let labels = match labels.as_str() {
                "" => String::new(),
                labels => format!("{{{labels}}}"),
            };
            let _ = writeln!(out, "{name}{labels} {count}");
        }
    }

    pub(super) fn render(&self) -> String {
        let mut out = String::with_capacity(32 * 1024);
        let _ = writeln!(
            out,
            "# HELP apiserver_current_inflight_requests Requests being served."
        );
        let _ = writeln!(out, "# TYPE apiserver_current_inflight_requests gauge");
        for (kind, gauge) in [
            ("mutating", &self.inner.mutating),
            ("readOnly", &self.inner.reading),
        ] {
            let _ = writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {}",
                gauge.load(Ordering::Relaxed)
            );
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_longrunning_requests Watches, logs and upgrades that are open."
        );
        let _ = writeln!(out, "# TYPE apiserver_longrunning_requests gauge");
        let long_running = self.inner.long_running.lock();
        for (key, count) in long_running.unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(
                out,
                "apiserver_longrunning_requests{{{}}} {count}",
                key.labels()
            );
        }
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
                    "apiserver_request_total{{{},code=\"{code}\",dry_run=\"{}\",system_client=\"\"}} {count}",
                    key.labels(),
                    key.dry_run()
                );
            }
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_request_duration_seconds Time until the answer's head is sent."
        );
        let _ = writeln!(out, "# TYPE apiserver_request_duration_seconds histogram");
        for (key, one) in series.iter() {
            let labels = format!("{},dry_run=\"{}\"", key.labels(), key.dry_run());
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
        self.counters(&mut out);
        process(&mut out);
        out
    }
}

/// The verb as upstream's metrics have it: methods, but for reads of many and connections.
fn verb_label(info: &RequestInfo) -> String {
    if !info.is_resource {
        return info.verb.to_uppercase();
    }
    let connects = matches!(
        info.subresource.as_str(),
        "exec" | "attach" | "portforward" | "proxy"
    );
    match info.verb.as_str() {
        _ if connects => "CONNECT",
        "create" => "POST",
        "update" => "PUT",
        verb => return verb.to_uppercase(),
    }
    .to_owned()
}

impl Key {
    fn dry_run(&self) -> &'static str {
        if self.dry_run { "All" } else { "" }
    }

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
    fn count(&self, kind: Kind, key: &Key, by: i64) {
        let gauge = match kind {
            Kind::Mutating => &self.mutating,
            Kind::Reading => &self.reading,
            Kind::LongRunning => {
                let open = self.long_running.lock();
                let mut open = open.unwrap_or_else(PoisonError::into_inner);
                let count = open.entry(key.clone()).or_default();
                *count += by;
                if *count == 0 {
                    open.remove(key);
                }
                return;
            }
        };
        gauge.fetch_add(by, Ordering::Relaxed);
    }
}

impl Measured {
    /// A long-running request is counted as open until its body ends.
    pub(super) fn hold(self, response: Response) -> Response {
        if self.kind != Kind::LongRunning {
            return response;
        }
        response.map(|body| guarded(body, self))
    }

    pub(super) fn answered(&self, code: u16, took: Duration) {
        let mut series = self
            .inner
            .series
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut key = self.key.clone();
        if series.len() >= MAX_SERIES && !series.contains_key(&key) {
            key.resource = "other".to_owned();
            key.group.clear();
            key.version.clear();
            key.subresource.clear();
            key.verb = "OTHER".to_owned();
        }
        let one = series.entry(key).or_default();
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
        self.inner.count(self.kind, &self.key, -1);
    }
}

/// How many objects of each resource there are.
pub(super) fn objects(out: &mut String, counts: &[(String, String, usize)]) {
    let _ = writeln!(out, "# HELP apiserver_storage_objects Stored objects.");
    let _ = writeln!(out, "# TYPE apiserver_storage_objects gauge");
    for (group, resource, count) in counts {
        let dot = if group.is_empty() { "" } else { "." };
        let _ = writeln!(
            out,
            "apiserver_storage_objects{{resource=\"{resource}{dot}{group}\"}} {count}"
        );
    }
    let _ = writeln!(out, "# HELP apiserver_resource_objects Stored objects.");
    let _ = writeln!(out, "# TYPE apiserver_resource_objects gauge");
    for (group, resource, count) in counts {
        let _ = writeln!(
            out,
            "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}"
        );
    }
}

/// Of which release this server is.
pub(super) fn build(out: &mut String, version: &serde_json::Value) {
    let text = |name: &str| version[name].as_str().unwrap_or_default();
    let _ = writeln!(out, "# HELP kubernetes_build_info The release, always 1.");
    let _ = writeln!(out, "# TYPE kubernetes_build_info gauge");
    let _ = writeln!(
        out,
        "kubernetes_build_info{{build_date=\"{}\",compiler=\"{}\",git_commit=\"{}\",git_tree_state=\"{}\",git_version=\"{}\",go_version=\"{}\",major=\"{}\",minor=\"{}\",platform=\"{}\"}} 1",
        text("buildDate"),
        text("compiler"),
        text("gitCommit"),
        text("gitTreeState"),
        text("gitVersion"),
        text("goVersion"),
        text("major"),
        text("minor"),
        text("platform")
    );
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

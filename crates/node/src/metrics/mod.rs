//! Counts and durations of what the node does, under upstream's names.

mod families;
mod ports;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use families::*;
pub(crate) use ports::{MeasuredCgroups, MeasuredImages, MeasuredRuntime};

/// Label sets of one family. Labels are mostly our own words; exit codes are a container's.
const MAX_SERIES: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets, in seconds.
    Histogram(&'static [f64]),
}

/// A metric's name and what it tells.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
}

#[derive(Debug, Clone, Default)]
struct Series {
    /// The value, or the sum of what a histogram saw.
    total: f64,
    count: u64,
    /// How many fell into each bucket or a smaller one.
    buckets: Vec<u64>,
}

type Table = BTreeMap<&'static str, BTreeMap<Vec<String>, Series>>;

#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Table>);

impl Metrics {
    /// Adds one to a counter.
    pub(crate) fn count(&self, family: &'static Family, labels: &[&str]) {
        self.change(family, labels, |series| series.total += 1.0);
    }

    pub(crate) fn add(&self, family: &'static Family, labels: &[&str], value: f64) {
        self.change(family, labels, |series| series.total += value);
    }

    pub(crate) fn observe(&self, family: &'static Family, labels: &[&str], took: Duration) {
        let Kind::Histogram(bounds) = family.kind else {
            return;
        };
        let seconds = took.as_secs_f64();
        self.change(family, labels, |series| {
            series.buckets.resize(bounds.len(), 0);
            for (bound, count) in bounds.iter().zip(&mut series.buckets) {
                *count += u64::from(seconds <= *bound);
            }
            series.total += seconds;
            series.count += 1;
        });
    }

    fn change(&self, family: &'static Family, labels: &[&str], change: impl FnOnce(&mut Series)) {
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        let mut table = self.lock();
        let all = table.entry(family.name).or_default();
        if all.len() < MAX_SERIES || all.contains_key(&labels) {
            change(all.entry(labels).or_default());
        }
    }

    /// These families, also those that counted nothing yet.
    pub(crate) fn render(&self, families: &[&'static Family], page: &mut Page) {
        let table = self.lock();
        for &family in families {
            page.begin(family);
            match table.get(family.name) {
                Some(all) => all
                    .iter()
                    .for_each(|(labels, series)| page.series(family, labels, series)),
                // A family without labels is there from the beginning.
                None if family.labels.is_empty() => page.series(family, &[], &Series::default()),
                None => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page in Prometheus' text format.
#[derive(Debug, Default)]
pub(crate) struct Page(String);

impl Page {
    /// A family whose values are known now.
    pub(crate) fn values<L: AsRef<str>>(
        &mut self,
        family: &'static Family,
        values: impl IntoIterator<Item = (Vec<L>, f64)>,
    ) {
        self.begin(family);
        for (labels, total) in values {
            let labels: Vec<String> = labels.iter().map(|l| l.as_ref().to_owned()).collect();
            let series = Series {
                total,
                ..Series::default()
            };
            self.series(family, &labels, &series);
        }
    }

    pub(crate) fn value(&mut self, family: &'static Family, value: f64) {
        self.values(family, [(Vec::<String>::new(), value)]);
    }

    pub(crate) fn text(self) -> String {
        self.0
    }

    fn begin(&mut self, family: &Family) {
        let Family { name, help, .. } = family;
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} [ALPHA] {help}\n# TYPE {name} {kind}");
    }

    fn series(&mut self, family: &Family, labels: &[String], series: &Series) {
        let name = family.name;
        let pairs: Vec<String> = family
            .labels
            .iter()
            .zip(labels)
            .map(|(name, value)| format!("{name}=\"{}\"", escape(value)))
            .collect();
        let Kind::Histogram(bounds) = family.kind else {
            let _ = writeln!(self.0, "{name}{} {}", braces(&pairs, None), series.total);
            return;
        };
        for (at, bound) in bounds.iter().enumerate() {
            let count = series.buckets.get(at).copied().unwrap_or(0);
            let labels = braces(&pairs, Some(&bound.to_string()));
            let _ = writeln!(self.0, "{name}_bucket{labels} {count}");
        }
        let infinite = braces(&pairs, Some("+Inf"));
        let labels = braces(&pairs, None);
        let (sum, count) = (series.total, series.count);
        let _ = writeln!(
            self.0,
            "{name}_bucket{infinite} {count}\n{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
        );
    }
}

fn braces(pairs: &[String], bound: Option<&str>) -> String {
    let bound = bound.map(|bound| format!("le=\"{bound}\""));
    let all: Vec<&str> = pairs.iter().chain(&bound).map(String::as_str).collect();
    match all.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", all.join(",")),
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(metrics: &Metrics, of: &str) -> Vec<String> {
        let mut page = Page::default();
        metrics.render(COUNTED, &mut page);
        let text = page.text();
        let lines = text.lines().filter(|line| line.starts_with(of));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn histograms_add_up() {
        let metrics = Metrics::default();
        for millis in [3, 30, 60_000] {
            let took = Duration::from_millis(millis);
            metrics.observe(&POD_WORKER_DURATION, &["sync"], took);
        }
        let lines = lines(&metrics, "kubelet_pod_worker_duration_seconds");
        for expected in [
            "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"sync\",le=\"0.005\"} 1",
            "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"sync\",le=\"0.05\"} 2",
            "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"sync\",le=\"10\"} 2",
            "kubelet_pod_worker_duration_seconds_bucket{operation_type=\"sync\",le=\"+Inf\"} 3",
            "kubelet_pod_worker_duration_seconds_sum{operation_type=\"sync\"} 60.033",
            "kubelet_pod_worker_duration_seconds_count{operation_type=\"sync\"} 3",
        ] {
            assert!(
                lines.iter().any(|line| line == expected),
                "{expected}: {lines:#?}"
            );
        }
    }

    #[test]
    fn what_was_never_counted_is_zero_or_absent() {
        let metrics = Metrics::default();
        assert_eq!(
            lines(&metrics, "kubelet_started_pods_total"),
            ["kubelet_started_pods_total 0"]
        );
        assert!(lines(&metrics, "kubelet_runtime_operations_total").is_empty());
    }

    #[test]
    fn labels_of_strangers_are_escaped_and_bounded() {
        let metrics = Metrics::default();
        metrics.count(&TERMINATED_CONTAINERS, &["container", "1", "a\"b\n"]);
        for code in 0..2 * MAX_SERIES {
            metrics.count(
                &TERMINATED_CONTAINERS,
                &["container", &code.to_string(), "Error"],
            );
        }
        let lines = lines(&metrics, "kubelet_terminated_containers_total");
        assert_eq!(lines.len(), MAX_SERIES);
        let escaped = "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"1\",reason=\"a\\\"b\\n\"} 1";
        assert!(lines.iter().any(|line| line == escaped));
    }
}

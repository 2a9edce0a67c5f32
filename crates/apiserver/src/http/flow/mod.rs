//! API priority and fairness: requests are classified by the stored FlowSchemas; each priority
//! level has seats, which it lends and borrows, and queues in front of them. An idle server pays a
//! match and a counter per request; there is no timer.

mod classify;
mod lending;
mod level;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;
use tokio::sync::watch;

use crate::objects::Objects;
use crate::request::{RequestContext, RequestInfo, Response};
use classify::Schema;
use lending::Share;
use level::{Level, Queuing, Seat};

pub(crate) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Seats of all limited levels together, shared out by their nominal shares; upstream's default
/// limits on reading and changing requests added up.
const TOTAL_SEATS: usize = 600;
/// A quarter of a request's time.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often levels lend anew while there are requests.
const LENDING_INTERVAL: Duration = Duration::from_secs(10);
const OBJECTS_PER_SEAT: usize = 100;
const MAX_SEATS: usize = 10;
/// Part of the old demand that is forgotten at each look.
const SMOOTHING: f64 = 0.25;

pub(crate) struct FlowControl {
    objects: Arc<dyn Objects>,
    plan: ArcSwap<Plan>,
    changes: Mutex<Vec<watch::Receiver<u64>>>,
    lending: Mutex<Lending>,
}

#[derive(Default)]
struct Plan {
    /// In matching order.
    schemas: Vec<Schema>,
    levels: HashMap<String, PlannedLevel>,
}

struct PlannedLevel {
    uid: String,
    /// Absent for exempt levels.
    level: Option<Arc<Level>>,
    share: Share,
}

struct Lending {
    looked_at: Instant,
    smoothed: BTreeMap<String, f64>,
}

/// A running request's place.
pub(super) struct Permit {
    schema_uid: String,
    level_uid: String,
    _seat: Option<Seat>,
}

impl FlowControl {
    pub(crate) fn new(objects: Arc<dyn Objects>) -> Self {
        let mut changes: Vec<_> = ["flowschemas", "prioritylevelconfigurations"]
            .iter()
            .map(|resource| objects.changes(GROUP, resource))
            .collect();
        changes.iter_mut().for_each(watch::Receiver::mark_changed);
        Self {
            objects,
            plan: ArcSwap::default(),
            changes: Mutex::new(changes),
            lending: Mutex::new(Lending {
                looked_at: Instant::now(),
                smoothed: BTreeMap::new(),
            }),
        }
    }

    pub(super) async fn enter(&self, context: &RequestContext) -> Result<Permit, Status> {
        self.refresh();
        let (seat, permit) = {
            let plan = self.plan.load();
            let info = &context.info;
            let schema = plan
                .schemas
                .iter()
                .find(|schema| schema.matches(&context.user, info));
            let Some(schema) = schema else {
                return Ok(Permit::unclassified());
            };
            let mut permit = Permit::unclassified();
            schema.uid.clone_into(&mut permit.schema_uid);
            let Some(planned) = plan.levels.get(&schema.level) else {
                return Ok(permit);
            };
            planned.uid.clone_into(&mut permit.level_uid);
            // What stays open takes no seat, but a watch does until it has begun.
            let open = info.is_long_running() && info.verb != "watch";
            let Some(level) = planned.level.as_ref().filter(|_| !open) else {
                return Ok(permit);
            };
            let seats = self.seats(info, planned.share.nominal);
            let flow = schema.flow(&context.user, info);
            ((Arc::clone(level), flow, seats), permit)
        };
        let (level, flow, seats) = seat;
        match level.enter(flow, seats, PATIENCE).await {
            Ok(seat) => Ok(Permit {
                _seat: Some(seat),
                ..permit
            }),
            Err(rejection) => {
                tracing::debug!(
                    level = level.name,
                    reason = rejection.as_str(),
                    "turned away"
                );
                Err(Status::too_many_requests(
                    "Too many requests, please try again later.",
                    1,
                ))
            }
        }
    }

    /// Lists take seats by how much they return, but no request takes more than a part of a level.
    fn seats(&self, info: &RequestInfo, nominal: usize) -> usize {
        if info.verb != "list" || !info.name.is_empty() {
            return 1;
        }
        let mut count = self
            .objects
            .count(&info.group, &info.resource, &info.namespace);
        let limit = info.query.get("limit").and_then(|l| l.parse().ok());
        if let Some(limit) = limit.filter(|limit| *limit > 0) {
            count = count.min(limit);
        }
        let most = MAX_SEATS.min((nominal * 15).div_ceil(100)).max(1);
        count.div_ceil(OBJECTS_PER_SEAT).clamp(1, most)
    }

    fn refresh(&self) {
        if let Ok(mut changes) = self.changes.try_lock() {
            let changed = changes.iter_mut().fold(false, |any, receiver| {
                let changed = receiver.has_changed().unwrap_or(false);
                if changed {
                    receiver.mark_unchanged();
                }
                any | changed
            });
            if changed {
                let before = self.plan.load_full();
                self.plan.store(Arc::new(build(&*self.objects, &before)));
            }
        }
        if let Ok(mut lending) = self.lending.try_lock()
            && lending.looked_at.elapsed() > LENDING_INTERVAL
        {
            lending.looked_at = Instant::now();
            lend(&self.plan.load(), &mut lending.smoothed);
        }
    }

    pub(crate) fn render(&self, out: &mut String) {
        let plan = self.plan.load();
        let levels: BTreeMap<&String, &PlannedLevel> = plan.levels.iter().collect();
        type Read = fn(&PlannedLevel, &level::Figures) -> u64;
        let gauges: [(&str, &str, Read); 6] = [
            ("nominal_limit_seats", "gauge", |p, _| {
                p.share.nominal as u64
            }),
            ("current_limit_seats", "gauge", |_, f| f.limit as u64),
            ("current_executing_seats", "gauge", |_, f| f.seats as u64),
            ("current_executing_requests", "gauge", |_, f| {
                f.executing as u64
            }),
            ("current_inqueue_requests", "gauge", |_, f| f.waiting as u64),
            ("dispatched_requests_total", "counter", |_, f| f.dispatched),
        ];
        for (name, kind, read) in gauges {
            let _ = writeln!(out, "# TYPE apiserver_flowcontrol_{name} {kind}");
            for (level, planned) in &levels {
                let figures = planned.level.as_ref().map(|l| l.figures());
                let value = read(planned, &figures.unwrap_or_default());
                let _ = writeln!(
                    out,
                    "apiserver_flowcontrol_{name}{{priority_level={level:?}}} {value}"
                );
            }
        }
        let _ = writeln!(
            out,
            "# TYPE apiserver_flowcontrol_rejected_requests_total counter"
        );
        for (level, planned) in &levels {
            let Some(limited) = &planned.level else {
                continue;
            };
            let rejected = limited.figures().rejected;
            for reason in [
                level::Rejection::ConcurrencyLimit,
                level::Rejection::QueueFull,
                level::Rejection::Timeout,
            ] {
                let (count, reason) = (rejected[reason as usize], reason.as_str());
                let _ = writeln!(
                    out,
                    "apiserver_flowcontrol_rejected_requests_total{{priority_level={level:?},reason={reason:?}}} {count}"
                );
            }
        }
    }
}

impl Permit {
    fn unclassified() -> Self {
        Self {
            schema_uid: String::new(),
            level_uid: String::new(),
            _seat: None,
        }
    }

    pub(super) fn mark(&self, response: &mut Response) {
        for (name, uid) in [
            ("x-kubernetes-pf-flowschema-uid", &self.schema_uid),
            ("x-kubernetes-pf-prioritylevel-uid", &self.level_uid),
        ] {
            if let Ok(value) = HeaderValue::from_str(uid)
                && !uid.is_empty()
            {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

fn build(objects: &dyn Objects, before: &Plan) -> Plan {
    let stored = objects.list(GROUP, "flowschemas", "");
    let schemas = classify::schemas(stored.iter().map(|schema| &**schema));
    let stored = objects.list(GROUP, "prioritylevelconfigurations", "");
    let total: usize = stored
        .iter()
        .filter(|l| is_limited(l))
        .map(|l| shares(l))
        .sum();
    let levels = stored
        .iter()
        .map(|object| {
            let name = meta::name(object).to_owned();
            let share = share(object, total.max(1));
            let queuing = queuing(object);
            let kept = before.levels.get(&name).and_then(|old| old.level.clone());
            let level = is_limited(object).then(|| {
                // A level that only changed its share keeps those who run and wait.
                match kept.filter(|level| level.queuing() == queuing) {
                    Some(level) => {
                        level.set_limit(share.nominal);
                        level
                    }
                    None => Arc::new(Level::new(&name, share.nominal, queuing)),
                }
            });
            let uid = meta::uid(object).to_owned();
            (name, PlannedLevel { uid, level, share })
        })
        .collect();
    Plan { schemas, levels }
}

fn is_limited(level: &Value) -> bool {
    level["spec"]["type"] == "Limited"
}

fn shares(level: &Value) -> usize {
    level["spec"]["limited"]["nominalConcurrencyShares"]
        .as_u64()
        .unwrap_or(30) as usize
}

fn share(level: &Value, total: usize) -> Share {
    let limited = &level["spec"]["limited"];
    let nominal = (TOTAL_SEATS * shares(level)).div_ceil(total);
    let part = |key: &str| {
        limited[key]
            .as_u64()
            .map(|percent| nominal * percent as usize / 100)
    };
    Share {
        nominal,
        min: nominal - part("lendablePercent").unwrap_or(0).min(nominal),
        max: part("borrowingLimitPercent").map_or(TOTAL_SEATS, |more| nominal + more),
        demand: 0.0,
    }
}

fn queuing(level: &Value) -> Option<Queuing> {
    let response = &level["spec"]["limited"]["limitResponse"];
    if response["type"] != "Queue" {
        return None;
    }
    let number = |key: &str, default: u64| {
        response["queuing"][key]
            .as_u64()
            .unwrap_or(default)
            .clamp(1, 10_000) as usize
    };
    Some(Queuing {
        queues: number("queues", 64),
        hand_size: number("handSize", 8),
        length_limit: number("queueLengthLimit", 50),
    })
}

/// Sets every level's limit by what was asked of it since the last time.
fn lend(plan: &Plan, smoothed: &mut BTreeMap<String, f64>) {
    let limited: Vec<(&String, &Arc<Level>, Share)> = plan
        .levels
        .iter()
        .filter_map(|(name, planned)| Some((name, planned.level.as_ref()?, planned.share)))
        .collect();
    smoothed.retain(|name, _| plan.levels.contains_key(name));
    let shares: Vec<Share> = limited
        .iter()
        .map(|(name, level, share)| {
            let high = level.take_demand() as f64;
            let demand = smoothed.entry((*name).clone()).or_insert(high);
            // A rise is believed at once, a fall slowly.
            *demand = high.max(*demand + (high - *demand) * SMOOTHING);
            Share {
                demand: *demand,
                ..*share
            }
        })
        .collect();
    for ((_, level, _), limit) in limited.iter().zip(lending::limits(TOTAL_SEATS, &shares)) {
        level.set_limit(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_become_seats() {
        let level = json!({"spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 40, "lendablePercent": 25, "borrowingLimitPercent": 50,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 64, "handSize": 6, "queueLengthLimit": 50}}}}});
        let share = share(&level, 240);
        assert_eq!((share.nominal, share.min, share.max), (100, 75, 150));
        assert_eq!(
            queuing(&level),
            Some(Queuing {
                queues: 64,
                hand_size: 6,
                length_limit: 50
            })
        );
        let reject = json!({"spec": {"limited": {"limitResponse": {"type": "Reject"}}}});
        assert_eq!(queuing(&reject), None);
    }
}

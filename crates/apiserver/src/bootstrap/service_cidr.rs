//! The ServiceCIDR `kubernetes`: the ranges that this server's flags name. It is made when there is
//! none, gains the second family when the flags do, and is otherwise left to the administrator, who
//! is told when it and the flags differ.

use std::sync::Arc;

use ipnet::IpNet;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Value, json};

use crate::events::{Warning, warn};
use crate::objects::Objects;

const GROUP: &str = "networking.k8s.io";
const RESOURCE: &str = "servicecidrs";
const NAME: &str = "kubernetes";
const FAILED: &str = "KubernetesDefaultServiceCIDRError";

/// Keeps the default ranges; what it told of is told once.
pub(crate) struct DefaultServiceCidr {
    cidrs: Vec<String>,
    told_mismatch: bool,
    told_not_ready: bool,
}

/// What is to be done about the object that is there. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    /// One range becomes two.
    Upgrade,
    TellMismatch,
    /// Reason and message of the condition.
    TellNotReady(String, String),
    SetReady,
}

impl DefaultServiceCidr {
    pub(crate) fn new(cidrs: &[IpNet]) -> Self {
        Self {
            cidrs: cidrs.iter().map(|cidr| cidr.trunc().to_string()).collect(),
            told_mismatch: false,
            told_not_ready: false,
        }
    }

    /// Run at the start and every now and then.
    pub(crate) async fn publish(&mut self, objects: &Arc<dyn Objects>) -> Result<(), Status> {
        let found = match objects.get(GROUP, RESOURCE, "", NAME) {
            Some(found) => Value::clone(&found),
            None => {
                let wanted = json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                    "metadata": {"name": NAME},
                    "spec": {"cidrs": self.cidrs},
                });
                match objects.create(GROUP, RESOURCE, "", wanted.clone()).await {
                    // Another server on the same store was first, and completes it.
                    Err(status) if status.is_already_exists() => return Ok(()),
                    Err(status) => {
                        let text = "The default ServiceCIDR can not be created";
                        self.tell(objects, &wanted, FAILED, text).await;
                        return Err(status);
                    }
                    Ok(created) => created,
                }
            }
        };
        match self.plan(&found) {
            Step::Nothing => {}
            Step::Upgrade => {
                let mut wanted = found.clone();
                wanted["spec"]["cidrs"] = json!(self.cidrs);
                if let Err(status) = objects.update(GROUP, RESOURCE, "", wanted).await {
                    let text = format!(
                        "The default ServiceCIDR can not be upgraded from {} to dual stack {} : {status}",
                        self.cidrs[0],
                        shown(&self.cidrs)
                    );
                    self.tell(objects, &found, FAILED, &text).await;
                }
            }
            Step::TellMismatch => {
                self.told_mismatch = true;
                let text = format!(
                    "The default ServiceCIDR {} does not match the controller flag configurations {}",
                    shown(&cidrs(&found)),
                    shown(&self.cidrs)
                );
                let reason = "KubernetesDefaultServiceCIDRInconsistent";
                self.tell(objects, &found, reason, &text).await;
            }
            Step::TellNotReady(reason, message) => {
                self.told_not_ready = true;
                let text = format!("Configuration matches, but {message}");
                self.tell(objects, &found, &reason, &text).await;
            }
            Step::SetReady => {
                let mut ready = found.clone();
                ready["status"] = json!({"conditions": [{
                    "type": "Ready", "status": "True", "reason": "",
                    "message": "Kubernetes default Service CIDR is ready",
                    "lastTransitionTime": time::now(),
                }]});
                match objects.update(GROUP, RESOURCE, "", ready).await {
                    Err(status) if !status.is_conflict() => {
                        let text = "The default ServiceCIDR Status can not be set to Ready=True";
                        self.tell(objects, &found, FAILED, text).await;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn plan(&self, found: &Value) -> Step {
        let there = cidrs(found);
        if self.cidrs.len() == 2 && there.len() == 1 && there[0] == self.cidrs[0] {
            return Step::Upgrade;
        }
        // What is going away is the controller's.
        if meta::deletion_timestamp(found).is_some() {
            return Step::Nothing;
        }
        if there != self.cidrs {
            return match self.told_mismatch {
                true => Step::Nothing,
                false => Step::TellMismatch,
            };
        }
        let conditions = found["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let Some(ready) = conditions.find(|condition| condition["type"] == "Ready") else {
            return Step::SetReady;
        };
        let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
        match text("status").as_str() {
            "True" => Step::Nothing,
            "False" if self.told_not_ready => Step::Nothing,
            "False" => Step::TellNotReady(text("reason"), text("message")),
            _ => Step::SetReady,
        }
    }

    async fn tell(&self, objects: &Arc<dyn Objects>, range: &Value, reason: &str, text: &str) {
        let warning = Warning {
            component: "kubernetes-service-cidr-controller",
            reason,
            action: "",
            text,
        };
        warn(&**objects, range, &warning).await;
    }
}

fn cidrs(range: &Value) -> Vec<String> {
    let cidrs = range["spec"]["cidrs"].as_array().into_iter().flatten();
    cidrs
        .filter_map(|cidr| cidr.as_str().map(str::to_owned))
        .collect()
}

fn shown(cidrs: &[String]) -> String {
    format!("[{}]", cidrs.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_range_is_left_alone_and_told_of() {
        let cidr = |text: &str| -> IpNet { text.parse().unwrap() };
        let both = [cidr("10.0.0.1/24"), cidr("fd00::/112")];
        let range = |cidrs: &[&str], ready: &str| {
            json!({"metadata": {"name": NAME}, "spec": {"cidrs": cidrs},
                "status": {"conditions": [{"type": "Ready", "status": ready, "reason": "R", "message": "m"}]}})
        };
        let plan = |cidrs: &[IpNet], found: &Value| DefaultServiceCidr::new(cidrs).plan(found);
        assert_eq!(plan(&both, &range(&["10.0.0.0/24"], "True")), Step::Upgrade);
        assert_eq!(
            plan(&both[1..], &range(&["10.0.0.0/24"], "True")),
            Step::TellMismatch
        );
        assert_eq!(
            plan(&both[..1], &range(&["10.0.0.0/24", "fd00::/112"], "True")),
            Step::TellMismatch
        );
        let same = ["10.0.0.0/24", "fd00::/112"];
        assert_eq!(plan(&both, &range(&same, "True")), Step::Nothing);
        assert_eq!(plan(&both, &range(&same, "Unknown")), Step::SetReady);
        assert_eq!(
            plan(&both, &range(&same, "False")),
            Step::TellNotReady("R".to_owned(), "m".to_owned())
        );
        let mut new = range(&same, "");
        new["status"] = Value::Null;
        assert_eq!(plan(&both, &new), Step::SetReady);
        let mut going = range(&["10.1.0.0/24"], "True");
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert_eq!(plan(&both, &going), Step::Nothing);
        let mut told = DefaultServiceCidr::new(&both);
        told.told_mismatch = true;
        assert_eq!(told.plan(&range(&["10.1.0.0/24"], "True")), Step::Nothing);
    }
}

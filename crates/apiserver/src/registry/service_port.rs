//! Node ports of Services: which are chosen. A port is taken when its number is claimed in the
//! store (see [`super::service_claim`]) or given to a write in flight. Specified as upstream's
//! portallocator does it, in the order of its steps.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use keelson_machinery::field::{FieldError, Path};
use serde_json::Value;

use super::service_ip::{Refused, service_type, text};

/// Random picks before the range is searched in order.
const RANDOM_ATTEMPTS: usize = 32;

/// What one write is given out of a range.
pub(super) struct PortRound<'a> {
    pub(super) range: &'a RangeInclusive<u16>,
    pub(super) taken: &'a HashSet<u16>,
    pub(super) given: HashSet<u16>,
}

/// A number and its protocol: one Service may have a number once in each.
type Used = HashSet<(String, i64)>;

impl PortRound<'_> {
    /// Fills what the Service lacks and takes what it asks for and had not before.
    pub(super) fn fill(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refused> {
        if matches!(service_type(object), "NodePort" | "LoadBalancer") {
            match old {
                None => self.create(object)?,
                Some(old) => self.update(object, old)?,
            }
        }
        let needed = old.is_some_and(needs_health_check_port);
        if needs_health_check_port(object) && !needed {
            self.health_check(object)?;
        }
        Ok(())
    }

    fn create(&mut self, object: &mut Value) -> Result<(), Refused> {
        let allocates = needs_node_ports(object);
        let Some(ports) = object["spec"]["ports"].as_array_mut() else {
            return Ok(());
        };
        // A Service with one port in two protocols gets one number for both.
        let mut chosen: Vec<(Value, i64)> = Vec::new();
        for index in 0..ports.len() {
            let own = node_port(&ports[index]);
            if own == 0 && !allocates {
                continue;
            }
            let number = ports[index]["port"].clone();
            let before = chosen.iter().find(|(port, _)| *port == number);
            if let Some((_, before)) = before.cloned() {
                if own == 0 {
                    ports[index]["nodePort"] = before.into();
                } else if own != before {
                    self.take(own).map_err(|reason| at(index, own, &reason))?;
                }
                continue;
            }
            let asked = ports.iter().filter(|port| port["port"] == number);
            let asked = asked.map(node_port).find(|port| *port != 0);
            let port = match asked {
                Some(port) => {
                    self.take(port).map_err(|reason| at(index, port, &reason))?;
                    port
                }
                None => self.any()?,
            };
            ports[index]["nodePort"] = port.into();
            chosen.push((number, port));
        }
        Ok(())
    }

    fn update(&mut self, object: &mut Value, old: &Value) -> Result<(), Refused> {
        let allocates = needs_node_ports(object);
        let had: HashSet<i64> = of_ports(old).map(node_port).collect();
        let mut own = HashSet::new();
        let mut used = Used::new();
        let ports = object["spec"]["ports"].as_array_mut();
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let mut wanted = node_port(port);
            if wanted == 0 && !allocates {
                continue;
            }
            if wanted == 0 {
                wanted = self.any()?;
                port["nodePort"] = wanted.into();
            } else if !had.contains(&wanted) && own.insert(wanted) {
                self.take(wanted)
                    .map_err(|reason| at(index, wanted, &reason))?;
            }
            let protocol = protocol_of(port);
            if !used.insert((protocol.clone(), wanted)) {
                let message = format!("duplicate nodePort: {{{protocol} {wanted}}}");
                return Err(Refused::Unclassified(message));
            }
        }
        Ok(())
    }

    fn health_check(&mut self, object: &mut Value) -> Result<(), Refused> {
        let asked = object["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0);
        if asked == 0 {
            let failed = |reason: String| {
                let what = "failed to allocate a HealthCheck NodePort 0";
                Refused::Failed(format!("{what}: {reason}"))
            };
            object["spec"]["healthCheckNodePort"] = self.next().map_err(failed)?.into();
            return Ok(());
        }
        self.take(asked).map_err(|reason| {
            let what = format!("failed to allocate requested HealthCheck NodePort {asked}");
            Refused::Failed(format!("{what}: {reason}"))
        })
    }

    fn take(&mut self, port: i64) -> Result<(), String> {
        let known = u16::try_from(port).ok();
        let Some(port) = known.filter(|port| self.range.contains(port)) else {
            let (first, last) = (self.range.start(), self.range.end());
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            ));
        };
        if self.taken.contains(&port) || !self.given.insert(port) {
            return Err("provided port is already allocated".to_owned());
        }
        Ok(())
    }

    fn any(&mut self) -> Result<i64, Refused> {
        self.next()
            .map(i64::from)
            .map_err(|reason| Refused::Failed(format!("failed to allocate a nodePort: {reason}")))
    }

    /// From the upper part of the range while it lasts: the lower part is for ports that people
    /// choose.
    fn next(&mut self) -> Result<u16, String> {
        let dynamic = self.range.start() + reserved(self.range)..=*self.range.end();
        let free = |port: &u16| !self.taken.contains(port) && !self.given.contains(port);
        let found = (0..RANDOM_ATTEMPTS)
            .map(|_| rand::random_range(dynamic.clone()))
            .find(free)
            .or_else(|| dynamic.clone().find(free))
            .or_else(|| self.range.clone().find(free));
        let port = found.ok_or_else(|| "range is full".to_owned())?;
        self.given.insert(port);
        Ok(port)
    }
}

/// How many of the first ports are given only to who asks for them.
fn reserved(range: &RangeInclusive<u16>) -> u16 {
    match u16::try_from(range.len()).unwrap_or(u16::MAX) {
        0..=16 => 0,
        size => (size / 32).clamp(16, 128),
    }
}

fn at(index: usize, port: i64, reason: &str) -> Refused {
    let path = Path::new("spec").child("ports").index(index);
    let path = path.child("nodePort");
    Refused::Invalid(Box::new(FieldError::invalid(&path, port, reason)))
}

/// The numbers of a stored Service that nobody else may have. One that stands twice in the same
/// protocol is there twice: it is a conflict of the Service with itself.
pub(super) fn ports_of(service: &Value) -> Vec<u16> {
    let mut seen = Used::new();
    let mut all = Vec::new();
    for port in of_ports(service) {
        let number = node_port(port);
        let alone = !seen.iter().any(|(_, known)| *known == number);
        let again = !seen.insert((protocol_of(port), number));
        if number != 0 && (alone || again) {
            all.push(number);
        }
    }
    let health = service["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0);
    let elsewhere = seen.iter().any(|(_, known)| *known == health);
    if health != 0 && (!elsewhere || seen.contains(&("TCP".to_owned(), health))) {
        all.push(health);
    }
    all.into_iter()
        .filter_map(|number| u16::try_from(number).ok())
        .collect()
}

fn of_ports(service: &Value) -> impl Iterator<Item = &Value> {
    service["spec"]["ports"].as_array().into_iter().flatten()
}

fn node_port(port: &Value) -> i64 {
    port["nodePort"].as_i64().unwrap_or(0)
}

fn protocol_of(port: &Value) -> String {
    match text(&port["protocol"]) {
        "" => "TCP",
        protocol => protocol,
    }
    .to_owned()
}

fn needs_node_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn needs_health_check_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(kind: &str, ports: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": {"type": kind, "ports": ports}})
    }

    /// The service after the round and what it was given, or the error.
    fn filled(mut object: Value, old: Option<&Value>) -> Result<(Value, usize), String> {
        let mut round = PortRound {
            range: &(30000..=30099),
            taken: &HashSet::from([30000]),
            given: HashSet::new(),
        };
        match round.fill(&mut object, old) {
            Ok(()) => Ok((object["spec"].clone(), round.given.len())),
            Err(Refused::Invalid(error)) => Err(error.to_string()),
            Err(Refused::All(errors)) => Err(format!("{errors:?}")),
            Err(Refused::Failed(message) | Refused::Unclassified(message)) => Err(message),
        }
    }

    fn port(number: u16, protocol: &str, node_port: u16) -> Value {
        json!({"port": number, "protocol": protocol, "nodePort": node_port})
    }

    #[test]
    fn one_port_in_two_protocols_has_one_number() {
        let (spec, given) = filled(
            service("NodePort", json!([port(53, "TCP", 0), port(53, "UDP", 0)])),
            None,
        )
        .unwrap();
        assert_eq!(given, 1);
        assert_eq!(spec["ports"][0]["nodePort"], spec["ports"][1]["nodePort"]);
        // The number asked for further down is that of all.
        let asked = json!([port(53, "TCP", 0), port(53, "UDP", 30007)]);
        let (spec, given) = filled(service("NodePort", asked), None).unwrap();
        assert_eq!(
            (given, spec["ports"][0]["nodePort"].clone()),
            (1, json!(30007))
        );
        let other = json!([port(53, "TCP", 30007), port(54, "UDP", 30007)]);
        assert_eq!(
            filled(service("NodePort", other), None).unwrap_err(),
            "spec.ports[1].nodePort: Invalid value: 30007: provided port is already allocated"
        );
    }

    #[test]
    fn refusals() {
        for (number, reason) in [
            (30000, "provided port is already allocated"),
            (
                99,
                "provided port is not in the valid range. The range of valid ports is 30000-30099",
            ),
        ] {
            let refused = filled(service("NodePort", json!([port(80, "TCP", number)])), None);
            let expected = format!("spec.ports[0].nodePort: Invalid value: {number}: {reason}");
            assert_eq!(refused.unwrap_err(), expected);
            let mut local = service("LoadBalancer", json!([]));
            local["spec"]["externalTrafficPolicy"] = "Local".into();
            local["spec"]["healthCheckNodePort"] = number.into();
            let what = format!("failed to allocate requested HealthCheck NodePort {number}");
            assert_eq!(
                filled(local, None).unwrap_err(),
                format!("{what}: {reason}")
            );
        }
        let mut many: Vec<Value> = (1..=99).map(|n| port(n, "TCP", 0)).collect();
        assert_eq!(
            filled(service("NodePort", json!(many)), None).unwrap().1,
            99
        );
        many.push(port(100, "TCP", 0));
        assert_eq!(
            filled(service("NodePort", json!(many)), None).unwrap_err(),
            "failed to allocate a nodePort: range is full"
        );
    }

    #[test]
    fn a_load_balancer_without_node_ports_has_those_asked_for_and_its_health_check() {
        let mut object = service(
            "LoadBalancer",
            json!([port(80, "TCP", 0), port(81, "TCP", 30008)]),
        );
        object["spec"]["allocateLoadBalancerNodePorts"] = false.into();
        object["spec"]["externalTrafficPolicy"] = "Local".into();
        let (spec, given) = filled(object.clone(), None).unwrap();
        assert_eq!(given, 2);
        assert_eq!(spec["ports"][0]["nodePort"], 0);
        assert!(spec["healthCheckNodePort"].as_u64().unwrap() > 30015);
        // Nothing more is taken when it is written again.
        let stored = json!({"spec": spec});
        assert_eq!(filled(stored.clone(), Some(&stored)).unwrap().1, 0);
    }

    #[test]
    fn updates_take_what_is_new_and_collide() {
        let old = service("NodePort", json!([port(80, "TCP", 30040)]));
        let more = service(
            "NodePort",
            json!([port(80, "TCP", 30040), port(81, "TCP", 0)]),
        );
        assert_eq!(filled(more, Some(&old)).unwrap().1, 1);
        let twice = json!([port(80, "TCP", 30041), port(81, "TCP", 30041)]);
        assert_eq!(
            filled(service("NodePort", twice), Some(&old)).unwrap_err(),
            "duplicate nodePort: {TCP 30041}"
        );
    }

    #[test]
    fn numbers_that_nobody_else_may_have() {
        let ports = json!([
            port(1, "TCP", 30001),
            port(1, "UDP", 30001),
            port(2, "TCP", 30001),
            port(3, "TCP", 0)
        ]);
        let mut object = service("LoadBalancer", ports);
        object["spec"]["healthCheckNodePort"] = 30002.into();
        assert_eq!(ports_of(&object), [30001, 30001, 30002]);
        assert_eq!((reserved(&(1..=16)), reserved(&(1..=17))), (0, 16));
        assert_eq!(
            (reserved(&(1..=1024)), reserved(&(30000..=32767))),
            (32, 86)
        );
    }
}

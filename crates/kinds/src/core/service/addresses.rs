//! Rules of a Service's addresses and their families.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use super::is_headless;
use crate::check::At;
use crate::check::addresses::legacy_ip;
use crate::tree::Tree;

/// What is wrong with addresses and families of a Service, before anything is allocated for it.
pub fn service_addresses(service: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    if service.text("spec.type") != "ExternalName" {
        cluster_ips(service, &At::new(service, "spec"), &mut e);
    }
    e
}

pub(super) fn cluster_ips(obj: &Value, spec: &At, e: &mut ErrorList) {
    let (one, list) = (spec.at("clusterIP"), spec.at("clusterIPs"));
    let ips: Vec<_> = list.each().collect();
    match (one.is_empty(), ips.first()) {
        (false, None) => e.push(list.required("")),
        (false, Some(first)) if first.text() != one.text() => {
            e.push(list.invalid("first value must match `clusterIP`"));
        }
        (true, Some(_)) => e.push(list.invalid("must be empty when `clusterIP` is not specified")),
        _ => {}
    }
    let families = spec.at("ipFamilies");
    let mut seen = BTreeSet::new();
    for family in families.each() {
        family.one_of(e, &["IPv4", "IPv6"]);
        if !seen.insert(family.text()) {
            e.push(family.duplicate());
        }
    }
    spec.at("ipFamilyPolicy")
        .one_of(e, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let before = e.len();
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && ip.text() == "None" {
            if ips.len() > 1 {
                e.push(list.invalid("'None' must be the first and only value"));
            }
            continue;
        }
        legacy_ip(ip, e);
    }
    let sound = e.len() == before;
    if ips.len() > 2 {
        e.push(list.invalid("may only hold up to 2 values"));
    }
    if !sound {
        return;
    }
    let is_v6 = |ip: &At| ip.text().contains(':');
    if ips.len() > 1 && ips.iter().all(|ip| is_v6(ip) == is_v6(&ips[0])) {
        e.push(list.invalid("may specify no more than one IP for each IP family"));
    }
    if !is_headless(obj) {
        for (i, (ip, family)) in ips.iter().zip(families.each()).enumerate() {
            let wanted = if is_v6(ip) { "IPv6" } else { "IPv4" };
            if matches!(family.text(), "IPv4" | "IPv6") && family.text() != wanted {
                e.push(ip.invalid(format!(
                    "expected an {} value as indicated by `ipFamilies[{i}]`",
                    family.text()
                )));
            }
        }
    }
}

pub(super) fn address_changes(new: &Value, old: &Value, e: &mut ErrorList) {
    if is_headless(new) && is_headless(old) {
        return;
    }
    let spec = At::new(new, "spec");
    let single = spec.value.text("ipFamilyPolicy") == "SingleStack";
    let mut compare = |field: &str, what: &str, families: bool| {
        let (now, before) = (spec.at(field), old.at("spec").list(field));
        let after = spec.value.list(field);
        let at = |i: usize, detail: &str| {
            FieldError::invalid(&now.path.index(i), now.value.clone(), detail)
        };
        if after.len() == before.len() {
            for (i, _) in after
                .iter()
                .zip(before)
                .enumerate()
                .filter(|(_, (a, b))| a != b)
            {
                e.push(at(if families { 0 } else { i }, "may not change once set"));
            }
            return;
        }
        if let (Some(a), Some(b)) = (after.first(), before.first())
            && a != b
        {
            e.push(at(0, "may not change once set"));
        }
        if before.len() > after.len() {
            if spec.value.list("clusterIPs").is_empty() {
                e.push(at(0, &format!("primary {what} can not be unset")));
            }
            if after.len() == 1 && !single {
                let policy = spec.at("ipFamilyPolicy");
                e.push(policy.invalid(format!(
                    "must be set to 'SingleStack' when releasing the secondary {what}"
                )));
            }
        }
    };
    compare("clusterIPs", "clusterIP", false);
    if is_headless(new) == is_headless(old) {
        compare("ipFamilies", "ipFamily", true);
    }
}

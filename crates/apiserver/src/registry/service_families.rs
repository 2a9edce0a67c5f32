//! The families of a Service's addresses: what policy and families a Service gets that does not
//! state them, and which it may not have.

use std::net::IpAddr;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::{Value, json};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// Fills `ipFamilyPolicy` and `ipFamilies`. `configured` are the families of the cluster, the one
/// of single-stack Services first.
pub(super) fn fill(
    service: &mut Value,
    old: Option<&Value>,
    configured: &[&str],
) -> Result<(), ErrorList> {
    if old.is_some_and(|old| is_unchanged_preference(service, old)) {
        return Ok(());
    }
    let headless = text(service, "clusterIP") == "None";
    let selects = service["spec"]["selector"]
        .as_object()
        .is_some_and(|selector| !selector.is_empty());
    if service["spec"]["ipFamilyPolicy"].is_null() {
        let before = old.map_or("", |old| text(old, "ipFamilyPolicy"));
        let policy = match before {
            "" if headless && !selects => REQUIRE,
            "" => SINGLE,
            before => before,
        };
        service["spec"]["ipFamilyPolicy"] = policy.into();
    }
    refuse(keelson_kinds::service_addresses(service))?;
    let mut errors = ErrorList::new();
    if let Some(old) = old {
        downgrade(service, old, &mut errors);
    }
    let single = text(service, "ipFamilyPolicy") == SINGLE;
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if single && list(service, field).len() == 2 {
            errors.push(policy_error(
                service,
                &format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"),
            ));
        }
    }
    infer(service, configured, &mut errors);
    refuse(errors)?;
    if headless && !selects {
        // Nobody allocates for these, so that they may have a family that the cluster lacks.
        let mut families = list(service, "ipFamilies");
        if families.is_empty() {
            families.extend(configured.first().map(|family| (*family).to_owned()));
        }
        if families.len() == 1 && !single {
            families.push(other(&families[0]).to_owned());
        }
        service["spec"]["ipFamilies"] = json!(families);
        return Ok(());
    }
    complete(service, configured)
}

/// A preference for two families is no request for the second one each time it is written again.
fn is_unchanged_preference(service: &Value, old: &Value) -> bool {
    let was = text(old, "ipFamilyPolicy");
    text(service, "ipFamilyPolicy") == PREFER
        && matches!(was, "" | PREFER)
        && ["type", "clusterIPs", "ipFamilies"]
            .iter()
            .all(|field| service["spec"][field] == old["spec"][field])
}

/// A policy of one family gives the second one back; any other policy keeps it.
fn downgrade(service: &mut Value, old: &Value, errors: &mut ErrorList) {
    let single = text(service, "ipFamilyPolicy") == SINGLE;
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (now, before) = (list(service, field), list(old, field));
        if single && now == before && now.len() > 1 {
            service["spec"][field] = json!(now[..1]);
        } else if !single && !now.is_empty() && now.len() < before.len() {
            errors.push(policy_error(
                service,
                &format!("must be 'SingleStack' to release the secondary {what}"),
            ));
        }
    }
}

/// Families of addresses that were given.
fn infer(service: &mut Value, configured: &[&str], errors: &mut ErrorList) {
    let (given, mut families) = (list(service, "clusterIPs"), list(service, "ipFamilies"));
    let path = Path::new("spec").child("clusterIPs");
    for (index, address) in given.iter().enumerate().skip(families.len()) {
        let family = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => "IPv4",
            Ok(IpAddr::V6(_)) => "IPv6",
            Err(_) => break,
        };
        if configured.contains(&family) {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(
                &path.index(index),
                json!(given),
                detail,
            ));
        }
    }
    if !families.is_empty() {
        service["spec"]["ipFamilies"] = json!(families);
    }
}

fn complete(service: &mut Value, configured: &[&str]) -> Result<(), ErrorList> {
    let mut errors = ErrorList::new();
    if text(service, "ipFamilyPolicy") == REQUIRE && configured.len() < 2 {
        errors.push(policy_error(
            service,
            "this cluster is not configured for dual-stack services",
        ));
    }
    let mut families = list(service, "ipFamilies");
    let path = Path::new("spec").child("ipFamilies");
    for (index, family) in families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            errors.push(FieldError::invalid(
                &path.index(index),
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    refuse(errors)?;
    if families.is_empty() {
        families.extend(configured.first().map(|family| (*family).to_owned()));
    }
    let single = text(service, "ipFamilyPolicy") == SINGLE;
    if !single && families.len() == 1 && configured.len() == 2 {
        families.push(other(&families[0]).to_owned());
    }
    service["spec"]["ipFamilies"] = json!(families);
    Ok(())
}

fn policy_error(service: &Value, detail: &str) -> FieldError {
    let path = Path::new("spec").child("ipFamilyPolicy");
    FieldError::invalid(&path, text(service, "ipFamilyPolicy"), detail)
}

fn refuse(errors: ErrorList) -> Result<(), ErrorList> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service["spec"][field].as_str().unwrap_or_default()
}

fn list(service: &Value, field: &str) -> Vec<String> {
    let items = service["spec"][field].as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(spec: Value, configured: &[&str]) -> Result<Value, Vec<String>> {
        let mut service = json!({"spec": spec});
        service["spec"]["type"] = "ClusterIP".into();
        fill(&mut service, None, configured).map_err(|errors| {
            errors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<String>>()
        })?;
        Ok(json!([
            service["spec"]["ipFamilyPolicy"],
            service["spec"]["ipFamilies"]
        ]))
    }

    #[test]
    fn families_follow_from_policy_and_cluster() {
        let both: &[&str] = &["IPv4", "IPv6"];
        let selector = json!({"a": "b"});
        for (spec, configured, expected) in [
            (json!({}), both, json!([SINGLE, ["IPv4"]])),
            (
                json!({"ipFamilyPolicy": PREFER}),
                both,
                json!([PREFER, ["IPv4", "IPv6"]]),
            ),
            (
                json!({"ipFamilyPolicy": PREFER}),
                &both[..1],
                json!([PREFER, ["IPv4"]]),
            ),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"]}),
                &both[..1],
                json!([REQUIRE, ["IPv4", "IPv6"]]),
            ),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": selector}),
                &both[..1],
                json!([SINGLE, ["IPv4"]]),
            ),
        ] {
            assert_eq!(filled(spec, configured), Ok(expected));
        }
        let empty = filled(json!({"ipFamilyPolicy": ""}), both).unwrap_err();
        assert!(empty[0].contains("Unsupported value: \"\""), "{empty:?}");
        let lacking = filled(json!({"ipFamilyPolicy": REQUIRE}), &both[..1]).unwrap_err();
        assert_eq!(
            lacking,
            [
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
            ]
        );
    }
}

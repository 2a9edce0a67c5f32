//! Devices of a ResourceSlice: names, attributes, capacities, taints, counters, places.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::At;
use crate::core::pod::scheduling::node_selector;
use crate::core::pod::volumes::csi_driver_name;
use crate::tree::Tree;
use crate::tree::TreeMut;

/// Attributes and capacities of one device.
const MOST_ENTRIES: usize = 32;
/// Values of attributes of one device, those in lists each.
const MOST_VALUES: usize = 48;
const LONGEST_VALUE: usize = 64;
const LONGEST_ID: usize = 32;
pub(super) const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const LISTS: &[&str] = &["bools", "ints", "strings", "versions"];

/// `id` or `domain/id`; a third part goes unseen, as it does upstream.
pub(super) fn qualified_name(at: &At, name: &str, e: &mut ErrorList) {
    let parts: Vec<_> = name.split('/').collect();
    match parts[..] {
        [id] => identifier(at, id, e),
        [domain, id] => {
            if domain.is_empty() {
                e.push(FieldError::invalid(
                    &at.path,
                    "",
                    "the domain must not be empty",
                ));
            } else {
                let value = domain.into();
                let domain = At {
                    value: &value,
                    path: at.path.clone(),
                };
                csi_driver_name(&domain, e);
            }
            if id.is_empty() {
                e.push(FieldError::invalid(
                    &at.path,
                    "",
                    "the name must not be empty",
                ));
            } else {
                identifier(at, id, e);
            }
        }
        _ => {}
    }
}

fn identifier(at: &At, id: &str, e: &mut ErrorList) {
    if id.len() > LONGEST_ID {
        e.push(FieldError::too_long(&at.path, LONGEST_ID));
    }
    e.extend(
        validation::is_c_identifier(id)
            .into_iter()
            .map(|problem| FieldError::invalid(&at.path, id, problem)),
    );
}

/// A name of a counter or a set of them.
fn counter_name(at: &At, name: &str, e: &mut ErrorList) {
    e.extend(
        validation::is_dns1123_label(name)
            .into_iter()
            .map(|problem| FieldError::invalid(&at.path, name, problem)),
    );
}

/// Named amounts, by at most `most` names.
pub(super) fn counters(counters: &At, e: &mut ErrorList) {
    const MOST: usize = 32;
    if counters.is_empty() {
        return e.push(counters.required(""));
    }
    if counters.len() > MOST {
        return e.push(FieldError::too_many(&counters.path, counters.len(), MOST));
    }
    for (name, _) in counters.entries() {
        counter_name(counters, name, e);
    }
}

pub(super) fn counter_set_name(name: &At, e: &mut ErrorList) {
    if name.is_empty() {
        e.push(name.required(""));
    } else {
        counter_name(name, name.text(), e);
    }
}

/// Each is one of its kind by the text under `key`; the item itself is reported.
pub(super) fn unique(list: &At, key: &str, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for item in list.each() {
        let text = item.value.text(key);
        if !seen.insert(text) {
            e.push(FieldError::duplicate(&item.path, text));
        }
    }
}

pub(super) fn validate(device: &At, own_place: bool, e: &mut ErrorList) {
    let (attributes, capacity) = (device.at("attributes"), device.at("capacity"));
    device.at("name").conforms(e, validation::is_dns1123_label);
    let entries = attributes.len() + capacity.len();
    if entries > MOST_ENTRIES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MOST_ENTRIES}");
        e.push(FieldError::invalid(&device.path, entries, detail));
    }
    let values: usize = attributes.entries().map(|(_, a)| values_of(&a)).sum();
    if values > MOST_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MOST_VALUES}");
        e.push(FieldError::invalid(&device.path, values, detail));
    }
    for (name, attribute) in attributes.entries() {
        qualified_name(&attributes, name, e);
        self::attribute(&attribute, e);
    }
    for (name, amount) in capacity.entries() {
        qualified_name(&capacity, name, e);
        let policy = amount.at("requestPolicy");
        if !policy.exists() {
            continue;
        }
        if device.value.flag("allowMultipleAllocations") {
            super::request_policy::validate(&policy, amount.at("value").quantity(), e);
        } else {
            e.push(policy.forbidden("allowMultipleAllocations must be true"));
        }
    }
    taints(&device.at("taints"), e);
    let consumed = device.at("consumesCounters");
    if consumed.len() > 2 {
        e.push(FieldError::too_many(&consumed.path, consumed.len(), 2));
    } else {
        for counters in consumed.each() {
            counter_set_name(&counters.at("counterSet"), e);
            self::counters(&counters.at("counters"), e);
        }
        unique(&consumed, "counterSet", e);
    }
    place(device, own_place, e);
    binding_conditions(device, e);
}

fn values_of(attribute: &At) -> usize {
    let listed: usize = LISTS.iter().map(|list| attribute.at(list).len()).sum();
    listed.max(1)
}

fn attribute(attribute: &At, e: &mut ErrorList) {
    let text = |at: &At, e: &mut ErrorList| {
        if at.len() > LONGEST_VALUE {
            e.push(FieldError::too_long(&at.path, LONGEST_VALUE));
        }
    };
    let version = |at: &At, e: &mut ErrorList| {
        if !is_semantic_version(at.text()) {
            e.push(at.invalid("must be a string compatible with semver.org spec 2.0.0"));
        }
        text(at, e);
    };
    if attribute.has("string") {
        text(&attribute.at("string"), e);
    }
    if attribute.has("version") {
        version(&attribute.at("version"), e);
    }
    for list in LISTS.iter().filter(|list| attribute.has(list)) {
        let list = attribute.at(list);
        if list.is_empty() {
            e.push(list.invalid("must not be empty if specified"));
        }
    }
    attribute.at("strings").each().for_each(|s| text(&s, e));
    attribute.at("versions").each().for_each(|v| version(&v, e));
    let kinds = ["bool", "int", "string", "version"].iter().chain(LISTS);
    match kinds.filter(|kind| attribute.has(kind)).count() {
        0 => {
            let detail = "exactly one value must be specified";
            e.push(FieldError::invalid(&attribute.path, "", detail));
        }
        1 => {}
        _ => e.push(attribute.invalid("exactly one value must be specified")),
    }
}

/// `1.2.3-pre.1+build`, as semver.org has it.
fn is_semantic_version(text: &str) -> bool {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| digits(s) && (s == "0" || !s.starts_with('0'));
    let (rest, build) = text
        .split_once('+')
        .map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest
        .split_once('-')
        .map_or((rest, None), |(a, b)| (a, Some(b)));
    let core: Vec<_> = core.split('.').collect();
    core.len() == 3
        && core.into_iter().all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|build| build.split('.').all(word))
}

fn taints(taints: &At, e: &mut ErrorList) {
    const MOST: usize = 16;
    if taints.len() > MOST {
        return e.push(FieldError::too_many(&taints.path, taints.len(), MOST));
    }
    taints.each().for_each(|one| taint(&one, e));
}

pub(super) fn taint(taint: &At, e: &mut ErrorList) {
    taint.at("key").label_name(e);
    taint
        .at("value")
        .optional_conforms(e, validation::is_valid_label_value);
    taint.at("effect").required_one_of(e, EFFECTS);
}

/// A taint that does not say since when begins now.
pub(super) fn fill_time_added(taint: &mut Value, now: &str) {
    if taint.is_object() && !now.is_empty() {
        taint.fill_text("timeAdded", now);
    }
}

/// Where the device is, if its slice leaves that to each device.
fn place(device: &At, own: bool, e: &mut ErrorList) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    let (node, selector, all) = (
        device.at("nodeName"),
        device.at("nodeSelector"),
        device.at("allNodes"),
    );
    if !own {
        if node.exists() || selector.exists() || all.exists() {
            let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            e.push(FieldError::invalid(&device.path, (), detail));
        }
        return;
    }
    let mut set = Vec::new();
    node_name(&node, "must not be empty", &mut set, e);
    node_selection(&selector, &mut set, e);
    switch(&all, "`allNodes`", &mut set, e);
    match set.len() {
        0 => e.push(device.required(ONE)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            e.push(FieldError::invalid(&device.path, shown, ONE));
        }
    }
}

/// The ways to say where devices are; what is said is noted in `set`.
pub(super) fn node_name(node: &At, empty: &str, set: &mut Vec<&'static str>, e: &mut ErrorList) {
    if node.exists() && node.is_empty() {
        e.push(node.invalid(empty));
    } else if node.exists() {
        set.push("`nodeName`");
        node.conforms(e, validation::is_dns1123_subdomain);
    }
}

pub(super) fn node_selection(selector: &At, set: &mut Vec<&'static str>, e: &mut ErrorList) {
    if selector.exists() {
        set.push("`nodeSelector`");
        node_selector(selector, e);
    }
}

pub(super) fn switch(at: &At, shown: &'static str, set: &mut Vec<&'static str>, e: &mut ErrorList) {
    if at.flag() {
        set.push(shown);
    } else if at.exists() {
        e.push(at.invalid("must be either unset or set to true"));
    }
}

/// Conditions that a binding waits for; those that fail it are named only together with them.
pub(super) fn binding_conditions(at: &At, e: &mut ErrorList) {
    const MOST: usize = 4;
    let (wanted, failing) = (
        at.at("bindingConditions"),
        at.at("bindingFailureConditions"),
    );
    for list in [&wanted, &failing] {
        if list.len() > MOST {
            e.push(FieldError::too_many(&list.path, list.len(), MOST));
            continue;
        }
        for condition in list.each() {
            condition.label_name(e);
        }
    }
    let mut seen = BTreeSet::new();
    for condition in wanted.each() {
        if !seen.insert(condition.text()) {
            e.push(condition.duplicate());
        }
    }
    let mut seen = BTreeSet::new();
    for condition in failing.each() {
        if !seen.insert(condition.text()) {
            e.push(condition.duplicate());
        }
        if wanted.each().any(|other| other.text() == condition.text()) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            e.push(condition.invalid(detail));
        }
    }
    if wanted.is_empty() && !failing.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        e.push(FieldError::invalid(&wanted.path, (), detail));
    }
    if failing.is_empty() && !wanted.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        e.push(FieldError::invalid(&failing.path, (), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::is_semantic_version;

    #[test]
    fn versions_are_semantic() {
        for good in [
            "1.2.3",
            "0.0.0",
            "1.2.3-alpha.1",
            "1.2.3+build.07",
            "1.0.0-a-b+c",
        ] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in [
            "1.2", "01.2.3", "1.2.3-01", "1.2.3-", "v1.2.3", "1.2.3+", "",
        ] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }
}

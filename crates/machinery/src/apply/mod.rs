//! Server-side apply: who owns which field, merging an applied configuration into the live
//! object, and noticing when two managers disagree.
//!
//! Objects are in the version the request speaks. What other managers own is written in the version
//! that they spoke: what changes is looked at in each of those versions, where the caller knows how
//! to convert, and read with the request's schema where not.

mod compare;
mod error;
mod field_set;
mod fields_v1;
mod managed;
mod merge;
mod path;
mod prune;
pub mod scale;

pub use error::{ApplyError, Conflict};
pub use field_set::FieldSet;
pub use fields_v1::FieldsV1;
pub use managed::{Entry, ManagedFields, Operation};

use crate::meta;
use compare::compare;
use keelson_api::Schema;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const MAX_UPDATE_MANAGERS: usize = 10;

/// Fields nobody manages.
static STRIPPED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

/// The other versions of the request's kind.
pub trait Versions {
    /// An object of the request's version in another one; nothing when that cannot be had.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;
    fn schema(&self, api_version: &str) -> Option<&Schema>;
}

/// What a write says about itself.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub schema: &'a Schema,
    pub manager: &'a str,
    /// `apps/v1`.
    pub api_version: &'a str,
    pub kind: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// RFC 3339 in seconds.
    pub now: &'a str,
    /// Fields this path resets, which its manager therefore does not own: `status` on a main
    /// resource that has a status subresource, `spec` on the subresource. `FieldSet::of(&[…])`.
    pub reset: &'a FieldSet,
    pub versions: Option<&'a dyn Versions>,
}

impl Request<'_> {
    fn manager(&self) -> &str {
        if self.manager.is_empty() {
            "unknown"
        } else {
            self.manager
        }
    }
}

/// Sets `new`'s managedFields after a create (`live` is `None`), an update or a patch that is no
/// apply. `new` holds the managedFields the client sent, which count: `[]` and `[{}]` reset them.
pub fn track_update(live: Option<&Value>, new: &mut Value, request: &Request<'_>) {
    let stored = live.map(meta::managed_fields).unwrap_or(&[]);
    let known = || ManagedFields::decode_or_empty(stored.to_vec());
    let mut managed = match take_managed_fields(new) {
        // What the client was told and told again.
        Some(Value::Array(sent)) if sent == stored => ManagedFields::decode_or_empty(sent),
        Some(Value::Array(sent)) if request.subresource.is_empty() => {
            if is_reset(&sent) {
                ManagedFields::default()
            } else {
                ManagedFields::decode(sent)
                    .ok()
                    .filter(|managed| !managed.is_empty())
                    .unwrap_or_else(known)
            }
        }
        _ => known(),
    };
    // An object without any manager is not tracked until it is applied to.
    let existing = live.is_some_and(|l| !meta::uid(l).is_empty());
    if managed.is_empty() && existing {
        return;
    }
    update(&mut managed, live, new, request, request.manager());
    managed.cap_updates(MAX_UPDATE_MANAGERS);
    meta::set_managed_fields(new, managed.encode());
}

fn is_reset(list: &[Value]) -> bool {
    match list {
        [] => true,
        [one] => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

fn take_managed_fields(obj: &mut Value) -> Option<Value> {
    obj.get_mut("metadata")?
        .as_object_mut()?
        .remove("managedFields")
}

/// What is new or different and what is gone, in the request's version and in those that other
/// managers spoke.
struct Changes {
    own: (FieldSet, FieldSet),
    others: BTreeMap<String, (FieldSet, FieldSet)>,
}

impl Changes {
    fn of(old: &Value, new: &Value, request: &Request<'_>, managed: &ManagedFields) -> Self {
        let between = |old: &Value, new: &Value, schema: &Schema| {
            let mut changes = compare(old, new, schema);
            changes.filter(request.reset);
            changes.split()
        };
        let own = between(old, new, request.schema);
        let mut others = BTreeMap::new();
        let spoken = managed.iter().map(|(_, entry)| entry.api_version.as_str());
        for version in spoken.filter(|version| *version != request.api_version) {
            let Some(versions) = request.versions.filter(|_| !others.contains_key(version)) else {
                continue;
            };
            if let (Some(schema), Some(old), Some(new)) = (
                versions.schema(version),
                versions.convert(old, version),
                versions.convert(new, version),
            ) {
                others.insert(version.to_owned(), between(&old, &new, schema));
            }
        }
        Self { own, others }
    }

    fn in_version(&self, api_version: &str) -> &(FieldSet, FieldSet) {
        self.others.get(api_version).unwrap_or(&self.own)
    }
}

/// Gives the fields that changed to `manager`.
fn update(
    managed: &mut ManagedFields,
    live: Option<&Value>,
    new: &Value,
    request: &Request<'_>,
    manager: &str,
) {
    // A new object is compared with an empty one of its type, so that structs which are always
    // there belong to nobody.
    let empty = match live {
        Some(_) => Value::Null,
        None => crate::decode::normalize(Value::Object(Map::new()), request.schema)
            .map(|d| d.object)
            .unwrap_or_default(),
    };
    let changes = Changes::of(live.unwrap_or(&empty), new, request, managed);
    managed.take_away(&changes, None);
    let mut changed = changes.own.0;
    changed.subtract(&STRIPPED);
    if !changed.is_empty() {
        let id = managed::Id::update(manager, request.api_version, request.subresource);
        managed.add(id, changed, request.api_version, request.now);
    }
}

/// Merges `config` into the live object (`None` creates it) and returns the new object with its
/// managedFields. Fields the manager applied last time and no more are removed unless someone
/// else owns them. Fails when another manager owns a field at a different value, unless forced.
/// The caller brings the result into canonical form, defaults and validates it.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    request: &Request<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let sent = meta::api_version(config);
    let group = |api_version| meta::split_api_version(api_version).0;
    if meta::kind(config) != request.kind
        || group(sent) != group(request.api_version)
        || sent.is_empty()
    {
        return Err(ApplyError::BadRequest(format!(
            "invalid object type: {}",
            type_text(config)
        )));
    }
    if sent != request.api_version {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {sent}, expected: {}",
            request.api_version
        )));
    }
    if meta::metadata(config)
        .and_then(|m| m.get("managedFields"))
        .is_some_and(|v| !v.is_null())
    {
        return Err(ApplyError::BadRequest(
            "metadata.managedFields must be nil".into(),
        ));
    }
    merge::check(config, request.schema).map_err(|e| {
        ApplyError::Typed(format!(
            "failed to create typed patch object ({}/{}; {}): {e}",
            meta::namespace(config),
            meta::name(config),
            type_text(config)
        ))
    })?;
    let mut base = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    let stored = match take_managed_fields(&mut base) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    };
    let mut managed = ManagedFields::decode(stored)?;
    if managed.is_empty() && live.is_some() {
        update(&mut managed, None, &base, request, BEFORE_FIRST_APPLY);
    }
    let outcome = match attempt(&base, config, request, managed.clone(), force) {
        Err(ApplyError::Conflicts(conflicts)) if request.manager == "kubectl" => {
            // What kubectl applied on the client's side it may take over.
            let allowed = last_applied_fields(&base, request);
            let rest: Vec<Conflict> = conflicts
                .into_iter()
                .filter(|c| !allowed.has_path(c.elements()))
                .collect();
            if !rest.is_empty() {
                return Err(ApplyError::Conflicts(rest));
            }
            attempt(&base, config, request, managed, true)
        }
        other => other,
    };
    let (mut object, managed) = outcome?;
    if request.manager == "kubectl" && meta::annotation(&object, LAST_APPLIED).is_some() {
        set_last_applied(&mut object, config);
    }
    meta::set_managed_fields(&mut object, managed.encode());
    Ok(object)
}

/// Group, version and kind as Go prints them: `/v1, Kind=Pod`.
fn type_text(config: &Value) -> String {
    let api_version = meta::api_version(config);
    let core = if api_version.contains('/') { "" } else { "/" };
    format!("{core}{api_version}, Kind={}", meta::kind(config))
}

/// Merges what an admission policy wants into `live`, without any manager: a configuration may set
/// fields but not replace an atomic list, map or struct, which would silently drop the rest of it.
pub fn merge_mutation(live: &Value, config: &Value, schema: &Schema) -> Result<Value, String> {
    merge::check(config, schema)
        .map_err(|e| format!("failed to convert patch object to typed object: {e}"))?;
    let atomics = merge::atomics(config, schema);
    if !atomics.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    Ok(merge::merge(live, config, schema))
}

fn attempt(
    base: &Value,
    config: &Value,
    request: &Request<'_>,
    mut managed: ManagedFields,
    force: bool,
) -> Result<(Value, ManagedFields), ApplyError> {
    let id = managed::Id::apply(request.manager(), request.subresource);
    let merged = merge::merge(base, config, request.schema);
    let set = merge::field_set(config, request.schema).recursive_difference(request.reset);
    let last = managed.get(&id).cloned();
    managed.set(
        id.clone(),
        set,
        request.api_version,
        last.as_ref().and_then(|last| last.time.clone()),
    );
    let object = match &last {
        Some(last) if !last.fields.is_empty() => {
            prune::prune(merged, &last.fields.set(), &managed, request.schema)
        }
        _ => merged,
    };
    let changes = Changes::of(base, &object, request, &managed);
    let conflicts = managed.conflicts(&changes, &id);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    managed.take_away(&changes, Some(&id));
    managed.strip(&id, &STRIPPED);
    // Who comes to own what was there already has no time, and who has one keeps it.
    if object != *base {
        managed.touch(&id, request.now);
    }
    Ok((object, managed))
}

/// The fields of the last configuration kubectl applied from the client's side.
fn last_applied_fields(live: &Value, request: &Request<'_>) -> FieldSet {
    let Some(text) = meta::annotation(live, LAST_APPLIED) else {
        return FieldSet::default();
    };
    let Ok(config) = serde_json::from_str::<Value>(text) else {
        return FieldSet::default();
    };
    if meta::api_version(&config) != request.api_version {
        return FieldSet::default();
    }
    merge::field_set(&config, request.schema)
}

fn set_last_applied(object: &mut Value, config: &Value) {
    let mut config = config.clone();
    let drop_own = config
        .get_mut("metadata")
        .and_then(|m| m.get_mut("annotations"))
        .and_then(Value::as_object_mut);
    if let Some(annotations) = drop_own {
        annotations.remove(LAST_APPLIED);
    }
    let size: usize = meta::annotations(object)
        .iter()
        .filter(|(k, _)| *k != LAST_APPLIED)
        .map(|(k, v)| k.len() + v.len())
        .sum();
    let text = format!("{config}\n");
    if size + text.len() + LAST_APPLIED.len() <= crate::validation::TOTAL_ANNOTATION_SIZE_BYTES {
        meta::set_annotation(object, LAST_APPLIED, &text);
    } else if let Some(Value::Object(a)) = meta::metadata_mut(object).get_mut("annotations") {
        a.remove(LAST_APPLIED);
    }
}

#[cfg(test)]
mod tests;

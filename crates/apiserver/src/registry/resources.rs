//! The live table of served resources: the built-in ones from the generated facts, custom ones
//! installed and removed at run time. Everything generic is derived from an entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
pub use keelson_api::SchemaRef;
use keelson_kinds::{Kind, UpdateContext};
use keelson_machinery::field::ErrorList;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::event_convert;
use crate::feature_gates::FeatureGates;
use crate::runtime_config::RuntimeConfig;

/// A column of a server-side table; owned, since custom resources bring theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefinition {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i32,
}

/// What one kind adds to the generic engine: [`Kind`] for built-in kinds, the same rules derived
/// from a CustomResourceDefinition for custom ones. Objects are in the storage version unless
/// said otherwise. Pure.
pub trait KindRules: Send + Sync {
    /// Runs on the request's version.
    fn default(&self, obj: &mut Value);
    fn prepare_create(&self, obj: &mut Value);
    fn validate(&self, obj: &Value) -> ErrorList;
    fn prepare_update(&self, new: &mut Value, old: &Value, ctx: &UpdateContext<'_>);
    fn validate_update(&self, new: &Value, old: &Value, ctx: &UpdateContext<'_>) -> ErrorList;
    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String>;
    /// Columns after `Name`.
    fn columns(&self) -> Vec<ColumnDefinition>;
    fn cells(&self, obj: &Value, now: i64) -> Vec<Value>;
    fn selectable(&self, obj: &Value) -> Vec<(String, String)>;
    fn selectable_names(&self) -> Vec<String>;
    /// Between served versions of one group; `from` and `to` are bare versions.
    fn convert(&self, obj: &mut Value, from: &str, to: &str) -> Result<(), Status>;
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String>;
    fn allow_create_on_update(&self) -> bool;
    fn allow_unconditional_update(&self) -> bool;
    fn graceful_deletion_seconds(&self, obj: &Value, wanted: Option<i64>) -> Option<i64>;
    /// Whether the first request to delete it only marks it, as this does.
    fn mark_deleting(&self, _obj: &mut Value, _now: &str) -> bool {
        false
    }
    fn time_to_live_s(&self) -> Option<u64>;
    /// A deletion without a policy leaves what the object owns.
    fn orphans_dependents(&self) -> bool {
        false
    }
    /// What every request for it is warned of; empty for most.
    fn deprecation(&self) -> &str {
        ""
    }
    /// The table does not begin with the name.
    fn nameless_table(&self) -> bool {
        false
    }
    /// Dotted paths of what nobody comes to own through this path, the object's own or a
    /// subresource's.
    fn reset_fields(&self, subresource: &str) -> &'static [&'static str];
    /// Whether stored objects may lack defaults that came after them, or be in a version that was
    /// the stored one once, so that they are brought up to date when they are read.
    fn updates_on_read(&self) -> bool {
        false
    }
    /// Whether conversion asks somebody else, who may refuse.
    fn conversion_may_fail(&self) -> bool {
        false
    }
    /// Brings an object, in the version it is stored in, up to date.
    fn refresh(&self, _obj: &mut Value) {}
}

impl KindRules for &'static Kind {
    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        let row = self.reset_fields.iter().find(|(of, _)| *of == subresource);
        row.map_or(&[], |(_, fields)| fields)
    }

    fn default(&self, obj: &mut Value) {
        (self.default)(obj);
    }

    fn prepare_create(&self, obj: &mut Value) {
        self.prepare_new(obj);
    }

    fn validate(&self, obj: &Value) -> ErrorList {
        self.validate_new(obj)
    }

    fn prepare_update(&self, new: &mut Value, old: &Value, ctx: &UpdateContext<'_>) {
        self.prepare_changed(new, old, ctx);
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &UpdateContext<'_>) -> ErrorList {
        (self.validate_update)(new, old, ctx)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warnings)(new, old)
    }

    fn columns(&self) -> Vec<ColumnDefinition> {
        self.columns
            .iter()
            .map(|column| ColumnDefinition {
                name: column.name.to_owned(),
                kind: column.kind.to_owned(),
                format: column.format.to_owned(),
                description: keelson_kinds::column_description(
                    self.group,
                    self.resource,
                    column.name,
                )
                .to_owned(),
                priority: column.priority,
            })
            .collect()
    }

    fn cells(&self, obj: &Value, now: i64) -> Vec<Value> {
        (self.cells)(obj, now)
    }

    fn selectable(&self, obj: &Value) -> Vec<(String, String)> {
        (self.selectable)(obj)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn selectable_names(&self) -> Vec<String> {
        self.selectable_names
            .iter()
            .map(|name| (*name).to_owned())
            .collect()
    }

    fn convert(&self, obj: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        (self.convert)(obj, from, to);
        Ok(())
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        (self.validate_name)(name, prefix)
    }

    fn allow_create_on_update(&self) -> bool {
        self.allow_create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.allow_unconditional_update
    }

    fn graceful_deletion_seconds(&self, obj: &Value, wanted: Option<i64>) -> Option<i64> {
        (self.graceful_deletion_seconds)(obj, wanted)
    }

    fn mark_deleting(&self, obj: &mut Value, now: &str) -> bool {
        (self.mark_deleting)(obj, now)
    }

    fn time_to_live_s(&self) -> Option<u64> {
        self.time_to_live_s
    }

    fn orphans_dependents(&self) -> bool {
        self.orphans_dependents
    }

    fn nameless_table(&self) -> bool {
        self.nameless_table
    }

    fn deprecation(&self) -> &str {
        self.deprecation
    }
}

/// A subresource as discovery shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubresourceEntry {
    pub name: String,
    /// Of the objects it takes and returns.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

/// One served group, version and resource.
#[derive(Clone)]
pub struct ResourceEntry {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<SubresourceEntry>,
    /// Where objects are kept: the same for all versions, and for both groups of events.
    pub storage_group: String,
    pub storage_version: String,
    pub schema: SchemaRef,
    pub rules: Arc<dyn KindRules>,
    /// For a custom resource: what scale reads and writes, as field paths.
    pub scale: Option<ScalePaths>,
    pub custom: bool,
}

/// `subresources.scale` of a CustomResourceDefinition: dotted paths with a leading dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

impl ResourceEntry {
    pub fn api_version(&self) -> String {
        meta::join_api_version(&self.group, &self.version)
    }

    pub fn storage_api_version(&self) -> String {
        meta::join_api_version(&self.storage_group, &self.storage_version)
    }

    /// Whether stored bytes are already in this entry's version.
    pub fn is_stored_form(&self) -> bool {
        self.version == self.storage_version && self.group == self.storage_group
    }

    /// Whether objects can be sent as protobuf; custom resources cannot.
    pub fn has_protobuf(&self) -> bool {
        !self.custom && keelson_machinery::protobuf::supports(self.schema.type_name())
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&SubresourceEntry> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// From this entry's version to the stored one, in place.
    pub fn to_storage(&self, obj: &mut Value) -> Result<(), Status> {
        self.convert(
            obj,
            (&self.group, &self.version),
            (&self.storage_group, &self.storage_version),
        )
    }

    /// From the stored version to this entry's, in place.
    pub fn from_storage(&self, obj: &mut Value) -> Result<(), Status> {
        self.convert(
            obj,
            (&self.storage_group, &self.storage_version),
            (&self.group, &self.version),
        )
    }

    /// The name in the stored form of a field that clients of this entry select by.
    pub(crate) fn stored_field(&self, field: &str) -> Option<String> {
        if self.group == self.storage_group {
            return Some(field.to_owned());
        }
        event_convert::selector_field(&self.group, field)
    }

    /// Whether stored bytes are what clients of this entry are sent.
    pub(crate) fn is_sent_as_stored(&self) -> bool {
        self.is_stored_form() && !self.rules.updates_on_read()
    }

    /// Fills defaults that were added to the schema after the object was stored.
    pub(crate) fn fill_stored(&self, obj: &mut Value) -> Result<(), Status> {
        if self.rules.updates_on_read() {
            self.rules.refresh(obj);
            self.to_storage(obj)?;
        }
        Ok(())
    }

    /// A stored object as clients of this entry know it.
    pub(crate) fn requested(&self, stored: &Value) -> Result<Value, Status> {
        let mut object = stored.clone();
        if self.rules.updates_on_read() {
            self.rules.refresh(&mut object);
        }
        self.from_storage(&mut object)?;
        Ok(object)
    }

    fn convert(&self, obj: &mut Value, from: (&str, &str), to: (&str, &str)) -> Result<(), Status> {
        // What was stored before the definition named another storage version keeps its own.
        let own = if self.custom {
            meta::split_api_version(meta::api_version(obj)).1.to_owned()
        } else {
            String::new()
        };
        let from = if own.is_empty() {
            from
        } else {
            (from.0, own.as_str())
        };
        if from == to {
            return Ok(());
        }
        if from.0 != to.0 {
            event_convert::convert(obj, to.0);
            return Ok(());
        }
        self.rules.convert(obj, from.1, to.1)?;
        meta::set_type(obj, &meta::join_api_version(to.0, to.1), &self.kind);
        Ok(())
    }
}

/// Event is stored once, in core form, and served by two groups.
const STORED_IN_CORE: &[(&str, &str)] = &[("events.k8s.io", "events")];

fn builtin_entry(facts: &keelson_api::ResourceFacts) -> Option<ResourceEntry> {
    let type_name = keelson_api::kind_type(facts.group, facts.version, facts.kind)?;
    let schema = keelson_api::schema(type_name)?;
    let stored_in_core = STORED_IN_CORE.contains(&(facts.group, facts.resource));
    let storage_group = if stored_in_core { "" } else { facts.group };
    let rules = keelson_kinds::kind(facts.group, facts.resource);
    let known = rules.resource == facts.resource && rules.group == facts.group;
    let storage_version = if stored_in_core {
        "v1".to_owned()
    } else if known
        && keelson_api::resource(facts.group, rules.storage_version, facts.resource).is_some()
    {
        rules.storage_version.to_owned()
    } else {
        preferred_version(facts.group, facts.resource)
            .unwrap_or(facts.version)
            .to_owned()
    };
    let subresources = facts.subresources.iter().map(|sub| SubresourceEntry {
        name: sub.name.to_owned(),
        group: sub.group.to_owned(),
        version: sub.version.to_owned(),
        kind: sub.kind.to_owned(),
        verbs: texts(&sub.verbs),
    });
    Some(ResourceEntry {
        group: facts.group.to_owned(),
        version: facts.version.to_owned(),
        resource: facts.resource.to_owned(),
        singular: facts.singular.to_owned(),
        kind: facts.kind.to_owned(),
        list_kind: format!("{}List", facts.kind),
        short_names: texts(&facts.short_names),
        categories: texts(&facts.categories),
        namespaced: facts.namespaced,
        verbs: texts(&facts.verbs),
        subresources: subresources.collect(),
        storage_group: storage_group.to_owned(),
        storage_version,
        schema: SchemaRef::Static(schema),
        rules: Arc::new(rules),
        scale: None,
        custom: false,
    })
}

/// The first version, in the group's order of preference, that has the resource.
fn preferred_version(group: &str, resource: &str) -> Option<&'static str> {
    let group = keelson_api::groups()
        .iter()
        .find(|facts| facts.name == group)?;
    group
        .versions
        .iter()
        .copied()
        .find(|version| keelson_api::resource(group.name, version, resource).is_some())
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

type Key = (String, String, String);

/// The table itself. Readers take a snapshot without locking; writers are rare.
pub struct Resources {
    entries: ArcSwap<BTreeMap<Key, Arc<ResourceEntry>>>,
    changes: tokio::sync::watch::Sender<u64>,
}

impl Resources {
    /// The resources of this version of Kubernetes that are to be served.
    pub fn builtin(served: &RuntimeConfig, gates: &FeatureGates) -> Arc<Self> {
        let entries = keelson_api::resources()
            .iter()
            .filter(|facts| served.serves(facts) && gates.allow(facts))
            .filter_map(builtin_entry)
            .map(|entry| {
                (
                    (
                        entry.group.clone(),
                        entry.resource.clone(),
                        entry.version.clone(),
                    ),
                    Arc::new(entry),
                )
            })
            .collect();
        Arc::new(Self {
            entries: ArcSwap::from_pointee(entries),
            changes: tokio::sync::watch::Sender::new(0),
        })
    }

    pub fn lookup(&self, group: &str, version: &str, resource: &str) -> Option<Arc<ResourceEntry>> {
        let key = (group.to_owned(), resource.to_owned(), version.to_owned());
        self.entries.load().get(&key).cloned()
    }

    /// Any served version of the resource; all of them share one stored form.
    pub fn any_version(&self, group: &str, resource: &str) -> Option<Arc<ResourceEntry>> {
        let start = (group.to_owned(), resource.to_owned(), String::new());
        let entries = self.entries.load();
        let (_, first) = entries.range(start..).next()?;
        if first.group != group || first.resource != resource {
            return None;
        }
        let stored = (
            first.group.clone(),
            first.resource.clone(),
            first.storage_version.clone(),
        );
        Some(Arc::clone(entries.get(&stored).unwrap_or(first)))
    }

    /// The main resource whose objects are of that kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<ResourceEntry>> {
        let start = (group.to_owned(), String::new(), String::new());
        let entries = self.entries.load();
        entries
            .range(start..)
            .map(|(_, entry)| entry)
            .take_while(|entry| entry.group == group)
            .find(|entry| entry.version == version && entry.kind == kind)
            .cloned()
    }

    /// Every entry whose objects are those of this resource: its versions, in all groups.
    pub fn forms(&self, group: &str, resource: &str) -> Vec<Arc<ResourceEntry>> {
        let Some(own) = self.any_version(group, resource) else {
            return Vec::new();
        };
        let entries = self.entries.load();
        entries
            .values()
            .filter(|e| e.resource == own.resource && e.storage_group == own.storage_group)
            .cloned()
            .collect()
    }

    /// A snapshot of all entries, ordered by group, resource and version.
    pub fn all(&self) -> Vec<Arc<ResourceEntry>> {
        self.entries.load().values().cloned().collect()
    }

    /// Changes whenever an entry is installed or removed.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn install(&self, entry: Arc<ResourceEntry>) {
        let key = (
            entry.group.clone(),
            entry.resource.clone(),
            entry.version.clone(),
        );
        self.entries.rcu(|entries| {
            let mut entries = BTreeMap::clone(entries);
            entries.insert(key.clone(), Arc::clone(&entry));
            entries
        });
        self.changes.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn remove(&self, group: &str, version: &str, resource: &str) {
        let key = (group.to_owned(), resource.to_owned(), version.to_owned());
        self.entries.rcu(|entries| {
            let mut entries = BTreeMap::clone(entries);
            entries.remove(&key);
            entries
        });
        self.changes.send_modify(|generation| *generation += 1);
    }
}

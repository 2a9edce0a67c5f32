//! Deletion: preconditions, grace periods, finalizers, propagation; one object or a collection.

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::status::{Status, StatusDetails};
use keelson_machinery::{meta, time};
use keelson_store::{Error, Expect, KeyValue, Revision};
use serde_json::Value;

use super::options::{DeleteOptions, Propagation};
use super::resources::ResourceEntry;
use super::write::{Write, requested_shared, store_error};
use super::{Registry, codec};
use crate::admission::Operation;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Rounds of a deletion that others keep overtaking.
const ATTEMPTS: usize = 64;

/// Kinds whose deletion answers with the object instead of a Status.
const RETURN_OBJECT: &[(&str, &str)] = &[
    ("", "namespaces"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourcepoolstatusrequests"),
    ("resource.k8s.io", "devicetaintrules"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourceclaimtemplates"),
    ("resource.k8s.io", "resourceslices"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// What the client is answered.
pub(crate) enum Deleted {
    /// Gone; kinds that return nothing answer with a Status about this object.
    Gone(Bytes),
    /// Marked, and waiting for finalizers or its grace period.
    Pending(Bytes),
}

/// What to do with the object as it stands: pure.
enum Plan {
    Remove,
    /// Write this state and, if asked, remove it afterwards.
    Mark {
        object: Value,
        then_remove: bool,
    },
    /// Nothing changes: it is already being deleted at least as fast.
    Wait,
}

impl Registry {
    pub(crate) async fn delete(
        &self,
        write: &Write<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        warn_of_orphans(write, options);
        let key = self.key(write.entry, write.namespace, write.name);
        for _ in 0..ATTEMPTS {
            let existing = self.store.get(&key, 0).await.map_err(store_error)?;
            let Some(existing) = existing else {
                return Err(write.not_found());
            };
            let old = Arc::new(codec::parse(&existing.value)?);
            check_preconditions(
                write,
                options.uid.as_deref(),
                options.resource_version.as_deref(),
                &old,
            )?;
            self.admit_delete(write, &old, options).await?;
            match plan(write.entry, &old, options) {
                Plan::Wait => return Ok(Deleted::Pending(existing.value)),
                Plan::Remove => match self.remove(&key, &existing, options.dry_run).await? {
                    Some(bytes) => return Ok(Deleted::Gone(bytes)),
                    None => continue,
                },
                Plan::Mark {
                    object,
                    then_remove: true,
                } if !options.dry_run => {
                    if let Some(bytes) = self.mark_and_remove(&key, &existing, object).await? {
                        return Ok(Deleted::Gone(bytes));
                    }
                }
                Plan::Mark {
                    object,
                    then_remove,
                } => {
                    if let Some(kv) = self.mark(&key, &existing, object, options.dry_run).await? {
                        return Ok(match then_remove {
                            true => Deleted::Gone(kv.value),
                            false => Deleted::Pending(kv.value),
                        });
                    }
                }
            }
        }
        Err(Status::conflict(
            &write.entry.group,
            &write.entry.resource,
            write.name,
            "the object keeps changing",
        ))
    }

    async fn admit_delete(
        &self,
        write: &Write<'_>,
        old: &Arc<Value>,
        options: &DeleteOptions,
    ) -> Result<(), Status> {
        if !write.admission {
            return Ok(());
        }
        let mut attributes = write.attributes(
            Operation::Delete,
            None,
            Some(requested_shared(write.entry, old)?),
        );
        // Who deletes a collection names no object.
        attributes.name = match options.of_collection {
            true => String::new(),
            false => write.name.to_owned(),
        };
        attributes.options = options.raw.clone();
        attributes.dry_run = options.dry_run;
        self.admission.admit(&mut attributes).await?;
        self.admission.validate(&attributes).await
    }

    /// Nothing when somebody else wrote first.
    async fn remove(
        &self,
        key: &str,
        existing: &KeyValue,
        dry_run: bool,
    ) -> Result<Option<Bytes>, Status> {
        if dry_run {
            return Ok(Some(existing.value.clone()));
        }
        match self
            .store
            .delete(key, Expect::Revision(existing.mod_revision))
            .await
        {
            Ok((revision, previous)) => self.removed(key, revision, previous.value).await,
            Err(Error::Conflict(_)) => Ok(None),
            Err(err) => Err(store_error(err)),
        }
    }

    async fn removed(
        &self,
        key: &str,
        revision: Revision,
        last: Bytes,
    ) -> Result<Option<Bytes>, Status> {
        self.caches.wait(revision).await?;
        if key.starts_with(&crate::cache::prefix("", "services")) {
            let gone = codec::parse(&last)?;
            self.release(&gone, None).await?;
        }
        Ok(Some(last))
    }

    /// Watchers see the mark and then the deletion. Nothing when somebody else wrote first.
    async fn mark_and_remove(
        &self,
        key: &str,
        existing: &KeyValue,
        object: Value,
    ) -> Result<Option<Bytes>, Status> {
        let value = codec::stamped(object)?;
        let expect = Expect::Revision(existing.mod_revision);
        match self.store.put_and_delete(key, value, expect).await {
            Ok((revision, last)) => self.removed(key, revision, last.value).await,
            Err(Error::Conflict(_)) => Ok(None),
            Err(err) => Err(store_error(err)),
        }
    }

    async fn mark(
        &self,
        key: &str,
        existing: &KeyValue,
        object: Value,
        dry_run: bool,
    ) -> Result<Option<KeyValue>, Status> {
        let value = codec::stamped(object)?;
        if codec::is_same(&value, &existing.value, existing.mod_revision) {
            return Ok(Some(existing.clone()));
        }
        if dry_run {
            let value = codec::stamped_at(&value, existing.mod_revision)?;
            return Ok(Some(KeyValue {
                value,
                ..existing.clone()
            }));
        }
        match self
            .store
            .put(key, value, Expect::Revision(existing.mod_revision))
            .await
        {
            Ok(kv) => {
                self.caches.wait(kv.mod_revision).await?;
                Ok(Some(kv))
            }
            Err(Error::Conflict(_)) => Ok(None),
            Err(err) => Err(store_error(err)),
        }
    }
}

fn check_preconditions(
    write: &Write<'_>,
    uid: Option<&str>,
    resource_version: Option<&str>,
    object: &Value,
) -> Result<(), Status> {
    // Upstream names the kind here, not the resource.
    let conflict = |message: String| {
        Err(Status::conflict(
            &write.entry.group,
            &write.entry.kind,
            write.name,
            message,
        ))
    };
    let found = meta::uid(object);
    if let Some(uid) = uid.filter(|uid| *uid != found) {
        return conflict(format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({found}). The object might have been deleted and then recreated"
        ));
    }
    let found = meta::resource_version(object);
    if let Some(version) = resource_version.filter(|version| *version != found) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({found}). The object might have been modified"
        ));
    }
    Ok(())
}

fn plan(entry: &ResourceEntry, old: &Value, options: &DeleteOptions) -> Plan {
    let mut object = old.clone();
    let now = time::now();
    if meta::deletion_timestamp(old).is_none() && entry.rules.mark_deleting(&mut object, &now) {
        meta::set_deletion_timestamp(&mut object, Some(&now));
        return Plan::Mark {
            object,
            then_remove: false,
        };
    }
    let mut graceful = None;
    if let Some(seconds) = entry
        .rules
        .graceful_deletion_seconds(old, options.grace_period_seconds)
    {
        if meta::deletion_timestamp(old).is_some() {
            match meta::deletion_grace_period_seconds(old).unwrap_or(0) {
                0 => {}
                current => match shorten(&mut object, current, options.grace_period_seconds) {
                    Some(seconds) => graceful = Some(seconds),
                    None => return Plan::Wait,
                },
            }
        } else {
            begin(&mut object, seconds);
            graceful = Some(seconds);
        }
    }
    let finalizers = finalizers(entry, old, options);
    if meta::finalizers(old) != finalizers {
        meta::set_finalizers(&mut object, &finalizers);
    }
    let held = !finalizers.is_empty() || is_held_namespace(entry, old);
    match graceful {
        Some(seconds) => Plan::Mark {
            object,
            then_remove: seconds == 0 && !held,
        },
        None if held => {
            mark_deleting(entry, &mut object);
            Plan::Mark {
                object,
                then_remove: false,
            }
        }
        None => Plan::Remove,
    }
}

/// The first request: the timestamp is when the grace period ends.
fn begin(object: &mut Value, seconds: i64) {
    let end = time::format_unix(time::now_unix().saturating_add(seconds));
    meta::set_deletion_timestamp(object, Some(&end));
    meta::set_deletion_grace_period_seconds(object, Some(seconds));
    raise_generation(object);
}

/// A later request may only shorten the period; nothing when it does not.
fn shorten(object: &mut Value, current: i64, wanted: Option<i64>) -> Option<i64> {
    let mut seconds = wanted.filter(|wanted| *wanted < current)?;
    let now = time::now_unix();
    let end = meta::deletion_timestamp(object)
        .and_then(time::parse_unix)
        .unwrap_or(now);
    let mut end = end.saturating_sub(current).saturating_add(seconds);
    if end < now {
        end = now;
        if seconds != 0 {
            seconds = 1;
        }
    }
    meta::set_deletion_timestamp(object, Some(&time::format_unix(end)));
    meta::set_deletion_grace_period_seconds(object, Some(seconds));
    Some(seconds)
}

/// Kinds without a grace period that finalizers hold back.
fn mark_deleting(entry: &ResourceEntry, object: &mut Value) {
    let now = time::now();
    match meta::deletion_timestamp(object).and_then(time::parse_unix) {
        None => {
            raise_generation(object);
            meta::set_deletion_timestamp(object, Some(&now));
        }
        Some(at) if at > time::now_unix() => meta::set_deletion_timestamp(object, Some(&now)),
        Some(_) => {}
    }
    if is_namespace(entry) {
        if let Some(status) = object.as_object_mut().map(|o| {
            o.entry("status")
                .or_insert_with(|| Value::Object(Default::default()))
        }) {
            status["phase"] = "Terminating".into();
        }
    } else {
        meta::set_deletion_grace_period_seconds(object, Some(0));
    }
}

fn raise_generation(object: &mut Value) {
    let generation = meta::generation(object);
    if generation > 0 {
        meta::set_generation(object, generation + 1);
    }
}

fn is_namespace(entry: &ResourceEntry) -> bool {
    entry.storage_group.is_empty() && entry.resource == "namespaces"
}

fn is_held_namespace(entry: &ResourceEntry, object: &Value) -> bool {
    is_namespace(entry)
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|f| !f.is_empty())
}

fn warn_of_orphans(write: &Write<'_>, options: &DeleteOptions) {
    let silent = options.orphan_dependents.is_some() || options.propagation.is_some();
    if !silent && write.entry.storage_group == "batch" && write.entry.rules.orphans_dependents() {
        write.warnings.add("child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning");
    }
}

/// The finalizers after the garbage collector's two were set as the client wants.
fn finalizers<'a>(
    entry: &ResourceEntry,
    object: &'a Value,
    options: &DeleteOptions,
) -> Vec<&'a str> {
    let present = meta::finalizers(object);
    if entry.storage_group.is_empty() && entry.resource == "events" {
        return present;
    }
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(policy)) => (
            policy == Propagation::Orphan,
            policy == Propagation::Foreground,
        ),
        // Without a policy the finalizers already there decide, then the kind.
        (None, None) => match present.iter().find(|f| **f == ORPHAN || **f == FOREGROUND) {
            Some(first) => (*first == ORPHAN, *first == FOREGROUND),
            None => (entry.rules.orphans_dependents(), false),
        },
    };
    let mut wanted: Vec<&str> = present
        .iter()
        .copied()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .collect();
    if orphan {
        wanted.push(ORPHAN);
    }
    if foreground {
        wanted.push(FOREGROUND);
    }
    let same = wanted.len() == present.len() && wanted.iter().all(|f| present.contains(f));
    if same { present } else { wanted }
}

impl ResourceEntry {
    /// Whether a deletion answers with the object.
    pub(crate) fn returns_deleted(&self) -> bool {
        RETURN_OBJECT.contains(&(self.storage_group.as_str(), self.resource.as_str()))
    }
}

/// The Status that answers for a deleted object of most kinds; `None` for those that send the
/// object itself.
pub(crate) fn status_of(entry: &ResourceEntry, name: &str, object: &[u8]) -> Option<Status> {
    if entry.returns_deleted() {
        return None;
    }
    let uid = codec::parse(object)
        .map(|object| meta::uid(&object).to_owned())
        .unwrap_or_default();
    let mut status = Status::success();
    status.details = Some(StatusDetails {
        name: name.to_owned(),
        group: entry.group.clone(),
        kind: entry.resource.clone(),
        uid,
        ..StatusDetails::default()
    });
    Some(status)
}

//! The write path shared by create, update, patch, apply and every subresource: one order of
//! steps for all kinds. gather (store) → change (pure) → admission → rules (pure) → commit.

use std::sync::Arc;

use bytes::Bytes;
use keelson_kinds::UpdateContext;
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{go_struct, meta, names, time};
use keelson_store::{Error, Expect, KeyValue};
use serde_json::Value;

use super::change::Change;
use super::options::WriteOptions;
use super::resources::ResourceEntry;
use super::scale::{scale_of, scaled};
use super::service_claim::Allocation;
use super::service_ip::is_service;
use super::{Registry, codec, managed};
use crate::admission::{Attributes, Operation};
use crate::request::{Annotations, UserInfo, Warnings};

/// Names tried for a `generateName`.
const GENERATE_ATTEMPTS: usize = 8;
/// Rounds of an update that others keep overtaking.
const UPDATE_ATTEMPTS: usize = 64;

const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// Who writes what, and how.
pub(crate) struct Write<'a> {
    pub entry: &'a ResourceEntry,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub name: &'a str,
    pub subresource: &'a str,
    /// The subresource as the kind's rules see it: scaling follows those of the main resource.
    pub rules_path: &'a str,
    pub user: Arc<UserInfo>,
    pub warnings: Warnings,
    pub annotations: Annotations,
    pub options: &'a WriteOptions,
    /// False for the server's own bootstrap.
    pub admission: bool,
}

/// What a write left: the object in its stored form.
pub(crate) struct Written {
    pub bytes: Bytes,
    pub created: bool,
}

impl Write<'_> {
    pub(crate) fn attributes(
        &self,
        operation: Operation,
        object: Option<Value>,
        old: Option<Arc<Value>>,
    ) -> Attributes {
        let entry = self.entry;
        let name = match &object {
            Some(object) if self.name.is_empty() => meta::name(object).to_owned(),
            _ => self.name.to_owned(),
        };
        let namespace = if entry.group.is_empty() && entry.resource == "namespaces" {
            &name
        } else {
            self.namespace
        };
        Attributes {
            operation,
            group: entry.group.clone(),
            version: entry.version.clone(),
            resource: entry.resource.clone(),
            subresource: self.subresource.to_owned(),
            kind: entry.kind.clone(),
            namespace: namespace.to_owned(),
            name,
            object,
            old_object: old,
            user: Arc::clone(&self.user),
            dry_run: self.options.dry_run,
            options: self.options.to_json(operation),
            rounds: Default::default(),
            warnings: self.warnings.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// Who scales an object writes a Scale, and that is what admission sees.
    fn scale_attributes(
        &self,
        operation: Operation,
        object: &Value,
        old: Option<&Arc<Value>>,
    ) -> Attributes {
        let scale = |object: &Value| scale_of(self.entry, object);
        let old = old.map(|old| Arc::new(scale(old)));
        let mut attributes = self.attributes(operation, Some(scale(object)), old);
        attributes.kind = "Scale".to_owned();
        attributes
    }

    pub(crate) fn not_found(&self) -> Status {
        Status::not_found(&self.entry.group, &self.entry.resource, self.name)
    }

    fn conflict(&self, name: &str, reason: &str) -> Status {
        Status::conflict(&self.entry.group, &self.entry.resource, name, reason)
    }

    fn invalid(&self, name: &str, mut errors: ErrorList) -> Status {
        let entry = self.entry;
        let group = &entry.storage_group;
        let stored = keelson_api::kind_type(group, &entry.storage_version, &entry.kind)
            .and_then(keelson_api::schema)
            .filter(|_| !entry.custom);
        if let Some(schema) = stored {
            go_struct::show(&mut errors, schema);
        }
        Status::invalid(group, &entry.kind, name, &errors)
    }

    fn manage(&self, old: Option<&Value>, new: &mut Value) -> Result<(), Status> {
        managed::track(
            self.entry,
            old,
            new,
            &self.options.field_manager,
            self.subresource,
        )
    }
}

impl Registry {
    /// Creates an object given in its stored form.
    pub(crate) async fn create(&self, write: &Write<'_>, object: Value) -> Result<Written, Status> {
        let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        let created = |bytes| Written {
            bytes,
            created: true,
        };
        if generated {
            for _ in 1..GENERATE_ATTEMPTS {
                match self.create_once(write, object.clone(), true).await {
                    Err(status) if status.is_already_exists() => {}
                    result => return result.map(created),
                }
            }
        }
        self.create_once(write, object, true).await.map(created)
    }

    async fn create_once(
        &self,
        write: &Write<'_>,
        mut object: Value,
        track: bool,
    ) -> Result<Bytes, Status> {
        let entry = write.entry;
        wipe_system_fields(&mut object);
        ensure_namespace(&mut object, write.namespace)?;
        if track {
            write.manage(None, &mut object)?;
        }
        let mut object = self.admit(write, Operation::Create, object, None).await?;
        fill_system_fields(&mut object);
        if meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty() {
            let name = names::generate_name(meta::generate_name(&object));
            meta::set_name(&mut object, &name);
        }
        ensure_namespace(&mut object, write.namespace)?;
        let mut object = judged(entry, object)?;
        entry.rules.prepare_create(&mut object);
        let (object, allocation) = self.allocate(write, object, None).await?;
        let name = meta::name(&object).to_owned();
        let errors = self.validate_new(entry, &object);
        if !errors.is_empty() {
            return Err(write.invalid(&name, errors));
        }
        for warning in entry.rules.warnings(&object, None) {
            write.warnings.add(warning);
        }
        let mut object = self
            .validate_admission(write, Operation::Create, object, None)
            .await?;
        // The store's own condition, and so the last one.
        if !matches!(meta::resource_version(&object), "" | "0") {
            return Err(Status::unclassified(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        if entry.custom {
            entry.to_storage(&mut object)?;
        }
        let key = self.key(entry, write.namespace, &name);
        let value = codec::stamped(object)?;
        let result = if write.options.dry_run {
            match self.store.get(&key, 0).await.map_err(store_error)? {
                Some(existing) => Err(Error::Conflict(Some(existing))),
                None => return codec::unstamped(&value),
            }
        } else {
            self.store.put(&key, value, Expect::Absent).await
        };
        match result {
            Ok(kv) => {
                let waited = self.caches.wait(kv.mod_revision).await;
                allocation.into_iter().for_each(Allocation::keep);
                waited?;
                Ok(kv.value)
            }
            Err(Error::Conflict(existing)) => Err(already_exists(entry, &name, existing)),
            Err(err) => Err(store_error(err)),
        }
    }

    fn validate_new(&self, entry: &ResourceEntry, object: &Value) -> ErrorList {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let mut errors = keelson_machinery::validation::validate_object_meta(
            metadata,
            entry.namespaced,
            |name, prefix| entry.rules.validate_name(name, prefix),
            &Path::new("metadata"),
        );
        errors.extend(entry.rules.validate(object));
        errors
    }

    /// Updates an object by a change of its stored form, which may be asked again with a newer
    /// state when others wrote in between.
    pub(crate) async fn update(
        &self,
        write: &Write<'_>,
        change: &Change<'_>,
    ) -> Result<Written, Status> {
        let key = self.key(write.entry, write.namespace, write.name);
        for _ in 0..UPDATE_ATTEMPTS {
            let existing = self.store.get(&key, 0).await.map_err(store_error)?;
            let Some(existing) = existing else {
                let may_create = write.subresource.is_empty()
                    && (write.entry.rules.allow_create_on_update() || change.creates_absent());
                if !may_create {
                    return Err(write.not_found());
                }
                if write.admission {
                    let entry = write.entry;
                    self.admission
                        .authorize_create(
                            &write.user,
                            (&entry.group, &entry.version, &entry.resource),
                            write.namespace,
                            write.name,
                        )
                        .await?;
                }
                let object = change.next(None)?;
                match self
                    .create_once(write, object, !change.tracks_managers())
                    .await
                {
                    Ok(bytes) => {
                        return Ok(Written {
                            bytes,
                            created: true,
                        });
                    }
                    Err(status) if status.is_already_exists() && !write.options.dry_run => continue,
                    Err(status) => return Err(status),
                }
            };
            if let Some(bytes) = self.update_once(write, change, &key, existing).await? {
                return Ok(Written {
                    bytes,
                    created: false,
                });
            }
        }
        Err(write.conflict(write.name, MODIFIED))
    }

    /// Nothing when somebody else wrote first.
    async fn update_once(
        &self,
        write: &Write<'_>,
        change: &Change<'_>,
        key: &str,
        existing: KeyValue,
    ) -> Result<Option<Bytes>, Status> {
        let entry = write.entry;
        let mut old = codec::parse(&existing.value)?;
        entry.fill_stored(&mut old)?;
        let old = Arc::new(old);
        let mut object = change.next(Some(&old))?;
        ensure_namespace(&mut object, write.namespace)?;
        let uid = meta::uid(&object);
        if change.is_replacement() && !uid.is_empty() && uid != meta::uid(&old) {
            return Err(write.conflict(
                write.name,
                &uid_differs(entry, write.namespace, write.name, uid, meta::uid(&old)),
            ));
        }
        if !change.tracks_managers() {
            write.manage(Some(&old), &mut object)?;
        }
        let mut object = self
            .admit(write, Operation::Update, object, Some(&old))
            .await?;
        check_resource_version(write, &mut object, &existing)?;
        let mut object = judged(entry, object)?;
        let old = judged_shared(entry, old)?;
        self.before_update(write, &mut object, &old)?;
        let (mut object, allocation) = match write.subresource {
            "" => self.allocate(write, object, Some(&old)).await?,
            _ => (object, None),
        };
        let errors = self.validate_changed(write, &object, &old);
        if !errors.is_empty() {
            return Err(write.invalid(write.name, errors));
        }
        for warning in entry.rules.warnings(&object, Some(&old)) {
            write.warnings.add(warning);
        }
        managed::keep_timestamps_of_unchanged(&mut object, &old);
        let mut object = self
            .validate_admission(write, Operation::Update, object, Some(&old))
            .await?;
        if entry.custom {
            entry.to_storage(&mut object)?;
        }
        if deletes_now(entry, &object, &old) {
            return self.delete_emptied(write, key, existing, object).await;
        }
        let value = codec::stamped(object)?;
        if codec::is_same(&value, &existing.value, existing.mod_revision) {
            return Ok(Some(existing.value));
        }
        if write.options.dry_run {
            return codec::stamped_at(&value, existing.mod_revision).map(Some);
        }
        match self
            .store
            .put(key, value, Expect::Revision(existing.mod_revision))
            .await
        {
            Ok(kv) => {
                let waited = self.caches.wait(kv.mod_revision).await;
                allocation.into_iter().for_each(Allocation::keep);
                waited?;
                if is_service(entry) {
                    let new = codec::parse(&kv.value)?;
                    self.release(&old, Some(&new)).await?;
                }
                Ok(Some(kv.value))
            }
            Err(Error::Conflict(_)) => Ok(None),
            Err(err) => Err(store_error(err)),
        }
    }

    fn before_update(
        &self,
        write: &Write<'_>,
        object: &mut Value,
        old: &Value,
    ) -> Result<(), Status> {
        meta::set_generation(object, meta::generation(old));
        let now = time::now();
        let ctx = UpdateContext {
            subresource: write.rules_path,
            now: &now,
        };
        write.entry.rules.prepare_update(object, old, &ctx);
        if meta::uid(object).is_empty() {
            let uid = meta::uid(old).to_owned();
            meta::set_uid(object, &uid);
        }
        if let Some(created) = meta::creation_timestamp(old) {
            meta::set_creation_timestamp(object, created);
        }
        if let Some(deleted) = meta::deletion_timestamp(old) {
            meta::set_deletion_timestamp(object, Some(deleted));
        }
        if meta::deletion_grace_period_seconds(object).is_none() {
            let grace = meta::deletion_grace_period_seconds(old);
            if grace.is_some() {
                meta::set_deletion_grace_period_seconds(object, grace);
            }
        }
        ensure_namespace(object, write.namespace)
    }

    fn validate_changed(&self, write: &Write<'_>, object: &Value, old: &Value) -> ErrorList {
        let path = Path::new("metadata");
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let old_metadata = old.get("metadata").unwrap_or(&Value::Null);
        // The name was checked when it was created and cannot change.
        let mut errors = keelson_machinery::validation::validate_object_meta(
            metadata,
            write.entry.namespaced,
            |_, _| Vec::new(),
            &path,
        );
        errors.extend(keelson_machinery::validation::validate_object_meta_update(
            metadata,
            old_metadata,
            &path,
        ));
        let now = time::now();
        let ctx = UpdateContext {
            subresource: write.rules_path,
            now: &now,
        };
        errors.extend(write.entry.rules.validate_update(object, old, &ctx));
        errors
    }

    /// The last finalizer went: the update becomes the deletion. Clients get the object as they
    /// wrote it.
    async fn delete_emptied(
        &self,
        write: &Write<'_>,
        key: &str,
        existing: KeyValue,
        object: Value,
    ) -> Result<Option<Bytes>, Status> {
        let value = codec::stamped(object)?;
        if write.options.dry_run {
            return codec::stamped_at(&value, existing.mod_revision).map(Some);
        }
        match self
            .store
            .delete(key, Expect::Revision(existing.mod_revision))
            .await
        {
            Ok((revision, _)) => {
                self.caches.wait(revision).await?;
                codec::stamped_at(&value, existing.mod_revision).map(Some)
            }
            Err(Error::Conflict(_)) => Ok(None),
            Err(err) => Err(store_error(err)),
        }
    }

    async fn admit(
        &self,
        write: &Write<'_>,
        operation: Operation,
        object: Value,
        old: Option<&Arc<Value>>,
    ) -> Result<Value, Status> {
        if !write.admission {
            return Ok(object);
        }
        let entry = write.entry;
        if write.subresource == "scale" {
            let mut attributes = write.scale_attributes(operation, &object, old);
            self.admission.admit(&mut attributes).await?;
            let scale = attributes.object.unwrap_or_default();
            return scaled(entry, write.name, &object, &scale);
        }
        let object = requested(entry, object)?;
        let old = old.map(|old| requested_shared(entry, old)).transpose()?;
        let mut attributes = write.attributes(operation, Some(object), old);
        self.admission.admit(&mut attributes).await?;
        let mut object = attributes
            .object
            .ok_or_else(|| Status::internal("admission removed the object"))?;
        entry.to_storage(&mut object)?;
        Ok(object)
    }

    async fn validate_admission(
        &self,
        write: &Write<'_>,
        operation: Operation,
        object: Value,
        old: Option<&Arc<Value>>,
    ) -> Result<Value, Status> {
        if !write.admission {
            return Ok(object);
        }
        let entry = write.entry;
        if write.subresource == "scale" {
            let attributes = write.scale_attributes(operation, &object, old);
            self.admission.validate(&attributes).await?;
            return Ok(object);
        }
        let stored = (!entry.is_stored_form()).then(|| object.clone());
        let object = requested(entry, object)?;
        let old = old.map(|old| requested_shared(entry, old)).transpose()?;
        let attributes = write.attributes(operation, Some(object), old);
        self.admission.validate(&attributes).await?;
        stored
            .or(attributes.object)
            .ok_or_else(|| Status::internal("admission removed the object"))
    }

    pub(crate) fn key(&self, entry: &ResourceEntry, namespace: &str, name: &str) -> String {
        let prefix = crate::cache::prefix(&entry.storage_group, &entry.resource);
        if entry.namespaced {
            format!("{prefix}{namespace}/{name}")
        } else {
            format!("{prefix}{name}")
        }
    }
}

/// Rules of custom kinds are those of the request's version, which need not be the stored one.
fn judged(entry: &ResourceEntry, object: Value) -> Result<Value, Status> {
    if entry.custom {
        requested(entry, object)
    } else {
        Ok(object)
    }
}

/// As [`judged`] for what was there before.
fn judged_shared(entry: &ResourceEntry, object: Arc<Value>) -> Result<Arc<Value>, Status> {
    if entry.custom {
        requested_shared(entry, &object)
    } else {
        Ok(object)
    }
}

/// Admission sees objects in the version of the request.
fn requested(entry: &ResourceEntry, mut object: Value) -> Result<Value, Status> {
    entry.from_storage(&mut object)?;
    Ok(object)
}

pub(crate) fn requested_shared(
    entry: &ResourceEntry,
    object: &Arc<Value>,
) -> Result<Arc<Value>, Status> {
    if entry.is_stored_form() {
        return Ok(Arc::clone(object));
    }
    requested(entry, Value::clone(object)).map(Arc::new)
}

fn already_exists(entry: &ResourceEntry, name: &str, existing: Option<KeyValue>) -> Status {
    let deleting = existing
        .and_then(|kv| codec::parse(&kv.value).ok())
        .is_some_and(|object| meta::deletion_timestamp(&object).is_some());
    let mut status = Status::already_exists(&entry.group, &entry.resource, name);
    if deleting {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// An update without a version applies to whatever is there, where the kind allows that.
fn check_resource_version(
    write: &Write<'_>,
    object: &mut Value,
    existing: &KeyValue,
) -> Result<(), Status> {
    let given = meta::resource_version(object);
    if given.is_empty() || given == "0" {
        let whole = matches!(write.subresource, "" | "status");
        if write.entry.rules.allow_unconditional_update() || !whole {
            meta::set_resource_version(object, &existing.mod_revision.to_string());
            return Ok(());
        }
        let path = Path::new("metadata").child("resourceVersion");
        let errors = vec![FieldError::invalid(
            &path,
            0,
            "must be specified for an update",
        )];
        return Err(Status::invalid(
            &write.entry.group,
            &write.entry.resource,
            write.name,
            &errors,
        ));
    }
    let parsed: Result<u64, _> = given.parse();
    match parsed {
        Ok(revision) if revision == existing.mod_revision => Ok(()),
        Ok(_) => Err(write.conflict(write.name, MODIFIED)),
        Err(_) => {
            let path = Path::new("metadata").child("resourceVersion");
            let errors = vec![FieldError::invalid(
                &path,
                given,
                "must be convertible to an unsigned integer",
            )];
            Err(Status::invalid(
                &write.entry.group,
                &write.entry.kind,
                write.name,
                &errors,
            ))
        }
    }
}

/// Deletion was asked for earlier and nothing holds the object any more.
pub(crate) fn deletes_now(entry: &ResourceEntry, object: &Value, old: &Value) -> bool {
    let held_by_namespace = entry.storage_group.is_empty()
        && entry.resource == "namespaces"
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|f| !f.is_empty());
    meta::finalizers(object).is_empty()
        && !held_by_namespace
        && meta::deletion_timestamp(old).is_some()
        && meta::deletion_grace_period_seconds(old).unwrap_or(0) == 0
}

/// What only the server sets.
fn wipe_system_fields(object: &mut Value) {
    let metadata = meta::metadata_mut(object);
    for field in [
        "creationTimestamp",
        "uid",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
    ] {
        metadata.remove(field);
    }
}

fn fill_system_fields(object: &mut Value) {
    meta::set_uid(object, &names::new_uid());
    meta::set_creation_timestamp(object, &time::now());
}

/// Fills the namespace from the request, or refuses another one.
pub(crate) fn ensure_namespace(object: &mut Value, namespace: &str) -> Result<(), Status> {
    let given = meta::namespace(object);
    if given == namespace {
        return Ok(());
    }
    if namespace.is_empty() {
        meta::metadata_mut(object).remove("namespace");
        return Ok(());
    }
    if given.is_empty() {
        meta::set_namespace(object, namespace);
        return Ok(());
    }
    Err(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

pub(crate) fn store_error(err: Error) -> Status {
    match err {
        Error::Closed => Status::service_unavailable("the server is shutting down"),
        Error::Compacted { .. } => Status::expired("The provided resource version is too old."),
        err @ (Error::Unavailable(_) | Error::Full(_)) => {
            Status::service_unavailable(err.to_string())
        }
        err => Status::internal(err),
    }
}

/// What upstream's store says of a write meant for another object of the same name.
pub(super) fn uid_differs(
    entry: &ResourceEntry,
    namespace: &str,
    name: &str,
    wanted: &str,
    found: &str,
) -> String {
    let resource = match entry.resource.as_str() {
        "services" => "services/specs",
        "endpoints" => "services/endpoints",
        "nodes" => "minions",
        resource => resource,
    };
    // Custom kinds are kept by group.
    let resource = match entry.custom {
        true => format!("{}/{resource}", entry.group),
        false => resource.to_owned(),
    };
    let key = match namespace {
        "" => format!("/registry/{resource}/{name}"),
        namespace => format!("/registry/{resource}/{namespace}/{name}"),
    };
    format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
    )
}

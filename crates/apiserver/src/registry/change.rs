//! How an update derives the new state from the one in the store. Pure: asked again with the
//! newer state when somebody else wrote in between.

use keelson_machinery::status::Status;
use serde_json::Value;

use super::patch::Patch;

pub(crate) enum Change<'a> {
    /// PUT: the object as the client wants it, in the stored form.
    Replace(Value),
    Patch(Patch<'a>),
    /// Subresources with a body of their own (scale, binding, …): a new state from the old one.
    Transform(&'a (dyn Fn(&Value) -> Result<Value, Status> + Send + Sync)),
    /// The same by one that keeps `managedFields` itself.
    Managed(&'a (dyn Fn(&Value) -> Result<Value, Status> + Send + Sync)),
}

impl Change<'_> {
    pub(crate) fn next(&self, old: Option<&Value>) -> Result<Value, Status> {
        match (self, old) {
            (Self::Replace(object), _) => Ok(object.clone()),
            (Self::Patch(patch), old) => patch.apply(old),
            (Self::Transform(transform) | Self::Managed(transform), Some(old)) => transform(old),
            (Self::Transform(_) | Self::Managed(_), None) => {
                Err(Status::internal("a subresource cannot create its object"))
            }
        }
    }

    /// A whole object is meant for the one that has its uid; of a patch the uid is a field.
    pub(crate) fn is_replacement(&self) -> bool {
        matches!(self, Self::Replace(_) | Self::Managed(_))
    }

    /// Server-side apply of an object that does not exist creates it.
    pub(crate) fn creates_absent(&self) -> bool {
        matches!(self, Self::Patch(patch) if patch.is_apply())
    }

    /// Server-side apply keeps `managedFields` itself.
    pub(crate) fn tracks_managers(&self) -> bool {
        matches!(self, Self::Managed(_)) || self.creates_absent()
    }
}

//! Controllers of volumes and claims.

pub(crate) mod binder;
pub(crate) mod protection;
pub(crate) mod volume_match;

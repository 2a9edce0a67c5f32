//! Groups that servers and migrations use among themselves.

pub(crate) mod storage_version;
pub(crate) mod storage_version_migration;

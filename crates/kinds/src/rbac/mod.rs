//! The group `rbac.authorization.k8s.io`.

pub(crate) mod binding;
pub(crate) mod role;

const GROUP: &str = "rbac.authorization.k8s.io";

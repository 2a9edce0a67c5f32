//! ServiceAccount.

use crate::kind::Kind;

pub(crate) static SERVICE_ACCOUNT: Kind = Kind {
    group: "",
    resource: "serviceaccounts",
    ..Kind::GENERIC
};

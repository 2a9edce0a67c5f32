//! The group `certificates.k8s.io`.

use keelson_machinery::field::ErrorList;

use crate::check::At;

/// A signer's name: a domain, a slash, a path.
pub(crate) fn signer_name(at: &At, e: &mut ErrorList) {
    if at.is_empty() {
        e.push(at.required(""));
    }
}

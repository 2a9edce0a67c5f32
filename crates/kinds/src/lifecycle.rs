//! Versions that are served and on their way out: upstream tells every client of theirs.

/// Group, version, resource (empty for all of them), the minor version that deprecated it, and the
/// kind to go to. A version is gone three minor versions after that.
#[rustfmt::skip]
const DEPRECATED: &[(&str, &str, &str, u32, &str)] = &[
    ("admissionregistration.k8s.io", "v1alpha1", "", 35, ""),
    ("certificates.k8s.io", "v1alpha1", "", 34, ""),
    ("coordination.k8s.io", "v1alpha2", "", 35, ""),
    ("coordination.k8s.io", "v1beta1", "", 36, ""),
    ("networking.k8s.io", "v1beta1", "", 34, ""),
    ("resource.k8s.io", "v1alpha3", "devicetaintrules", 36, ""),
    ("resource.k8s.io", "v1beta1", "", 35, ""),
    ("resource.k8s.io", "v1beta2", "deviceclasses", 36, ""),
    ("resource.k8s.io", "v1beta2", "resourceclaims", 36, ""),
    ("resource.k8s.io", "v1beta2", "resourceclaimtemplates", 36, ""),
    ("resource.k8s.io", "v1beta2", "resourceslices", 36, ""),
    ("storage.k8s.io", "v1beta1", "", 34, "storage.k8s.io/v1 VolumeAttributesClass"),
];
const MINORS_SERVED: u32 = 3;

/// What users of a deprecated version are told.
pub fn deprecation(group: &str, version: &str, resource: &str, kind: &str) -> Option<String> {
    let (_, _, _, since, instead) = DEPRECATED
        .iter()
        .find(|(g, v, r, _, _)| *g == group && *v == version && (r.is_empty() || *r == resource))?;
    let until = since + MINORS_SERVED;
    let said = format!(
        "{group}/{version} {kind} is deprecated in v1.{since}+, unavailable in v1.{until}+"
    );
    Some(if instead.is_empty() {
        said
    } else {
        format!("{said}; use {instead}")
    })
}

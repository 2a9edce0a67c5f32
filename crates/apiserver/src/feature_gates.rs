//! `--feature-gates`: what is switched on that is off by default in this version, and the other way
//! round. Gates of upstream's that change nothing here are unknown.

use keelson_api::ResourceFacts;
use keelson_machinery::go;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("unrecognized feature gate: {0}")]
    Unknown(String),
    #[error("missing bool value for {0}")]
    Missing(String),
    #[error("invalid value of {name}={value}: want true or false")]
    Value { name: String, value: String },
}

/// Off by default, all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeatureGates {
    /// Bodies and answers may be CBOR. What the store holds is JSON all the same.
    pub cbor_serving_and_storage: bool,
    /// The next four let resources be served that `--runtime-config` asks for.
    pub cluster_trust_bundle: bool,
    pub generic_workload: bool,
    pub pod_certificate_request: bool,
    pub storage_version_migrator: bool,
}

type Gate = (&'static str, fn(&mut FeatureGates) -> &mut bool);

#[rustfmt::skip]
const GATES: &[Gate] = &[
    ("CBORServingAndStorage", |gates| &mut gates.cbor_serving_and_storage),
    ("ClusterTrustBundle", |gates| &mut gates.cluster_trust_bundle),
    ("GenericWorkload", |gates| &mut gates.generic_workload),
    ("PodCertificateRequest", |gates| &mut gates.pod_certificate_request),
    ("StorageVersionMigrator", |gates| &mut gates.storage_version_migrator),
];

impl FeatureGates {
    /// Everything is switched on.
    pub fn everything() -> Self {
        let mut gates = Self::default();
        for (_, gate) in GATES {
            *gate(&mut gates) = true;
        }
        gates
    }

    /// Whether a resource may be served if it is asked for.
    pub(crate) fn allow(&self, facts: &ResourceFacts) -> bool {
        match (facts.group, facts.resource) {
            ("certificates.k8s.io", "clustertrustbundles") => self.cluster_trust_bundle,
            ("certificates.k8s.io", "podcertificaterequests") => self.pod_certificate_request,
            ("scheduling.k8s.io", "workloads" | "podgroups") => self.generic_workload,
            ("storagemigration.k8s.io", _) => self.storage_version_migrator,
            _ => true,
        }
    }

    /// From pairs such as `CBORServingAndStorage=true`.
    pub fn parse(pairs: &[String]) -> Result<Self, Error> {
        let mut gates = Self::default();
        for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| Error::Missing(pair.clone()))?;
            let (_, gate) = GATES
                .iter()
                .find(|(known, _)| *known == name.trim())
                .ok_or_else(|| Error::Unknown(name.trim().to_owned()))?;
            *gate(&mut gates) = go::parse_bool(value.trim()).ok_or_else(|| Error::Value {
                name: name.to_owned(),
                value: value.to_owned(),
            })?;
        }
        Ok(gates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_switched_by_name() {
        let parse = |text: &str| FeatureGates::parse(&[text.to_owned()]);
        assert!(
            parse("CBORServingAndStorage=true")
                .unwrap()
                .cbor_serving_and_storage
        );
        assert_eq!(
            parse("CBORServingAndStorage=false"),
            Ok(FeatureGates::default())
        );
        assert_eq!(parse("Foo=true"), Err(Error::Unknown("Foo".to_owned())));
        assert!(matches!(
            parse("CBORServingAndStorage"),
            Err(Error::Missing(_))
        ));
        assert!(matches!(
            parse("CBORServingAndStorage=x"),
            Err(Error::Value { .. })
        ));
    }
}

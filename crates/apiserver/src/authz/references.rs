//! What a pod or a volume refers to by name.

use keelson_machinery::meta;
use serde_json::Value;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The claims a pod uses: by name, and those made for it alone.
pub(crate) fn claims_of(pod: &Value) -> impl Iterator<Item = String> {
    items(&pod["spec"]["volumes"]).filter_map(|volume| {
        let named = text(&volume["persistentVolumeClaim"]["claimName"]);
        if !named.is_empty() {
            Some(named.to_owned())
        } else if volume["ephemeral"].is_object() {
            Some(format!("{}-{}", meta::name(pod), text(&volume["name"])))
        } else {
            None
        }
    })
}

/// Whether a pod refers to an object of its namespace by name: a secret, config map, claim,
/// service account or resource claim.
pub(crate) fn refers(pod: &Value, resource: &str, name: &str) -> bool {
    match resource {
        "persistentvolumeclaims" => claims_of(pod).any(|claim| claim == name),
        "secrets" => secrets_of(pod).any(|secret| secret == name),
        "configmaps" => config_maps_of(pod).any(|map| map == name),
        "serviceaccounts" => text(&pod["spec"]["serviceAccountName"]) == name,
        "resourceclaims" => {
            let made = items(&pod["status"]["resourceClaimStatuses"])
                .any(|status| text(&status["resourceClaimName"]) == name);
            let named = items(&pod["spec"]["resourceClaims"])
                .any(|claim| text(&claim["resourceClaimName"]) == name);
            let extended = &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"];
            made || named || text(extended) == name
        }
        _ => false,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| items(&pod["spec"][key]))
}

fn from_environment<'a>(
    pod: &'a Value,
    whole: &'static str,
    key: &'static str,
) -> impl Iterator<Item = &'a str> {
    containers(pod).flat_map(move |container| {
        let sources = items(&container["envFrom"]).map(move |s| text(&s[whole]["name"]));
        let variables = items(&container["env"]).map(move |v| text(&v["valueFrom"][key]["name"]));
        sources.chain(variables).filter(|name| !name.is_empty())
    })
}

pub(crate) fn secrets_of(pod: &Value) -> impl Iterator<Item = &str> {
    let pull = items(&pod["spec"]["imagePullSecrets"]).map(|r| text(&r["name"]));
    let volumes = items(&pod["spec"]["volumes"]).flat_map(|volume| {
        let projected = items(&volume["projected"]["sources"]).map(|s| text(&s["secret"]["name"]));
        let sources = volume.as_object().into_iter().flatten();
        let named = sources.flat_map(|(_, source)| {
            [
                text(&source["secretName"]),
                text(&source["secretRef"]["name"]),
                text(&source["nodePublishSecretRef"]["name"]),
            ]
        });
        projected.chain(named)
    });
    pull.chain(volumes)
        .filter(|name| !name.is_empty())
        .chain(from_environment(pod, "secretRef", "secretKeyRef"))
}

pub(crate) fn config_maps_of(pod: &Value) -> impl Iterator<Item = &str> {
    let volumes = items(&pod["spec"]["volumes"]).flat_map(|volume| {
        let projected = items(&volume["projected"]["sources"]);
        std::iter::once(text(&volume["configMap"]["name"]))
            .chain(projected.map(|s| text(&s["configMap"]["name"])))
    });
    volumes
        .filter(|name| !name.is_empty())
        .chain(from_environment(pod, "configMapRef", "configMapKeyRef"))
}

/// `(namespace, name)` of the secrets a node needs to mount a volume.
pub(crate) fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    let spec = &volume["spec"];
    let claim_namespace = text(&spec["claimRef"]["namespace"]);
    let or_claim =
        move |namespace: &'static str, of: &'_ Value| -> bool { text(&of[namespace]).is_empty() };
    let azure = &spec["azureFile"];
    let azure_namespace = if or_claim("secretNamespace", azure) {
        claim_namespace
    } else {
        text(&azure["secretNamespace"])
    };
    let plain = ["cephfs", "flexVolume", "rbd", "scaleIO", "iscsi"]
        .into_iter()
        .map(move |source| {
            let reference = &spec[source]["secretRef"];
            let namespace = if or_claim("namespace", reference) {
                claim_namespace
            } else {
                text(&reference["namespace"])
            };
            (namespace, text(&reference["name"]))
        });
    let exact = [
        &spec["cinder"]["secretRef"],
        &spec["storageos"]["secretRef"],
        &spec["csi"]["nodePublishSecretRef"],
        &spec["csi"]["nodeStageSecretRef"],
        &spec["csi"]["nodeExpandSecretRef"],
    ]
    .into_iter()
    .map(|reference| (text(&reference["namespace"]), text(&reference["name"])));
    std::iter::once((azure_namespace, text(&azure["secretName"])))
        .chain(plain)
        .chain(exact)
        .filter(|(_, name)| !name.is_empty())
}

/// What of the API a pod refers to, in the words of the refusal: a node may not make such pods.
pub(crate) fn api_reference(pod: &Value) -> Option<&'static str> {
    let spec = &pod["spec"];
    if !text(&spec["serviceAccountName"]).is_empty() {
        return Some("serviceaccounts");
    }
    if secrets_of(pod).next().is_some() {
        return Some("secrets");
    }
    if config_maps_of(pod).next().is_some() {
        return Some("configmaps");
    }
    if items(&spec["resourceClaims"]).next().is_some() {
        return Some("resourceclaims");
    }
    let of_volumes = [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        (
            "ephemeral",
            "persistentvolumeclaims (via ephemeral volumes)",
        ),
        ("azureFile", "secrets (via azureFile volumes)"),
    ];
    let of_projections = [
        ("configMap", "configmaps (via projected volumes)"),
        ("secret", "secrets (via projected volumes)"),
        (
            "serviceAccountToken",
            "serviceaccounts (via projected volumes)",
        ),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    let found = |source: &Value, table: &[(&str, &'static str)]| {
        let row = table.iter().find(|(key, _)| source[*key].is_object());
        row.map(|(_, what)| *what)
    };
    items(&spec["volumes"]).find_map(|volume| {
        found(volume, &of_volumes).or_else(|| {
            items(&volume["projected"]["sources"]).find_map(|source| found(source, &of_projections))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_where_pods_keep_them() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "vol"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "root"}}, {"secret": {"name": "proj"}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "d", "ephemeral": {}},
            ],
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "own"}, {"name": "t", "resourceClaimTemplateName": "x"}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "cm"}}]}],
        }, "status": {"resourceClaimStatuses": [{"name": "t", "resourceClaimName": "made"}]}});
        for (resource, name, expected) in [
            ("secrets", "pull", true),
            ("secrets", "vol", true),
            ("secrets", "proj", true),
            ("secrets", "env", true),
            ("secrets", "cm", false),
            ("configmaps", "root", true),
            ("configmaps", "cm", true),
            ("configmaps", "vol", false),
            ("persistentvolumeclaims", "data", true),
            ("persistentvolumeclaims", "p-d", true),
            ("persistentvolumeclaims", "other", false),
            ("resourceclaims", "own", true),
            ("resourceclaims", "made", true),
            ("resourceclaims", "x", false),
        ] {
            assert_eq!(refers(&pod, resource, name), expected, "{resource} {name}");
        }
        assert_eq!(api_reference(&pod), Some("secrets"));
        assert_eq!(
            api_reference(&json!({"spec": {"volumes": [{"name": "e", "emptyDir": {}}]}})),
            None
        );
    }

    #[test]
    fn a_volumes_secrets_are_in_its_claims_namespace_unless_it_says_otherwise() {
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "c"},
            "rbd": {"secretRef": {"name": "a"}}, "csi": {"nodePublishSecretRef": {"namespace": "x", "name": "b"}}}});
        let all: Vec<_> = volume_secrets(&volume).collect();
        assert_eq!(all, [("ns", "a"), ("x", "b")]);
    }
}

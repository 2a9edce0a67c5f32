//! The least that each kind accepts.

use keelson_kinds::Kind;
use serde_json::{Value, json};

/// A certificate of an authority, and a request that its own key has signed.
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
MIIBczCCARmgAwIBAgIUfUy604oCPV58PpU8OfKN/flv9EMwCgYIKoZIzj0EAwIw\n\
DzENMAsGA1UEAwwEcm9vdDAeFw0yNjExMjExODQ4NDRaFw0zNjExMTgxODQ4NDRa\n\
MA8xDTALBgNVBAMMBHJvb3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR4vgmS\n\
NUt8sgkghL7wpPyEjGeJexbYzOwCry9i64wjvC510MDhWWQXdmOLgPvUJDX7IYdE\n\
AcFPzQrelB1iQyHjo1MwUTAdBgNVHQ4EFgQUcwLcgyBN5uY9UkZ5xGK/r2TAGrYw\n\
HwYDVR0jBBgwFoAUcwLcgyBN5uY9UkZ5xGK/r2TAGrYwDwYDVR0TAQH/BAUwAwEB\n\
/zAKBggqhkjOPQQDAgNIADBFAiAxMUSExDmCSTSXxX9a2ItL2U4FBiY7sMq8xfvf\n\
I4t/vQIhAKwIW+2aWpwh9udKnt0vKRDX0ZcAY31MYKM2Oa6sINvY\n\
-----END CERTIFICATE-----\n\
";
const SIGNING_REQUEST: &str = "MIG5MGICAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJ1/TZdYQT9+p3vNs/zhapSeoIm9iv0rCuHWvfUcTFwB2s50tp4badtKCce1obuTK7rY4q7oQtO3qzhq5IpGM0OgADAKBggqhkjOPQQDAgNHADBEAiAJM6jJJFxDzaT5DgM9KvhAkqX0hwG+SEP3QPWVbYHw4AIgKKEGOVmRPpbtNPr5vXVYKq8zD6RcrlRKXLBq+KtkxZ0=";

pub(crate) fn object(kind: &Kind) -> Value {
    let facts = keelson_api::resource(kind.group, kind.storage_version, kind.resource).unwrap();
    let api_version = match kind.group {
        "" => kind.storage_version.to_owned(),
        group => format!("{group}/{}", kind.storage_version),
    };
    let mut obj = json!({"apiVersion": api_version, "kind": facts.kind, "metadata": {
        "name": "a", "uid": "00000000-0000-0000-0000-000000000001", "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}});
    if facts.namespaced {
        obj["metadata"]["namespace"] = json!("default");
    }
    for (key, value) in body(kind).as_object().unwrap() {
        match key.as_str() {
            "name" if !value.is_null() => obj["metadata"]["name"] = value.clone(),
            "generation" => {
                obj["metadata"]
                    .as_object_mut()
                    .unwrap()
                    .remove("generation");
            }
            _ => obj[key] = value.clone(),
        }
    }
    obj
}

fn body(kind: &Kind) -> Value {
    match kind.group {
        "" => core(kind.resource),
        "events.k8s.io" => event(),
        "apps" | "batch" => workload(kind.resource),
        "storage.k8s.io" => storage(kind.resource),
        "resource.k8s.io" => devices(kind.resource),
        "admissionregistration.k8s.io" => admission(kind.resource),
        "networking.k8s.io" => networking(kind.resource),
        "certificates.k8s.io" => certificates(kind.resource),
        _ => others(kind.resource),
    }
}

fn pod() -> Value {
    json!({"containers": [{"name": "c", "image": "i:1"}]})
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": pod()})
}

fn core(resource: &str) -> Value {
    match resource {
        "pods" => json!({"spec": pod()}),
        "podtemplates" => json!({"template": template()}),
        "replicationcontrollers" => json!({"spec": {"template": template()}}),
        "services" => json!({"spec": {"ports": [{"port": 80}]}}),
        "persistentvolumes" => {
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/a"}}})
        }
        "persistentvolumeclaims" => {
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
        }
        "bindings" => json!({"target": {"kind": "Node", "name": "n"}}),
        "events" => {
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "generation": null})
        }
        "limitranges" => json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}),
        "resourcequotas" => json!({"spec": {"hard": {"pods": "3", "limits.cpu": "2"}}}),
        "endpoints" => {
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]})
        }
        "namespaces" | "nodes" => json!({"spec": {}}),
        _ => json!({}),
    }
}

fn workload(resource: &str) -> Value {
    let job = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}});
    match resource {
        "jobs" => json!({"spec": job}),
        "cronjobs" => json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": job}}}),
        "controllerrevisions" => json!({"data": {}, "revision": 1}),
        _ => json!({"spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template()}}),
    }
}

fn storage(resource: &str) -> Value {
    match resource {
        "storageclasses" => json!({"provisioner": "a.example"}),
        "volumeattributesclasses" => json!({"driverName": "a.example", "parameters": {"a": "b"}}),
        "volumeattachments" => {
            json!({"spec": {"attacher": "a.example", "nodeName": "n", "source": {"persistentVolumeName": "p"}}})
        }
        "csinodes" => json!({"spec": {"drivers": [{"name": "a.example", "nodeID": "n"}]}}),
        "csistoragecapacities" => json!({"storageClassName": "c"}),
        _ => json!({"spec": {}}),
    }
}

fn devices(resource: &str) -> Value {
    let claim =
        json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}});
    match resource {
        "resourceclaims" => json!({"spec": claim}),
        "resourceclaimtemplates" => json!({"spec": {"spec": claim}}),
        "resourceslices" => {
            json!({"spec": {"driver": "a.example", "pool": {"name": "p", "resourceSliceCount": 1}, "nodeName": "n",
            "devices": [{"name": "d", "attributes": {"m": {"string": "x"}}}]}})
        }
        "devicetaintrules" => json!({"spec": {"taint": {"key": "k", "effect": "NoSchedule"}}}),
        "resourcepoolstatusrequests" => json!({"spec": {"driver": "a.example"}}),
        _ => json!({"spec": {}}),
    }
}

fn admission(resource: &str) -> Value {
    let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
    let hook = json!({"name": "a.b.example", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://a.example/b"}, "rules": [rule]});
    match resource {
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            json!({"webhooks": [hook]})
        }
        "validatingadmissionpolicies" => {
            json!({"spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]}})
        }
        "mutatingadmissionpolicies" => {
            json!({"spec": {"reinvocationPolicy": "Never", "matchConstraints": {"resourceRules": [rule]},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: \"remove\", path: \"/data\"}]"}}]}})
        }
        "validatingadmissionpolicybindings" => {
            json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}})
        }
        _ => json!({"spec": {"policyName": "p"}}),
    }
}

fn networking(resource: &str) -> Value {
    match resource {
        "ingresses" => {
            json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
        }
        "ingressclasses" => json!({"spec": {"controller": "a.example/c"}}),
        "ipaddresses" => {
            json!({"name": "10.0.0.1", "spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}}})
        }
        "servicecidrs" => json!({"spec": {"cidrs": ["10.0.0.0/24"]}}),
        _ => json!({"spec": {"podSelector": {}}}),
    }
}

fn certificates(resource: &str) -> Value {
    match resource {
        "certificatesigningrequests" => {
            json!({"spec": {"signerName": "a.example/s", "usages": ["client auth"],
            "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"}})
        }
        "clustertrustbundles" => json!({"spec": {"trustBundle": AUTHORITY}}),
        _ => {
            json!({"spec": {"signerName": "a.example/s", "podName": "p", "podUID": "u", "nodeName": "n", "nodeUID": "u",
            "serviceAccountName": "s", "serviceAccountUID": "u", "stubPKCS10Request": SIGNING_REQUEST}})
        }
    }
}

fn others(resource: &str) -> Value {
    match resource {
        "customresourcedefinitions" => {
            json!({"name": "cats.a.example", "spec": {"group": "a.example", "scope": "Namespaced",
            "names": {"plural": "cats", "kind": "Cat"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
        }
        "apiservices" => {
            json!({"name": "v1.a.example", "spec": {"group": "a.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}})
        }
        "horizontalpodautoscalers" => {
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}}})
        }
        "podgroups" => json!({"spec": {"schedulingPolicy": {"basic": {}}}}),
        "workloads" => {
            json!({"spec": {"podGroupTemplates": [{"name": "a", "schedulingPolicy": {"basic": {}}}]}})
        }
        "leasecandidates" => {
            json!({"spec": {"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.36.0", "strategy": "OldestEmulationVersion"}})
        }
        "endpointslices" => {
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]})
        }
        "flowschemas" => json!({"spec": {"priorityLevelConfiguration": {"name": "l"}}}),
        "prioritylevelconfigurations" => {
            json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}})
        }
        "runtimeclasses" => json!({"handler": "h"}),
        "priorityclasses" => json!({"value": 1}),
        "rolebindings" | "clusterrolebindings" => {
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]})
        }
        "roles" | "clusterroles" => {
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})
        }
        "tokenreviews" => json!({"spec": {"token": "t"}}),
        "selfsubjectaccessreviews" => json!({"spec": {"resourceAttributes": {}}}),
        "subjectaccessreviews" => {
            json!({"spec": {"user": "u", "resourceAttributes": {}}})
        }
        "localsubjectaccessreviews" => {
            json!({"spec": {"user": "u", "resourceAttributes": {"namespace": "default"}}})
        }
        "storageversionmigrations" => json!({"spec": {"resource": {"resource": "pods"}}}),
        "storageversions" => json!({"spec": {}}),
        _ => json!({"spec": {}}),
    }
}

fn event() -> Value {
    json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "type": "Normal", "reason": "r", "action": "a",
        "reportingComponent": "a.example/c", "reportingInstance": "i", "eventTime": "2026-01-01T00:00:00.000000Z"})
}

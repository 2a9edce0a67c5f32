//! `kube-system/extension-apiserver-authentication`: what aggregated API servers need to know to
//! believe whom this server passes on.

use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::objects::Objects;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

/// PEM of the authorities of clients and of the front proxy.
pub(crate) struct Authorities<'a> {
    pub(crate) clients: &'a str,
    pub(crate) front_proxy: &'a str,
}

/// Creates the object, or brings back what it lacks; certificates that others added stay.
pub(crate) async fn publish(
    objects: &Arc<dyn Objects>,
    authorities: &Authorities<'_>,
) -> Result<(), Status> {
    let found = objects.read("", "configmaps", NAMESPACE, NAME).await?;
    let Some(mut found) = found else {
        let wanted = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": data(authorities, &Value::Null),
        });
        return match objects.create("", "configmaps", NAMESPACE, wanted).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        };
    };
    let wanted = data(authorities, &found["data"]);
    if found["data"] == wanted {
        return Ok(());
    }
    found["data"] = wanted;
    match objects.update("", "configmaps", NAMESPACE, found).await {
        Err(status) if !status.is_conflict() => Err(status),
        _ => Ok(()),
    }
}

fn data(authorities: &Authorities<'_>, found: &Value) -> Value {
    let mut data = found.as_object().cloned().unwrap_or_default();
    for (key, own) in [
        ("client-ca-file", authorities.clients),
        ("requestheader-client-ca-file", authorities.front_proxy),
    ] {
        let have = data.get(key).and_then(Value::as_str).unwrap_or_default();
        if !have.contains(own.trim()) {
            data.insert(key.to_owned(), json!(format!("{have}{own}")));
        }
    }
    for (key, list) in [
        ("requestheader-allowed-names", "front-proxy-client"),
        ("requestheader-username-headers", "X-Remote-User"),
        ("requestheader-uid-headers", "X-Remote-Uid"),
        ("requestheader-group-headers", "X-Remote-Group"),
        ("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
    ] {
        data.insert(key.to_owned(), json!(format!("[{list:?}]")));
    }
    Value::Object(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_added_stays_and_nothing_is_said_twice() {
        let authorities = Authorities {
            clients: "own\n",
            front_proxy: "proxy\n",
        };
        let first = data(
            &authorities,
            &json!({"client-ca-file": "other\n", "more": "x"}),
        );
        assert_eq!(first["client-ca-file"], "other\nown\n");
        assert_eq!(
            first["requestheader-username-headers"],
            "[\"X-Remote-User\"]"
        );
        assert_eq!(first["more"], "x");
        assert_eq!(data(&authorities, &first), first);
    }
}

//! Pull secrets: which credentials fit an image.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use k8s_openapi::api::core::v1::{Pod, Secret};
use keelson_ports::RegistryAuth;
use serde_json::Value;

use crate::objects::Objects;
use crate::pod;

/// Credentials of the pod's pull secrets that fit the image, the most specific first. Secrets that
/// cannot be read are left out: the image may be public.
pub(crate) async fn for_pod(objects: &Objects, pod: &Pod, reference: &str) -> Vec<RegistryAuth> {
    let mut found: Vec<(usize, RegistryAuth)> = Vec::new();
    for secret in pod::spec(pod)
        .image_pull_secrets
        .as_deref()
        .unwrap_or_default()
    {
        match objects.secret(pod::namespace(pod), &secret.name).await {
            Ok(Some(secret)) => found.extend(matching(&secret, reference)),
            Ok(None) => {
                tracing::debug!(secret = secret.name, "an image pull secret does not exist")
            }
            Err(error) => tracing::debug!(
                secret = secret.name,
                error,
                "an image pull secret cannot be read"
            ),
        }
    }
    found.sort_by_key(|(specificity, _)| std::cmp::Reverse(*specificity));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn matching(secret: &Secret, reference: &str) -> Vec<(usize, RegistryAuth)> {
    let data = secret.data.as_ref();
    let (key, nested) = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => (".dockerconfigjson", true),
        Some("kubernetes.io/dockercfg") => (".dockercfg", false),
        _ => return Vec::new(),
    };
    let Some(bytes) = data.and_then(|data| data.get(key)) else {
        return Vec::new();
    };
    let Ok(config) = serde_json::from_slice::<Value>(&bytes.0) else {
        return Vec::new();
    };
    let auths = if nested { &config["auths"] } else { &config };
    let target = target(reference);
    auths
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(registry, entry)| Some((specificity(registry, &target)?, auth(entry)?)))
        .collect()
}

/// `registry/path` of an image, with Docker's defaults spelt out.
fn target(reference: &str) -> String {
    let name = reference.split('@').next().unwrap_or(reference);
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let name = match name[slash..].find(':') {
        Some(at) => &name[..slash + at],
        None => name,
    };
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("index.docker.io/{name}"),
        None => format!("index.docker.io/library/{name}"),
    }
}

/// How specifically an entry's key fits the image; `None` when it does not.
fn specificity(key: &str, target: &str) -> Option<usize> {
    let key = key
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let (mut host, path) = key.split_once('/').unwrap_or((key, ""));
    if matches!(host, "docker.io" | "registry-1.docker.io") {
        host = "index.docker.io";
    }
    // Docker's own tools write the API version into the key.
    let path = path.trim_matches('/');
    let path = if matches!(path, "v1" | "v2") {
        ""
    } else {
        path
    };
    let (target_host, target_path) = target.split_once('/')?;
    if !host_matches(host, target_host) {
        return None;
    }
    (path.is_empty() || target_path == path || target_path.starts_with(&format!("{path}/")))
        .then(|| host.len() + path.len())
}

/// Labels of the pattern may hold `*`; the number of labels and the port must be equal.
fn host_matches(pattern: &str, host: &str) -> bool {
    if pattern == host {
        return true;
    }
    let (pattern_name, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    let patterns: Vec<&str> = pattern_name.split('.').collect();
    let labels: Vec<&str> = name.split('.').collect();
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(labels).all(|(p, l)| glob(p, l))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((prefix, rest)) => text.strip_prefix(prefix).is_some_and(|tail| {
            (0..=tail.len())
                .filter(|at| tail.is_char_boundary(*at))
                .any(|at| glob(rest, &tail[at..]))
        }),
    }
}

fn auth(entry: &Value) -> Option<RegistryAuth> {
    let text = |field: &str| {
        entry[field]
            .as_str()
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let mut auth = RegistryAuth {
        username: text("username").unwrap_or_default(),
        password: text("password").unwrap_or_default(),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    if let Some(encoded) = text("auth").filter(|_| auth.username.is_empty()) {
        let trimmed = encoded.trim();
        let decoded = STANDARD
            .decode(trimmed)
            .or_else(|_| STANDARD_NO_PAD.decode(trimmed.trim_end_matches('=')))
            .ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        auth.username = username.to_owned();
        auth.password = password.to_owned();
    }
    let usable =
        !auth.username.is_empty() || auth.identity_token.is_some() || auth.registry_token.is_some();
    usable.then_some(auth)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn secret(config: &Value) -> Secret {
        let encoded = STANDARD.encode(config.to_string());
        serde_json::from_value(
            json!({"metadata": {}, "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": encoded}}),
        )
        .unwrap()
    }

    #[test]
    fn keys_match_by_host_and_path() {
        for (key, image, fits) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "me/app:1", true),
            ("reg.example.com", "reg.example.com/a/b:1", true),
            ("reg.example.com:5000", "reg.example.com/a", false),
            ("reg.example.com:5000", "reg.example.com:5000/a:x", true),
            ("*.example.com", "reg.example.com/a", true),
            ("*.example.com", "a.b.example.com/a", false),
            ("reg.example.com/team", "reg.example.com/team/x", true),
            ("reg.example.com/team", "reg.example.com/teams/x", false),
            ("localhost:5000", "localhost:5000/x@sha256:00", true),
        ] {
            assert_eq!(
                specificity(key, &target(image)).is_some(),
                fits,
                "{key} {image}"
            );
        }
    }

    #[test]
    fn the_auth_field_is_decoded() {
        let secret = secret(
            &json!({"auths": {"r.io": {"auth": STANDARD.encode("u:p:q")}, "other.io": {"username": "x", "password": "y"}}}),
        );
        let found = matching(&secret, "r.io/a");
        assert_eq!(found.len(), 1);
        assert_eq!(
            (found[0].1.username.as_str(), found[0].1.password.as_str()),
            ("u", "p:q")
        );
    }
}

//! `resources.txt`: groups in discovery order, then every resource and subresource.

use serde_json::Value;
use std::fmt::Write;

pub(crate) fn render(d: &Value) -> Result<String, String> {
    let mut out = String::new();
    for g in array(d, &["apis", "groups"]) {
        let versions: Vec<&str> = array(g, &["versions"])
            .iter()
            .filter_map(|v| v["version"].as_str())
            .collect();
        let _ = writeln!(out, "group {} {}", text(g, "name"), versions.join(","));
    }
    let documents = d.as_object().ok_or("discovery.json is not an object")?;
    for (name, doc) in documents {
        let Some(resources) = doc.get("resources").and_then(Value::as_array) else {
            continue;
        };
        if name == "aggregated_v2" {
            continue;
        }
        let group_version = text(doc, "groupVersion");
        for r in resources {
            let joined = |key: &str| {
                let items: Vec<&str> = array(r, &[key]).iter().filter_map(Value::as_str).collect();
                if items.is_empty() {
                    "-".to_owned()
                } else {
                    items.join(",")
                }
            };
            let own = if r.get("group").is_some() || r.get("version").is_some() {
                format!("{}/{}", text(r, "group"), text(r, "version"))
            } else {
                "-".to_owned()
            };
            let dash = |s: &str| {
                if s.is_empty() {
                    "-".to_owned()
                } else {
                    s.to_owned()
                }
            };
            let _ = writeln!(
                out,
                "resource {group_version} {} {} {} {} {} {} {} {} {}",
                text(r, "name"),
                dash(text(r, "singularName")),
                text(r, "kind"),
                if r["namespaced"] == true {
                    "namespaced"
                } else {
                    "cluster"
                },
                joined("verbs"),
                joined("shortNames"),
                joined("categories"),
                dash(text(r, "storageVersionHash")),
                own,
            );
        }
    }
    Ok(out)
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or("")
}

fn array<'a>(v: &'a Value, path: &[&str]) -> &'a [Value] {
    path.iter()
        .try_fold(v, |v, k| v.get(k))
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or(&[])
}

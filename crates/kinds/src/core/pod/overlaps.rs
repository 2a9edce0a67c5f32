//! Remarks about volumes that put two things at one path.

use crate::check::At;
use crate::tree::Tree;
use serde_json::Value;

/// A path of a volume and what puts something there.
#[derive(PartialEq)]
struct Place {
    path: String,
    source: String,
}

impl Place {
    fn shown(&self) -> String {
        match self.source.as_str() {
            "" => format!("{:?}", self.path),
            source => format!("{:?} ({source})", self.path),
        }
    }
}

pub(super) fn warnings(spec: &At, out: &mut Vec<String>) {
    for volume in spec.value.list("volumes") {
        for (kind, named, shown) in [
            ("configMap", "name", "ConfigMap"),
            ("secret", "secretName", "Secret"),
        ] {
            let source = volume.at(kind);
            let what = format!("{shown} {:?}", source.text(named));
            collisions(volume, &what, items(source, ""), out);
        }
        collisions(
            volume,
            "DownwardAPI",
            items(volume.at("downwardAPI"), ""),
            out,
        );
        let mut places = Vec::new();
        for source in volume.list("projected.sources") {
            if source
                .as_object()
                .is_none_or(|s| s.values().all(Value::is_null))
            {
                out.push(format!(
                    "volume {:?} (Projected) has no sources provided",
                    volume.text("name")
                ));
            }
            places.append(&mut projected(source));
        }
        collisions(volume, "Projected", places, out);
    }
}

fn items(source: &Value, what: &str) -> Vec<Place> {
    let place = |item: &Value| Place {
        path: item.text("path").to_owned(),
        source: what.to_owned(),
    };
    source.list("items").iter().map(place).collect()
}

fn projected(source: &Value) -> Vec<Place> {
    let named = |kind: &str, shown: &str| {
        let from = source.at(kind);
        items(from, &format!("{shown} {:?}", from.text("name")))
    };
    let single = |path: &str, what: &str| {
        vec![Place {
            path: path.to_owned(),
            source: what.to_owned(),
        }]
    };
    if source.has("configMap.items") {
        named("configMap", "ConfigMap")
    } else if source.has("secret.items") {
        named("secret", "Secret")
    } else if source.has("downwardAPI.items") {
        items(source.at("downwardAPI"), "DownwardAPI")
    } else if source.has("serviceAccountToken") {
        single(
            source.text("serviceAccountToken.path"),
            "ServiceAccountToken",
        )
    } else if source.has("clusterTrustBundle") {
        let bundle = source.at("clusterTrustBundle");
        let name = match bundle.text("name") {
            "" => bundle.text("signerName"),
            name => name,
        };
        single(bundle.text("path"), &format!("ClusterTrustBundle {name:?}"))
    } else {
        let certificate = source.at("podCertificate");
        [
            ("certificateChainPath", "PodCertificate chain"),
            ("keyPath", "PodCertificate key"),
            ("credentialBundlePath", "PodCertificate credential bundle"),
        ]
        .into_iter()
        .filter(|(field, _)| !certificate.text(field).is_empty())
        .flat_map(|(field, what)| single(certificate.text(field), what))
        .collect()
    }
}

fn collisions(volume: &Value, what: &str, places: Vec<Place>, out: &mut Vec<String>) {
    let mut seen: Vec<Place> = Vec::new();
    for mut place in places {
        place.path.truncate(place.path.trim_end_matches('/').len());
        let within = |a: &str, b: &str| format!("{a}/").starts_with(&format!("{b}/"));
        for other in seen.iter().filter(|o| !o.path.is_empty()) {
            let meets = within(&other.path, &place.path) || within(&place.path, &other.path);
            if !place.path.is_empty() && meets {
                out.push(format!(
                    "volume {:?} ({what}): overlapping paths: {} with {}",
                    volume.text("name"),
                    place.shown(),
                    other.shown()
                ));
            }
        }
        seen.push(place);
    }
}

//! Taints of nodes and the tolerations of pods. Specified by the API of `core/v1` `Toleration`.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// An empty key with `Exists` tolerates every taint, an empty effect every effect. An empty key
/// with `Equal` is the empty key, which no taint has.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// Whether one of the tolerations tolerates the taint.
pub fn is_tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| tolerates(t, taint))
}

/// The first taint with one of the effects that is not tolerated.
pub fn untolerated<'t>(
    tolerations: &[Toleration],
    taints: &'t [Taint],
    effects: &[&str],
) -> Option<&'t Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !is_tolerated(tolerations, taint))
}

/// How long a pod may stay on a node with `NoExecute` taints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Seconds(i64),
    No,
}

/// The shortest of the times that the tolerations in use give.
pub fn stay(tolerations: &[Toleration], taints: &[Taint]) -> Stay {
    let mut shortest: Option<i64> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let mut using = tolerations
            .iter()
            .filter(|t| tolerates(t, taint))
            .peekable();
        if using.peek().is_none() {
            return Stay::No;
        }
        for seconds in using.filter_map(|t| t.toleration_seconds) {
            let seconds = seconds.max(0);
            shortest = Some(shortest.map_or(seconds, |s| s.min(seconds)));
        }
    }
    shortest.map_or(Stay::Forever, Stay::Seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        }
    }

    fn toleration(text: &str) -> Toleration {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn operators_effects_and_wildcards() {
        let t = taint("k", "v", "NoExecute");
        let cases = [
            (r#"{"key":"k","value":"v"}"#, true),
            (r#"{"key":"k","value":"w"}"#, false),
            (r#"{"key":"k","operator":"Exists"}"#, true),
            (r#"{"operator":"Exists"}"#, true),
            (r#"{"operator":"Equal"}"#, false),
            (
                r#"{"key":"k","operator":"Exists","effect":"NoSchedule"}"#,
                false,
            ),
            (r#"{"key":"other","operator":"Exists"}"#, false),
        ];
        for (text, wanted) in cases {
            assert_eq!(tolerates(&toleration(text), &t), wanted, "{text}");
        }
    }

    #[test]
    fn the_shortest_toleration_counts() {
        let taints = [taint("a", "", "NoExecute"), taint("b", "", "NoExecute")];
        let forever = [toleration(r#"{"operator":"Exists"}"#)];
        assert_eq!(stay(&forever, &taints), Stay::Forever);
        let both = [
            toleration(r#"{"key":"a","operator":"Exists","tolerationSeconds":300}"#),
            toleration(r#"{"key":"b","operator":"Exists","tolerationSeconds":20}"#),
        ];
        assert_eq!(stay(&both, &taints), Stay::Seconds(20));
        assert_eq!(stay(&both[..1], &taints), Stay::No);
        assert_eq!(stay(&[], &[taint("a", "", "NoSchedule")]), Stay::Forever);
    }
}

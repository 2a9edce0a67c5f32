//! Query strings.

use keelson_machinery::go;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (
                percent_decode(&name.replace('+', " ")),
                percent_decode(&value.replace('+', " ")),
            )
        });
        Self(pairs.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// True when any of the names is set to a true value: the kubelet's own parameters and those of
    /// the pod's subresource differ in name.
    pub(super) fn any(&self, names: &[&str]) -> bool {
        names
            .iter()
            .any(|name| self.get(name).and_then(go::parse_bool) == Some(true))
    }

    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        match self.get(name).filter(|value| !value.is_empty()) {
            Some(value) => value
                .parse()
                .map(Some)
                .map_err(|_| format!("invalid value {value:?} for {name}")),
            None => Ok(None),
        }
    }
}

/// Bad escapes stay as they are.
pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut output = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                output.push(byte);
                at += 3;
            }
            None => {
                output.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo%20a%2Bb+c&stdin=true&tailLines=5&bad=%zz",
        );
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b c"]);
        assert!(query.any(&["input", "stdin"]));
        assert!(!query.any(&["tty"]));
        assert_eq!(query.number::<u64>("tailLines"), Ok(Some(5)));
        assert!(query.number::<u64>("bad").is_err());
        assert_eq!(query.get("bad"), Some("%zz"));
    }
}

//! Image names, normalised as Docker does.

use super::config::check_digest;
use super::{Error, Result};

const DEFAULT_REGISTRY: &str = "docker.io";

/// `registry/repository[:tag][@digest]`, every part explicit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

impl Reference {
    /// Parses what a user wrote: `nginx` is `docker.io/library/nginx:latest`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid =
            |why: &str| Error::Invalid(format!("invalid reference format: {text:?} {why}"));
        if text.is_empty() || text.len() > 4096 {
            return Err(invalid("is empty or too long"));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                check_digest(digest)?;
                (name, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (name, None),
        };
        if let Some(tag) = &tag {
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let rest = |b: u8| word(b) || b == b'.' || b == b'-';
            let bytes = tag.as_bytes();
            if bytes.is_empty()
                || bytes.len() > 128
                || !word(bytes[0])
                || !bytes.iter().all(|&b| rest(b))
            {
                return Err(invalid("has a bad tag"));
            }
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, rest))
                if host.contains(['.', ':'])
                    || host == "localhost"
                    || host.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (host, rest.to_owned())
            }
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        if !is_registry(registry) {
            return Err(invalid("has a bad registry name"));
        }
        let registry = if registry == "index.docker.io" {
            DEFAULT_REGISTRY
        } else {
            registry
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository
        };
        if repository.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(invalid("must have a lowercase repository name"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_path_component) {
            return Err(invalid("has a bad repository name"));
        }
        let tag = if tag.is_none() && digest.is_none() {
            Some("latest".to_owned())
        } else {
            tag
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, when there is a tag and no digest that outranks it.
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    pub fn with_digest(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest
            .iter()
            .try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// `host[:port]`, where an IPv6 address stands in brackets.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((ip, rest)) => {
            if ip.parse::<std::net::Ipv6Addr>().is_err()
                || !(rest.is_empty() || rest.starts_with(':'))
            {
                return false;
            }
            ("v6", rest.strip_prefix(':'))
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

/// Lower-case alphanumerics, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(|&b| alnum(b)) && bytes.last().is_some_and(|&b| alnum(b));
    let joins = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'));
    ends && joins
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/keelson/hello", "localhost/keelson/hello:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ];
        for (given, want) in cases {
            assert_eq!(
                Reference::parse(given).unwrap().to_string(),
                want,
                "{given}"
            );
        }
        let pinned = Reference::parse(&format!("nginx:1@{digest}")).unwrap();
        assert_eq!(
            pinned.to_string(),
            format!("docker.io/library/nginx:1@{digest}")
        );
        assert_eq!(pinned.tagged(), None);
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            "Nginx",
            "a//b",
            "a:",
            "a:b:c/",
            "-a",
            "a/b@sha256:zz",
            "a b",
            "../a",
            "a:ü",
            "a..b/c",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}

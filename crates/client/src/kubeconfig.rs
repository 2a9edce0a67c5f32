//! Kubeconfig files: reading a context, merging one in. Unknown fields are kept.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ClientConfig, Error, Replacement, Result};

/// Pipes are read too (`--kubeconfig <(…)`), and a device may never end.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    #[serde(default = "version", rename = "apiVersion")]
    pub api_version: String,
    #[serde(default = "kind")]
    pub kind: String,
    #[serde(default)]
    pub current_context: String,
    #[serde(default)]
    pub clusters: Vec<NamedCluster>,
    #[serde(default)]
    pub contexts: Vec<NamedContext>,
    #[serde(default)]
    pub users: Vec<NamedUser>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedCluster {
    pub name: String,
    #[serde(default)]
    pub cluster: Map<String, Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NamedContext {
    pub name: String,
    #[serde(default)]
    pub context: Map<String, Value>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct NamedUser {
    pub name: String,
    #[serde(default)]
    pub user: Map<String, Value>,
}

impl std::fmt::Debug for NamedUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamedUser")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn version() -> String {
    "v1".to_owned()
}

fn kind() -> String {
    "Config".to_owned()
}

impl Default for Kubeconfig {
    fn default() -> Self {
        Self {
            api_version: version(),
            kind: kind(),
            current_context: String::new(),
            clusters: Vec::new(),
            contexts: Vec::new(),
            users: Vec::new(),
            rest: Map::new(),
        }
    }
}

impl Kubeconfig {
    /// `$KUBECONFIG` (its first file), else `~/.kube/config`.
    pub fn default_path() -> PathBuf {
        if let Some(paths) = std::env::var_os("KUBECONFIG")
            && let Some(path) =
                std::env::split_paths(&paths).find(|path| !path.as_os_str().is_empty())
        {
            return path;
        }
        let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
        Path::new(&home).join(".kube/config")
    }

    pub fn read(path: &Path) -> Result<Self> {
        let failed =
            |error: &dyn std::fmt::Display| Error::Config(format!("{}: {error}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        if read.map_err(|error| failed(&error))? as u64 > MAX_BYTES {
            return Err(failed(&"it is too large for a kubeconfig"));
        }
        Self::parse(&text).map_err(|error| failed(&error))
    }

    pub fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| Error::Config(error.to_string()))
    }

    /// A file with one cluster, user and context, all named `name`.
    pub fn single(name: &str, config: &ClientConfig) -> Self {
        let encoded = |bytes: &[u8]| Value::from(STANDARD.encode(bytes));
        let mut cluster = Map::new();
        cluster.insert("server".to_owned(), config.server.clone().into());
        if !config.certificate_authority.is_empty() {
            cluster.insert(
                "certificate-authority-data".to_owned(),
                encoded(&config.certificate_authority),
            );
        }
        let mut user = Map::new();
        if !config.client_certificate.is_empty() {
            user.insert(
                "client-certificate-data".to_owned(),
                encoded(&config.client_certificate),
            );
            user.insert("client-key-data".to_owned(), encoded(&config.client_key));
        }
        if !config.token.is_empty() {
            user.insert("token".to_owned(), config.token.clone().into());
        }
        let mut context = Map::new();
        context.insert("cluster".to_owned(), name.into());
        context.insert("user".to_owned(), name.into());
        if !config.namespace.is_empty() {
            context.insert("namespace".to_owned(), config.namespace.clone().into());
        }
        Self {
            current_context: name.to_owned(),
            clusters: vec![NamedCluster {
                name: name.to_owned(),
                cluster,
            }],
            contexts: vec![NamedContext {
                name: name.to_owned(),
                context,
            }],
            users: vec![NamedUser {
                name: name.to_owned(),
                user,
            }],
            ..Self::default()
        }
    }

    /// Takes over the entries of `other`, replacing those of the same name, and its context.
    /// A namespace that the user set on a replaced context is kept.
    pub fn merge(&mut self, other: Kubeconfig) {
        for cluster in other.clusters {
            self.clusters.retain(|entry| entry.name != cluster.name);
            self.clusters.push(cluster);
        }
        for mut context in other.contexts {
            if let Some(index) = self
                .contexts
                .iter()
                .position(|entry| entry.name == context.name)
            {
                let old = self.contexts.remove(index);
                if let Some(namespace) = old.context.get("namespace") {
                    context
                        .context
                        .entry("namespace")
                        .or_insert_with(|| namespace.clone());
                }
            }
            self.contexts.push(context);
        }
        for user in other.users {
            self.users.retain(|entry| entry.name != user.name);
            self.users.push(user);
        }
        self.current_context = other.current_context;
    }

    /// Removes the entries named `name`; the current context too, if it is that.
    pub fn remove(&mut self, name: &str) {
        self.clusters.retain(|entry| entry.name != name);
        self.contexts.retain(|entry| entry.name != name);
        self.users.retain(|entry| entry.name != name);
        if self.current_context == name {
            self.current_context.clear();
        }
    }

    /// Replaces the file as a whole, readable by its owner alone.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed =
            |error: &dyn std::fmt::Display| Error::Config(format!("{}: {error}", path.display()));
        let text = serde_saphyr::to_string(self).map_err(|error| failed(&error))?;
        let write = || {
            let mut new = Replacement::begin(path)?;
            new.file().write_all(text.as_bytes())?;
            new.commit()
        };
        write().map_err(|error: std::io::Error| failed(&error))
    }

    /// What a context comes down to; `None` is the current one. Relative file names are relative
    /// to `directory`, the kubeconfig's own.
    pub fn client_config(&self, context: Option<&str>, directory: &Path) -> Result<ClientConfig> {
        let name = context.unwrap_or(&self.current_context);
        if name.is_empty() {
            return Err(Error::Config(
                "no context is set: start a cluster with `keelson up`, or name one with --context"
                    .into(),
            ));
        }
        let context = self.contexts.iter().find(|entry| entry.name == name);
        let context = &context
            .ok_or_else(|| Error::Config(format!("context {name:?} does not exist")))?
            .context;
        let text = |map: &Map<String, Value>, key: &str| {
            map.get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let cluster_name = text(context, "cluster");
        let cluster = self
            .clusters
            .iter()
            .find(|entry| entry.name == cluster_name);
        let cluster = &cluster
            .ok_or_else(|| Error::Config(format!("cluster {cluster_name:?} does not exist")))?
            .cluster;
        let user_name = text(context, "user");
        let empty = Map::new();
        let user = self
            .users
            .iter()
            .find(|entry| entry.name == user_name)
            .map_or(&empty, |entry| &entry.user);
        let token = match text(user, "tokenFile") {
            file if file.is_empty() => text(user, "token"),
            file => String::from_utf8_lossy(&read_file(directory, &file)?)
                .trim()
                .to_owned(),
        };
        Ok(ClientConfig {
            server: text(cluster, "server"),
            certificate_authority: data_or_file(cluster, "certificate-authority", directory)?,
            client_certificate: data_or_file(user, "client-certificate", directory)?,
            client_key: data_or_file(user, "client-key", directory)?,
            token,
            tls_server_name: Some(text(cluster, "tls-server-name")).filter(|name| !name.is_empty()),
            insecure_skip_tls_verify: cluster
                .get("insecure-skip-tls-verify")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            namespace: text(context, "namespace"),
        })
    }
}

fn read_file(directory: &Path, name: &str) -> Result<Vec<u8>> {
    let path = directory.join(name);
    std::fs::read(&path).map_err(|error| Error::Config(format!("{}: {error}", path.display())))
}

/// `<key>-data` in base64 takes precedence over the file that `<key>` names.
fn data_or_file(map: &Map<String, Value>, key: &str, directory: &Path) -> Result<Vec<u8>> {
    let data_key = format!("{key}-data");
    if let Some(data) = map.get(&data_key).and_then(Value::as_str) {
        return STANDARD
            .decode(data.trim())
            .map_err(|error| Error::Config(format!("{data_key}: {error}")));
    }
    match map.get(key).and_then(Value::as_str) {
        Some(name) if !name.is_empty() => read_file(directory, name),
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        ClientConfig {
            server: "https://127.0.0.1:6443".to_owned(),
            token: "t".to_owned(),
            ..ClientConfig::default()
        }
    }

    #[test]
    fn a_merged_context_keeps_the_users_own_and_their_namespace() {
        let mut mine = Kubeconfig::parse(
            "apiVersion: v1\nkind: Config\npreferences: {colors: true}\ncurrent-context: other\n\
             contexts:\n- name: other\n  context: {cluster: o, user: o}\n\
             - name: keelson\n  context: {cluster: keelson, user: keelson, namespace: team}\n",
        )
        .unwrap();
        mine.merge(Kubeconfig::single("keelson", &config()));
        assert_eq!(mine.current_context, "keelson");
        assert_eq!(mine.contexts.len(), 2);
        assert_eq!(
            mine.client_config(None, Path::new("/")).unwrap().namespace,
            "team"
        );
        assert!(mine.rest.contains_key("preferences"));
        let text = serde_saphyr::to_string(&mine).unwrap();
        let again = Kubeconfig::parse(&text).unwrap();
        assert_eq!(
            again.client_config(None, Path::new("/")).unwrap().token,
            "t"
        );
        mine.remove("keelson");
        assert_eq!(
            (mine.contexts.len(), mine.current_context.as_str()),
            (1, "")
        );
    }

    #[test]
    fn an_absent_context_says_what_to_do() {
        let error = Kubeconfig::default()
            .client_config(None, Path::new("/"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("keelson up"), "{error}");
    }
}

//! The cluster a command talks to.

use std::path::{Path, PathBuf};

use clap::ArgMatches;
use keelson_client::{Client, ClientConfig, Kubeconfig};

use crate::Error;
use crate::resources::{Resource, Resources};

pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) config: ClientConfig,
    /// The namespace that a command without `--all-namespaces` works in.
    pub(crate) namespace: String,
    pub(crate) kubeconfig: PathBuf,
}

impl Session {
    pub(crate) fn open(arguments: &ArgMatches) -> Result<Self, Error> {
        let text = |name: &str| arguments.get_one::<String>(name).map(String::as_str);
        let path = text("kubeconfig").map_or_else(Kubeconfig::default_path, PathBuf::from);
        let directory = path.parent().unwrap_or(Path::new("/"));
        let file = if path.exists() {
            Kubeconfig::read(&path)?
        } else {
            Kubeconfig::default()
        };
        let mut config = match text("server") {
            Some(server) if text("context").is_none() && file.current_context.is_empty() => {
                ClientConfig {
                    server: server.to_owned(),
                    ..ClientConfig::default()
                }
            }
            // Commands on the kubeconfig itself work without a cluster.
            None if file.current_context.is_empty() && text("context").is_none() => {
                ClientConfig::default()
            }
            _ => file.client_config(text("context"), directory)?,
        };
        if let Some(server) = text("server") {
            config.server = server.to_owned();
        }
        if let Some(token) = text("token") {
            config.token = token.to_owned();
        }
        config.insecure_skip_tls_verify |= arguments.get_flag("insecure-skip-tls-verify");
        let namespace = text("namespace").unwrap_or(&config.namespace);
        let namespace = if namespace.is_empty() {
            "default"
        } else {
            namespace
        }
        .to_owned();
        Ok(Self {
            client: Client::https(&config)?.with_user_agent("kubectl"),
            config,
            namespace,
            kubeconfig: path,
        })
    }

    pub(crate) async fn resources(&self) -> Result<Resources, Error> {
        if self.config.server.is_empty() {
            return Err(Error::Usage(
                "no cluster is configured: start one with `keelson up`, or name one with --kubeconfig".to_owned(),
            ));
        }
        Resources::discover(&self.client).await
    }

    /// The namespace to address objects of a resource in; empty for cluster-scoped ones.
    pub(crate) fn namespace_for<'a>(&'a self, resource: &Resource) -> &'a str {
        if resource.kind.namespaced {
            &self.namespace
        } else {
            ""
        }
    }
}

//! Every active namespace has the certificate authority of the API server in `kube-root-ca.crt`,
//! which the service-account volume of every pod projects.

use std::collections::BTreeMap;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Client, Controller, ControllerContext, Informer, InformerOptions, Key, Outcome, ReconcileError,
    Watches,
};

use super::service_account::is_active;
use crate::pod;

const NAME: &str = "kube-root-ca.crt";

pub(crate) struct RootCaController {
    client: Client,
    namespaces: Informer<Namespace>,
    /// Only the ConfigMaps of this name: those of users may be many and large.
    published: Informer<ConfigMap>,
    root_ca: String,
}

impl RootCaController {
    pub(crate) fn new(context: &ControllerContext, root_ca: &str) -> Self {
        let options = InformerOptions {
            field_selector: format!("metadata.name={NAME}"),
            ..InformerOptions::default()
        };
        Self {
            client: context.client.clone(),
            namespaces: context.informer(),
            published: context.informers.informer_with(options),
            root_ca: root_ca.to_owned(),
        }
    }
}

#[async_trait]
impl Controller for RootCaController {
    fn name(&self) -> &'static str {
        "root-ca-certificate-publisher"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.namespaces);
        watches.mapped(&self.published, |change| {
            vec![Key::new("", pod::namespace(&change.object().metadata))]
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        if !self
            .namespaces
            .get("", &key.name)
            .is_some_and(|n| is_active(&n))
        {
            return Ok(Outcome::Done);
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.root_ca.clone())]);
        let result = match self.published.get(&key.name, NAME) {
            Some(known) if known.data.as_ref() == Some(&data) => return Ok(Outcome::Done),
            Some(known) => {
                let next = ConfigMap {
                    data: Some(data),
                    ..ConfigMap::clone(&known)
                };
                self.client.update(&next).await
            }
            None => {
                let new = ConfigMap {
                    metadata: ObjectMeta {
                        name: Some(NAME.into()),
                        namespace: Some(key.name.clone()),
                        annotations: Some(BTreeMap::from([(
                            "kubernetes.io/description".to_owned(),
                            "The certificate authority of this cluster's API server, for clients inside the cluster."
                                .to_owned(),
                        )])),
                        ..ObjectMeta::default()
                    },
                    data: Some(data),
                    ..ConfigMap::default()
                };
                self.client.create(&new).await
            }
        };
        match result {
            Err(error)
                if error.is_already_exists()
                    || error.is_namespace_terminating()
                    || error.is_not_found() =>
            {
                Ok(Outcome::Done)
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Outcome::Done),
        }
    }
}

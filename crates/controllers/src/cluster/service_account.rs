//! Every active namespace has a service account `default`.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Change, Client, Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};

use crate::pod;

const NAME: &str = "default";

pub(crate) struct ServiceAccountController {
    client: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

impl ServiceAccountController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            namespaces: context.informer(),
            accounts: context.informer(),
        }
    }
}

/// Whether things may still be made in a namespace.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_none()
        && namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
}

#[async_trait]
impl Controller for ServiceAccountController {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.namespaces);
        watches.mapped(&self.accounts, |change| match change {
            Change::Deleted(account) if pod::name(&account.metadata) == NAME => {
                vec![Key::new("", pod::namespace(&account.metadata))]
            }
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let active = self
            .namespaces
            .get("", &key.name)
            .is_some_and(|n| is_active(&n));
        if !active || self.accounts.get(&key.name, NAME).is_some() {
            return Ok(Outcome::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(key.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match self.client.create(&account).await {
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

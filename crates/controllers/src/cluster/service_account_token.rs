//! Fills Secrets of type `kubernetes.io/service-account-token`, and removes them with their
//! account. Pods do not need them: they get short-lived tokens of their own.

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::{
    Client, Controller, ControllerContext, DeleteOptions, Informer, InformerOptions, Key, Outcome,
    ReconcileError, Watches,
};
use serde_json::json;

use crate::pod;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Such tokens live as long as their Secret, to which they are bound; the API wants a number all
/// the same, and this is the largest it takes.
const LIFETIME_SECONDS: u64 = 1 << 32;

pub(crate) struct ServiceAccountTokenController {
    client: Client,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    root_ca: String,
}

impl ServiceAccountTokenController {
    pub(crate) fn new(context: &ControllerContext, root_ca: &str) -> Self {
        let options = InformerOptions {
            field_selector: format!("type={TYPE}"),
            ..InformerOptions::default()
        };
        Self {
            client: context.client.clone(),
            secrets: context.informers.informer_with(options),
            accounts: context.informer(),
            root_ca: root_ca.to_owned(),
        }
    }

    async fn token(&self, secret: &Secret, account: &str) -> Result<String, ReconcileError> {
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": LIFETIME_SECONDS,
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "name": secret.metadata.name,
                    "uid": secret.metadata.uid,
                },
            },
        });
        let namespace = pod::namespace(&secret.metadata);
        let answer = self
            .client
            .create_subresource::<ServiceAccount>(namespace, account, "token", &body)
            .await?;
        answer["status"]["token"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| {
                ReconcileError::Other("the token request was answered without a token".to_owned())
            })
    }
}

fn holds(secret: &Secret, key: &str) -> bool {
    let data = secret.data.as_ref();
    data.is_some_and(|d| d.get(key).is_some_and(|v| !v.0.is_empty()))
}

#[async_trait]
impl Controller for ServiceAccountTokenController {
    fn name(&self) -> &'static str {
        "serviceaccount-token-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.secrets);
        let secrets = self.secrets.clone();
        watches.mapped(&self.accounts, move |change| {
            let account = &change.object().metadata;
            secrets
                .list_in(pod::namespace(account))
                .iter()
                .filter(|s| pod::annotation(&s.metadata, ACCOUNT_NAME) == account.name.as_deref())
                .map(|s| Key::of(&s.metadata))
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(name) = pod::annotation(&secret.metadata, ACCOUNT_NAME) else {
            return Ok(Outcome::Done);
        };
        if secret.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let uid = pod::annotation(&secret.metadata, ACCOUNT_UID);
        let account = match self.accounts.get(&key.namespace, name) {
            Some(account) => Some(ServiceAccount::clone(&account)),
            None => {
                self.client
                    .try_get::<ServiceAccount>(&key.namespace, name)
                    .await?
            }
        };
        let account = account.filter(|a| uid.is_none() || uid == a.metadata.uid.as_deref());
        let Some(account) = account else {
            let options = DeleteOptions::default().uid(pod::uid(&secret.metadata));
            return match self
                .client
                .delete::<Secret>(&key.namespace, &key.name, &options)
                .await
            {
                Err(error) if !error.is_not_found() => Err(error.into()),
                _ => Ok(Outcome::Done),
            };
        };
        let complete = ["token", "ca.crt", "namespace"]
            .iter()
            .all(|k| holds(&secret, k));
        if complete && uid.is_some() {
            return Ok(Outcome::Done);
        }
        let mut next = Secret::clone(&secret);
        let data = next.data.get_or_insert_default();
        if !holds(&secret, "token") {
            let token = self.token(&secret, name).await?;
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        data.insert(
            "ca.crt".to_owned(),
            ByteString(self.root_ca.clone().into_bytes()),
        );
        data.insert(
            "namespace".to_owned(),
            ByteString(key.namespace.clone().into_bytes()),
        );
        next.metadata.annotations.get_or_insert_default().insert(
            ACCOUNT_UID.to_owned(),
            pod::uid(&account.metadata).to_owned(),
        );
        match self.client.update(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

//! Deleting a namespace: everything in it goes first, then the namespace itself.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use http::Method;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use keelson_client::{
    Change, Client, Controller, ControllerContext, DeleteOptions, Error, Informer, Key,
    ListOptions, Outcome, ReconcileError, ResourceType, Watches,
};
use serde_json::{Value, json};
use std::time::Duration;

use crate::discovery::{self, Served};
use crate::{clock, pod};

const FINALIZER: &str = "kubernetes";
/// Resources emptied at the same time.
const IN_FLIGHT: usize = 10;

pub(crate) struct NamespaceController {
    client: Client,
    namespaces: Informer<Namespace>,
    pods: Informer<Pod>,
}

impl NamespaceController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            namespaces: context.informer(),
            pods: context.informer(),
        }
    }

    /// Deletes everything of these resources; reports what is still there and what refused.
    async fn empty(&self, namespace: &str, resources: Vec<Served>) -> Sweep {
        let mut sweep = Sweep::default();
        let mut results = stream::iter(resources.into_iter().map(|served| async move {
            let result = self.empty_resource(namespace, &served).await;
            (served, result)
        }))
        .buffer_unordered(IN_FLIGHT);
        while let Some((served, result)) = results.next().await {
            match result {
                Ok(left) if left.is_empty() => {}
                Ok(left) => sweep.note(&served.resource, &left),
                Err(error) => sweep.errors.push(error.to_string()),
            }
        }
        sweep.errors.sort();
        sweep
    }

    async fn empty_resource(&self, namespace: &str, served: &Served) -> Result<Vec<Value>, Error> {
        let resource = &served.resource;
        // One is enough to know; all of them may be many.
        if self.items(namespace, resource, "limit=1").await?.is_empty() {
            return Ok(Vec::new());
        }
        let options = DeleteOptions::background();
        if served.allows("deletecollection") {
            match self
                .client
                .delete_collection(resource, namespace, &options, &ListOptions::default())
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        } else {
            for item in self.items(namespace, resource, "").await? {
                let name = item["metadata"]["name"].as_str().unwrap_or_default();
                match self
                    .client
                    .delete_resource(resource, namespace, name, &options)
                    .await
                {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        self.items(namespace, resource, "").await
    }

    async fn items(
        &self,
        namespace: &str,
        resource: &ResourceType,
        query: &str,
    ) -> Result<Vec<Value>, Error> {
        let path = format!("{}?{query}", resource.path(namespace, "", ""));
        match self.client.request(Method::GET, &path, None).await {
            Ok(mut list) => match list["items"].take() {
                Value::Array(items) => Ok(items),
                _ => Ok(Vec::new()),
            },
            // A resource that went away with its definition has nothing left.
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    async fn write_conditions(
        &self,
        namespace: &Namespace,
        wanted: Vec<NamespaceCondition>,
    ) -> Result<(), ReconcileError> {
        let mut next = namespace.clone();
        let status = next.status.get_or_insert_default();
        status.phase = Some("Terminating".into());
        status.conditions = Some(wanted);
        if Some(&*status) == namespace.status.as_ref() {
            return Ok(());
        }
        match self.client.update_status(&next).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), ReconcileError> {
        let name = pod::name(&namespace.metadata);
        let mut body = json!(namespace);
        if let Some(finalizers) = body["spec"]["finalizers"].as_array_mut() {
            finalizers.retain(|f| f != FINALIZER);
        }
        let path = format!("/api/v1/namespaces/{name}/finalize");
        match self.client.request(Method::PUT, &path, Some(&body)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            // The conditions have just been written: take the newest form.
            Err(error) if error.is_conflict() => {
                let fresh = self.client.get::<Namespace>("", name).await?;
                body["metadata"]["resourceVersion"] = json!(fresh.metadata.resource_version);
                self.client.request(Method::PUT, &path, Some(&body)).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is left after a round of deletions.
#[derive(Debug, Default)]
struct Sweep {
    remaining: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    errors: Vec<String>,
    /// Seconds that the slowest pod may take to stop.
    grace_seconds: i64,
}

impl Sweep {
    fn note(&mut self, resource: &ResourceType, items: &[Value]) {
        let name = format!("{}.{}", resource.resource, resource.group);
        *self.remaining.entry(name).or_default() += items.len();
        for item in items {
            for finalizer in item["metadata"]["finalizers"]
                .as_array()
                .into_iter()
                .flatten()
            {
                if let Some(finalizer) = finalizer.as_str() {
                    *self.finalizers.entry(finalizer.to_owned()).or_default() += 1;
                }
            }
            if resource.group.is_empty() && resource.resource == "pods" {
                let grace = item["metadata"]["deletionGracePeriodSeconds"]
                    .as_i64()
                    .unwrap_or(30);
                self.grace_seconds = self.grace_seconds.max(grace);
            }
        }
    }

    fn merge(&mut self, other: Sweep) {
        self.remaining.extend(other.remaining);
        for (finalizer, count) in other.finalizers {
            *self.finalizers.entry(finalizer).or_default() += count;
        }
        self.errors.extend(other.errors);
        self.grace_seconds = self.grace_seconds.max(other.grace_seconds);
    }
}

/// The five conditions that tell how far a deletion has come. Pure.
fn conditions(
    known: &[NamespaceCondition],
    failures: &[(String, String)],
    sweep: &Sweep,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let failed = |list: &[String]| list.join(", ");
    let discovery: Vec<String> = failures
        .iter()
        .map(|(group, error)| format!("{group}: {error}"))
        .collect();
    let remaining: Vec<String> = sweep
        .remaining
        .iter()
        .map(|(r, n)| format!("{r} has {n} resource instances"))
        .collect();
    let finalizers: Vec<String> = sweep
        .finalizers
        .iter()
        .map(|(f, n)| format!("{f} in {n} resource instances"))
        .collect();
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            (
                "ResourcesDiscovered",
                "All resources successfully discovered".to_owned(),
            ),
            (!discovery.is_empty()).then(|| {
                (
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {} failing: {}",
                        discovery.len(),
                        failed(&discovery)
                    ),
                )
            }),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".to_owned(),
            ),
            None,
        ),
        (
            "NamespaceDeletionContentFailure",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            ),
            (!sweep.errors.is_empty()).then(|| {
                (
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        sweep.errors.len(),
                        failed(&sweep.errors)
                    ),
                )
            }),
        ),
        (
            "NamespaceContentRemaining",
            (
                "ContentRemoved",
                "All content successfully removed".to_owned(),
            ),
            (!remaining.is_empty()).then(|| {
                (
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {}", failed(&remaining)),
                )
            }),
        ),
        (
            "NamespaceFinalizersRemaining",
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            ),
            (!finalizers.is_empty()).then(|| {
                (
                    "SomeFinalizersRemain",
                    format!(
                        "Some content in the namespace has finalizers remaining: {}",
                        failed(&finalizers)
                    ),
                )
            }),
        ),
    ];
    let mut out: Vec<NamespaceCondition> = known
        .iter()
        .filter(|c| rows.iter().all(|(kind, ..)| *kind != c.type_))
        .cloned()
        .collect();
    for (kind, good, bad) in rows {
        let (status, (reason, message)) = match bad {
            Some(bad) => ("True", bad),
            None => ("False", good),
        };
        let before = known.iter().find(|c| c.type_ == kind);
        let moved =
            before.is_none_or(|c| c.status != status || c.reason.as_deref() != Some(reason));
        out.push(NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: if moved {
                Some(clock::stamp(now))
            } else {
                before.and_then(|c| c.last_transition_time.clone())
            },
        });
    }
    out
}

#[async_trait]
impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn workers(&self) -> usize {
        10
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.namespaces);
        // The last pod to go is what a deletion usually waits for.
        let namespaces = self.namespaces.clone();
        watches.mapped(&self.pods, move |change| {
            let Change::Deleted(pod) = change else {
                return Vec::new();
            };
            namespaces
                .get("", pod::namespace(&pod.metadata))
                .filter(|n| n.metadata.deletion_timestamp.is_some())
                .map(|n| Key::of(&n.metadata))
                .into_iter()
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(namespace) = self.namespaces.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(Outcome::Done);
        }
        let held = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
        if !held.is_some_and(|f| f.iter().any(|f| f == FINALIZER)) {
            return Ok(Outcome::Done);
        }
        let discovery = discovery::discover(&self.client).await?;
        let deletable: Vec<Served> = discovery
            .served
            .into_iter()
            .filter(|s| s.resource.namespaced && s.allows("delete") && s.allows("list"))
            .collect();
        // Pods go first: what they mount and which rights they have must outlive them.
        let (pods, rest): (Vec<_>, Vec<_>) = deletable
            .into_iter()
            .partition(|s| s.resource.group.is_empty() && s.resource.resource == "pods");
        let mut sweep = self.empty(&key.name, pods).await;
        if sweep.remaining.is_empty() && sweep.errors.is_empty() {
            sweep.merge(self.empty(&key.name, rest).await);
        }
        let known = namespace
            .status
            .as_ref()
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default();
        let done =
            sweep.remaining.is_empty() && sweep.errors.is_empty() && discovery.failures.is_empty();
        if done {
            self.finalize(&namespace).await?;
            return Ok(Outcome::Done);
        }
        let conditions = conditions(&known, &discovery.failures, &sweep, clock::now());
        self.write_conditions(&namespace, conditions).await?;
        if sweep.errors.is_empty() && discovery.failures.is_empty() {
            // Remaining objects wait for finalizers or for pods to stop; the pods' own events
            // usually come first.
            let seconds = u64::try_from(sweep.grace_seconds / 2 + 1).unwrap_or(1);
            return Ok(Outcome::RequeueAfter(Duration::from_secs(seconds)));
        }
        Err(ReconcileError::Other(format!(
            "namespace {} is not empty: {}",
            key.name,
            sweep.errors.join("; ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_content_is_told_by_conditions() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut sweep = Sweep::default();
        let resource = ResourceType {
            group: String::new(),
            version: "v1".into(),
            resource: "pods".into(),
            kind: "Pod".into(),
            namespaced: true,
        };
        sweep.note(
            &resource,
            &[json!({"metadata": {"finalizers": ["x/y"], "deletionGracePeriodSeconds": 7}})],
        );
        assert_eq!(sweep.grace_seconds, 7);
        let first = conditions(&[], &[], &sweep, now);
        let text = |kind: &str| {
            first
                .iter()
                .find(|c| c.type_ == kind)
                .map(|c| (c.status.clone(), c.message.clone().unwrap()))
                .unwrap()
        };
        assert_eq!(
            text("NamespaceContentRemaining"),
            (
                "True".into(),
                "Some resources are remaining: pods. has 1 resource instances".into()
            )
        );
        assert_eq!(
            text("NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: x/y in 1 resource instances"
        );
        assert_eq!(text("NamespaceDeletionContentFailure").0, "False");
        let later = conditions(&first, &[], &sweep, clock::after(now, 60));
        assert_eq!(first, later, "unchanged conditions keep their time");
    }
}

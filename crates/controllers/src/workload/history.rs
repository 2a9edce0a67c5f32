//! ControllerRevisions: the past templates of DaemonSets and StatefulSets.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use keelson_client::{Client, DeleteOptions, Informer, Object, ReconcileError};
use keelson_semantics::label_selector;
use serde_json::{Value, json};

use crate::owner::Owner;
use crate::{children, pod};

/// The key under which pods and revisions carry the hash or the name of a revision.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";

/// The revisions of one owner, oldest first, and what is written when a new one is needed.
pub(crate) struct History<'a> {
    pub client: &'a Client,
    pub informer: &'a Informer<ControllerRevision>,
    pub owner: &'a Owner,
    pub selector: &'a LabelSelector,
    pub template: &'a PodTemplateSpec,
    pub collisions: Option<i32>,
    /// The label on revisions that carries the hash.
    pub hash_label: &'static str,
}

/// What a revision stores of its template: a patch that replaces it.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or(Value::Null);
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".into(), json!("replace"));
    }
    json!({"spec": {"template": template}})
}

/// The template that a revision stores.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut value = revision
        .data
        .as_ref()?
        .0
        .get("spec")?
        .get("template")?
        .clone();
    value.as_object_mut()?.remove("$patch");
    serde_json::from_value(value).ok()
}

impl History<'_> {
    /// Adopts, and returns every revision of the owner, oldest first.
    pub(crate) async fn list<O: Object>(
        &self,
    ) -> Result<Vec<Arc<ControllerRevision>>, ReconcileError> {
        let candidates = children::candidates(self.informer, self.owner);
        let mut ours =
            children::claim::<O, ControllerRevision>(self.client, self.owner, candidates, |meta| {
                label_selector::matches(self.selector, meta.labels.as_ref())
            })
            .await?;
        ours.sort_by(|a, b| (a.revision, &a.metadata.name).cmp(&(b.revision, &b.metadata.name)));
        Ok(ours)
    }

    /// The revision of the present template, created or made the newest where needed. The second
    /// value is true when the name was taken by something else: the owner must count a collision.
    pub(crate) async fn current(
        &self,
        known: &[Arc<ControllerRevision>],
    ) -> Result<(Option<Arc<ControllerRevision>>, bool), ReconcileError> {
        let data = data(self.template);
        let next = known.last().map_or(0, |r| r.revision) + 1;
        let equal = known
            .iter()
            .rev()
            .find(|r| r.data.as_ref().map(|d| &d.0) == Some(&data));
        if let Some(equal) = equal {
            if known
                .last()
                .is_some_and(|last| last.metadata.uid == equal.metadata.uid)
            {
                return Ok((Some(equal.clone()), false));
            }
            // Going back to an old template makes its revision the newest.
            let bumped = ControllerRevision {
                revision: next,
                ..ControllerRevision::clone(equal)
            };
            return Ok((Some(Arc::new(self.client.update(&bumped).await?)), false));
        }
        let hash = pod::digest(&data, self.collisions);
        let mut labels = self
            .template
            .metadata
            .as_ref()
            .and_then(|m| m.labels.clone())
            .unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.clone());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.owner.name)),
                namespace: Some(self.owner.namespace.clone()),
                labels: Some(labels),
                owner_references: Some(vec![self.owner.reference()]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: next,
        };
        match self.client.create(&revision).await {
            Ok(created) => Ok((Some(Arc::new(created)), false)),
            Err(error) if error.is_already_exists() => {
                let name = pod::name(&revision.metadata);
                let known = self
                    .client
                    .get::<ControllerRevision>(&self.owner.namespace, name)
                    .await?;
                if self.owner.owns(&known.metadata)
                    && known.data.as_ref().map(|d| &d.0) == Some(&data)
                {
                    return Ok((Some(Arc::new(known)), false));
                }
                Ok((None, true))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the oldest revisions beyond the limit that no pod uses.
    pub(crate) async fn truncate(
        &self,
        known: &[Arc<ControllerRevision>],
        limit: i32,
        is_live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), ReconcileError> {
        let unused: Vec<_> = known.iter().filter(|r| !is_live(r)).collect();
        let surplus = unused
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for revision in unused.into_iter().take(surplus) {
            let options = DeleteOptions::default().uid(pod::uid(&revision.metadata));
            match self
                .client
                .delete::<ControllerRevision>(
                    &self.owner.namespace,
                    pod::name(&revision.metadata),
                    &options,
                )
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_its_template_back() {
        let original: PodTemplateSpec = serde_json::from_value(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}),
        )
        .unwrap();
        let revision = ControllerRevision {
            data: Some(RawExtension(data(&original))),
            ..ControllerRevision::default()
        };
        assert_eq!(template(&revision), Some(original));
    }
}

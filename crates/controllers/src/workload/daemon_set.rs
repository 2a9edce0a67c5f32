//! DaemonSet: one pod on every node that fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Change, Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};
use keelson_semantics::label_selector;

use super::daemon_set_plan::{self as plan, Input, Plan};
use super::history::{History, REVISION_LABEL};
use crate::owner::Owner;
use crate::{children, clock, pod};

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
const GENERATION_LABEL: &str = "pod-template-generation";

pub(crate) struct DaemonSetController {
    context: ControllerContext,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
}

impl DaemonSetController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            sets: context.informer(),
            pods: context.informer(),
            nodes: context.informer(),
            revisions: context.informer(),
        };
        children::index(&this.pods);
        children::index(&this.revisions);
        this
    }

    async fn apply(
        &self,
        set: &DaemonSet,
        owner: &Owner,
        hash: &str,
        plan: Plan,
    ) -> Result<Outcome, ReconcileError> {
        for (name, node) in &plan.failed {
            let message = format!(
                "Found failed daemon pod {}/{name} on node {node}, will try to kill it",
                owner.namespace
            );
            self.context.events.warning(set, "FailedDaemonPod", message);
        }
        let (client, events) = (&self.context.client, &self.context.events);
        let deleting = children::delete_pods(client, events, set, &plan.delete).await;
        let creating = children::slow_start(plan.create.len(), |position| {
            let draft = draft(set, owner, hash, &plan.create[position]);
            async move {
                children::create_pod(client, events, set, &draft)
                    .await
                    .map(drop)
            }
        })
        .await
        .filter(|error| !error.is_namespace_terminating());
        self.write_status(set, plan.status).await?;
        match (creating.or(deleting), plan.requeue) {
            (Some(error), _) => Err(error.into()),
            (None, Some(delay)) => Ok(Outcome::RequeueAfter(delay)),
            (None, None) => Ok(Outcome::Done),
        }
    }

    async fn write_status(
        &self,
        set: &DaemonSet,
        status: DaemonSetStatus,
    ) -> Result<(), ReconcileError> {
        if set
            .status
            .as_ref()
            .is_some_and(|known| same(known, &status))
        {
            return Ok(());
        }
        let next = DaemonSet {
            status: Some(status),
            ..set.clone()
        };
        match self.context.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Equal up to the difference between an absent number and zero.
fn same(a: &DaemonSetStatus, b: &DaemonSetStatus) -> bool {
    let plain = |s: &DaemonSetStatus| {
        let mut s = s.clone();
        for number in [
            &mut s.number_available,
            &mut s.number_unavailable,
            &mut s.updated_number_scheduled,
            &mut s.collision_count,
        ] {
            *number = Some(number.unwrap_or(0));
        }
        s
    };
    plain(a) == plain(b)
}

/// The pod for one node: it goes through the scheduler, but only that node will do.
fn draft(set: &DaemonSet, owner: &Owner, hash: &str, node: &str) -> Pod {
    let template = set
        .spec
        .as_ref()
        .map(|s| s.template.clone())
        .unwrap_or_default();
    let mut p = pod::from_template(
        &template,
        &owner.namespace,
        Some(format!("{}-", owner.name)),
        owner.reference(),
    );
    let labels = p.metadata.labels.get_or_insert_with(BTreeMap::new);
    labels.insert(REVISION_LABEL.to_owned(), hash.to_owned());
    let generation = pod::annotation(&set.metadata, TEMPLATE_GENERATION).map(str::to_owned);
    let generation = generation.or_else(|| set.metadata.generation.map(|g| g.to_string()));
    if let Some(generation) = generation {
        labels.insert(GENERATION_LABEL.to_owned(), generation);
    }
    if let Some(spec) = &mut p.spec {
        spec.tolerations = Some(plan::tolerations(spec));
        pin(spec, node);
    }
    p
}

/// Adds the node's name to every alternative of the required node affinity.
fn pin(spec: &mut PodSpec, node: &str) {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec
        .affinity
        .get_or_insert_with(Affinity::default)
        .node_affinity
        .get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector {
            node_selector_terms: Vec::new(),
        });
    if required.node_selector_terms.is_empty() {
        required
            .node_selector_terms
            .push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![requirement.clone()]);
    }
}

fn selects(spec: &DaemonSetSpec, meta: &ObjectMeta) -> bool {
    !label_selector::is_empty(&spec.selector)
        && label_selector::matches(&spec.selector, meta.labels.as_ref())
}

/// Whether two forms of a node differ in anything that decides over daemon pods.
fn matters(old: &Node, new: &Node) -> bool {
    let taints = |n: &Node| n.spec.as_ref().and_then(|s| s.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

#[async_trait]
impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemon-set-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.sets);
        watches.owned(&self.pods, "DaemonSet");
        watches.owned(&self.revisions, "DaemonSet");
        let sets = self.sets.clone();
        watches.mapped(&self.pods, move |change| {
            children::adopters(&sets, change, |d, meta| {
                d.spec.as_ref().is_some_and(|s| selects(s, meta))
            })
        });
        let sets = self.sets.clone();
        watches.mapped(&self.nodes, move |change| {
            if let Change::Updated { old, new } = change
                && !matters(old, new)
            {
                return Vec::new();
            }
            sets.list().iter().map(|s| Key::of(&s.metadata)).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(set) = self.sets.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let Some(spec) = &set.spec else {
            return Ok(Outcome::Done);
        };
        if label_selector::is_empty(&spec.selector) {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            self.context.events.warning(&*set, "SelectingAll", message);
            return Ok(Outcome::Done);
        }
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let owner = Owner::new("apps/v1", "DaemonSet", &set.metadata);
        let history = History {
            client: &self.context.client,
            informer: &self.revisions,
            owner: &owner,
            selector: &spec.selector,
            template: &spec.template,
            collisions: set.status.as_ref().and_then(|s| s.collision_count),
            hash_label: REVISION_LABEL,
        };
        let revisions = history.list::<DaemonSet>().await?;
        let (current, collided) = match history.current(&revisions).await {
            Err(ReconcileError::Client(error)) if error.is_namespace_terminating() => {
                return Ok(Outcome::Done);
            }
            other => other?,
        };
        let Some(current) = current.filter(|_| !collided) else {
            let mut status = set.status.clone().unwrap_or_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write_status(&set, status).await?;
            return Err(ReconcileError::Other(format!(
                "the name of a revision of DaemonSet {key} is taken"
            )));
        };
        let hash = pod::label(&current.metadata, REVISION_LABEL)
            .unwrap_or_default()
            .to_owned();
        let candidates = children::candidates(&self.pods, &owner);
        let pods: Vec<Arc<Pod>> =
            children::claim::<DaemonSet, Pod>(&self.context.client, &owner, candidates, |meta| {
                selects(spec, meta)
            })
            .await?;
        let nodes = self.nodes.list();
        let plan = plan::plan(&Input {
            set: &set,
            nodes: &nodes,
            pods: &pods,
            hash: &hash,
            now: clock::now(),
        });
        let outcome = self.apply(&set, &owner, &hash, plan).await?;
        let in_use = |r: &ControllerRevision| {
            let hash = pod::label(&r.metadata, REVISION_LABEL);
            r.metadata.uid == current.metadata.uid
                || pods
                    .iter()
                    .any(|p| pod::label(&p.metadata, REVISION_LABEL) == hash)
        };
        history
            .truncate(
                &revisions,
                spec.revision_history_limit.unwrap_or(10),
                in_use,
            )
            .await?;
        Ok(outcome)
    }
}

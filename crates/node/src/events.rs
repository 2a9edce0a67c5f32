//! Events about pods, their containers and the node.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use keelson_client::EventRecorder;

use crate::pod::{self, ContainerKind};

#[derive(Clone)]
pub(crate) struct Events {
    recorder: EventRecorder,
    node_name: String,
}

impl Events {
    pub(crate) fn new(recorder: EventRecorder, node_name: &str) -> Self {
        Self {
            recorder,
            node_name: node_name.to_owned(),
        }
    }

    /// `severity` is `Normal` or `Warning`.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        severity: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder
            .record(reference(pod, None), severity, reason, message);
    }

    pub(crate) fn container(
        &self,
        pod: &Pod,
        kind: ContainerKind,
        container: &str,
        severity: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) {
        let field_path = pod::event_field_path(kind, container);
        self.recorder
            .record(reference(pod, Some(field_path)), severity, reason, message);
    }

    pub(crate) fn node(&self, severity: &'static str, reason: &str, message: impl Into<String>) {
        let regarding = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node_name.clone()),
            // Events about nodes are filed under the node's name, as every reader expects.
            uid: Some(self.node_name.clone()),
            ..ObjectReference::default()
        };
        self.recorder.record(regarding, severity, reason, message);
    }
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

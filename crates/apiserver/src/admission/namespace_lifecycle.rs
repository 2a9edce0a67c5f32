//! NamespaceLifecycle: nothing is made in a namespace that does not exist or is ending, and the
//! system's namespaces stay.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

pub(super) struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

#[async_trait]
impl AdmissionPlugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(
            operation,
            Operation::Create | Operation::Update | Operation::Delete
        )
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if attrs.operation == Operation::Delete {
            if attrs.is("", "namespaces") && IMMORTAL.contains(&attrs.name.as_str()) {
                return Err(attrs.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        let reviews =
            attrs.group == "authorization.k8s.io" && attrs.resource == "localsubjectaccessreviews";
        if attrs.namespace.is_empty() || attrs.is_any("", "namespaces") || reviews {
            return Ok(());
        }
        let name = &attrs.namespace;
        let cached = cluster.objects.get("", "namespaces", "", name);
        let namespace = match cached {
            Some(namespace) => (*namespace).clone(),
            // It may have been made an instant ago.
            None => cluster
                .objects
                .read("", "namespaces", "", name)
                .await?
                .ok_or_else(|| Status::not_found("", "namespaces", name))?,
        };
        let ending = meta::deletion_timestamp(&namespace).is_some()
            || namespace["status"]["phase"] == "Terminating";
        if attrs.operation == Operation::Create && attrs.subresource.is_empty() && ending {
            let status = attrs.forbidden(format!(
                "unable to create new content in namespace {name} because it is being terminated"
            ));
            return Err(status.with_cause(
                "NamespaceTerminating",
                "metadata.namespace",
                format!("namespace {name} is being terminated"),
            ));
        }
        Ok(())
    }
}

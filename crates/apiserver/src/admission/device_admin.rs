//! Devices may be looked at by who administers them, though others hold them, only where the
//! namespace is marked for that.

use async_trait::async_trait;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation, matching};

const GROUP: &str = "resource.k8s.io";
const LABEL: &str = "resource.kubernetes.io/admin-access";

pub(super) struct DeviceAdminAccess;

#[async_trait]
impl AdmissionPlugin for DeviceAdminAccess {
    fn name(&self) -> &'static str {
        "DeviceAdminAccess"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let Some(object) = attrs.object.as_ref().filter(|_| attrs.group == GROUP) else {
            return Ok(());
        };
        let created = attrs.operation == Operation::Create;
        let wanted = match (attrs.resource.as_str(), attrs.subresource.as_str()) {
            ("resourceclaims", "") if created => requested(&object["spec"]),
            ("resourceclaimtemplates", "") if created => requested(&object["spec"]["spec"]),
            ("resourceclaims", "status") => {
                let before = attrs.old_object.as_deref().and_then(granted);
                granted(object).filter(|_| before.is_none())
            }
            _ => None,
        };
        let Some(path) = wanted else {
            return Ok(());
        };
        let namespace = matching::namespace(cluster, &attrs.namespace).await?;
        if namespace["metadata"]["labels"][LABEL] == "true" {
            return Ok(());
        }
        let detail = format!(
            "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
        );
        let errors = vec![FieldError::forbidden(&path, detail)];
        Err(Status::invalid(GROUP, &attrs.kind, &attrs.name, &errors))
    }
}

/// The first request for it. Alternatives of a request cannot ask for it.
fn requested(spec: &Value) -> Option<Path> {
    let requests = spec["devices"]["requests"].as_array()?;
    let at = requests.iter().position(|request| {
        // The first beta version has the fields of `exactly` in the request itself.
        request["exactly"]["adminAccess"] == true || request["adminAccess"] == true
    })?;
    let path = Path::new("spec").child("devices").child("requests");
    Some(path.index(at).child("adminAccess"))
}

/// The first device that was given away like that.
fn granted(claim: &Value) -> Option<Path> {
    let results = claim["status"]["allocation"]["devices"]["results"].as_array()?;
    let at = results
        .iter()
        .position(|result| result["adminAccess"] == true)?;
    let path = Path::new("status").child("allocation").child("devices");
    Some(path.child("results").index(at).child("adminAccess"))
}

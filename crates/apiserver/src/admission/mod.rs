//! Admission: what may change or refuse a write after authorization and before it is stored.
//!
//! One file per plugin and one row in [`PLUGINS`]; the order of the rows is the order of the
//! calls. Mutating runs before validating, validating sees the final object.

mod certificates;
mod defaults;
mod device_admin;
mod expressions;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod optional;
mod pod_resize;
mod pod_security;
mod pod_topology;
mod policy;
mod priority;
mod rbac_escalation;
mod resource_quota;
mod rounds;
mod runtime_class;
mod service_account;
mod storage;
mod webhook;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::authz::{Attributes as Question, Authorizer};
use crate::objects::Objects;
use crate::registry::complete;
use crate::request::{Annotations, UserInfo, Warnings};

/// Definitions of custom resources have webhooks of their own, called the same way.
pub(crate) use policy::status::run as check_policies;
pub(crate) use webhook::post as post_to_webhook;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What plugins are told about a write.
#[derive(Debug, Clone)]
pub struct Attributes {
    pub operation: Operation,
    pub group: String,
    pub version: String,
    pub resource: String,
    /// Empty for the main resource.
    pub subresource: String,
    pub kind: String,
    pub namespace: String,
    /// May be empty on create with generateName.
    pub name: String,
    /// The object to be written; absent for deletes. For connects, the options object.
    pub object: Option<Value>,
    pub old_object: Option<Arc<Value>>,
    pub user: Arc<UserInfo>,
    pub dry_run: bool,
    /// CreateOptions, UpdateOptions, PatchOptions or DeleteOptions.
    pub options: Value,
    pub warnings: Warnings,
    /// What plugins that may be called twice remember between the rounds.
    pub rounds: rounds::Rounds,
    pub annotations: Annotations,
}

impl Attributes {
    /// Whether this is about the main resource `resource` of `group`.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.group == group && self.resource == resource
    }

    /// As [`Attributes::is`], for any subresource too.
    pub fn is_any(&self, group: &str, resource: &str) -> bool {
        self.group == group && self.resource == resource
    }

    pub(crate) fn forbidden(&self, message: impl std::fmt::Display) -> Status {
        let object = self.object.as_ref();
        let named = |name: fn(&Value) -> &str| object.map(name).filter(|name| !name.is_empty());
        let name = match self.name.as_str() {
            "" => named(meta::name)
                .or_else(|| named(meta::generate_name))
                .unwrap_or("Unknown"),
            name => name,
        };
        Status::forbidden(&self.group, &self.resource, name, message.to_string())
    }
}

/// What plugins see of the cluster.
#[derive(Clone)]
pub struct Cluster {
    pub objects: Arc<dyn Objects>,
    pub authorizer: Arc<Authorizer>,
    /// Policies and conditions, ready to run.
    compiled: Arc<policy::Cache>,
}

/// A rule about writes. Plugins hold no lock across calls and read state through [`Cluster`].
#[async_trait]
pub trait AdmissionPlugin: Send + Sync {
    fn name(&self) -> &'static str;

    /// Whether the administrator may turn it on and off.
    fn is_switchable(&self) -> bool {
        true
    }

    /// Whether it is on unless the administrator says otherwise.
    fn is_default(&self) -> bool {
        true
    }

    fn handles(&self, operation: Operation) -> bool;

    /// May change `attrs.object`. Called once per attempt of a write, and once more when a webhook
    /// or a policy changed the object, so that everybody sees it as it became.
    async fn admit(&self, _attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        Ok(())
    }

    /// May only refuse.
    async fn validate(&self, _attrs: &Attributes, _cluster: &Cluster) -> Result<(), Status> {
        Ok(())
    }
}

/// Every plugin in calling order.
pub const PLUGINS: &[&dyn AdmissionPlugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &defaults::TaintNodesByCondition,
    &optional::AlwaysPullImages,
    &pod_security::PodSecurity,
    &priority::Priority,
    &defaults::DefaultTolerationSeconds,
    &optional::ExtendedResourceToleration,
    &defaults::DefaultStorageClass,
    &storage::StorageObjectInUseProtection,
    &storage::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificates::CertificateRequester,
    &certificates::CertificateApproval,
    &certificates::CertificateSigning,
    &certificates::ClusterTrustBundleAttest,
    &certificates::CertificateSubjectRestriction,
    &defaults::DefaultIngressClass,
    &optional::DenyServiceExternalIps,
    &pod_topology::PodTopologyLabels,
    &pod_resize::PodResizeValidator,
    &rbac_escalation::RbacEscalation,
    &device_admin::DeviceAdminAccess,
    &policy::MutatingAdmissionPolicy,
    &webhook::MutatingAdmissionWebhook,
    &policy::ValidatingAdmissionPolicy,
    &webhook::ValidatingAdmissionWebhook,
    // Last, so that nothing is charged that another plugin refuses or changes.
    &resource_quota::ResourceQuota,
];

/// The plugins as the registry calls them.
pub struct AdmissionChain {
    plugins: Vec<&'static dyn AdmissionPlugin>,
    cluster: OnceLock<(Weak<dyn Objects>, Weak<Authorizer>)>,
    compiled: Arc<policy::Cache>,
}

/// A plugin that is to be turned on or off and does not exist, or is not to be turned.
#[derive(Debug, thiserror::Error)]
#[error("there is no admission plugin {name:?}; known are {}", switchable().join(", "))]
pub struct UnknownPlugin {
    name: String,
}

/// Upstream's plugins that refuse and change nothing here: their features are off by default, or
/// another plugin does the same. Named on a command line they are accepted.
const WITHOUT_EFFECT: [&str; 5] = [
    "AlwaysAdmit",
    "JobValidation",
    "NamespaceExists",
    "PodGroupProtection",
    "PodGroupWorkloadExists",
];

fn switchable() -> Vec<&'static str> {
    PLUGINS
        .iter()
        .filter(|plugin| plugin.is_switchable())
        .map(|plugin| plugin.name())
        .collect()
}

impl AdmissionChain {
    /// The plugins that are on by default.
    pub fn new() -> Arc<Self> {
        let plugins = PLUGINS.iter().copied();
        Arc::new(Self {
            plugins: plugins.filter(|plugin| plugin.is_default()).collect(),
            cluster: OnceLock::new(),
            compiled: Arc::default(),
        })
    }

    /// The default plugins, `enabled` besides them, without the `disabled`.
    pub fn with(enabled: &[String], disabled: &[String]) -> Result<Arc<Self>, UnknownPlugin> {
        let known = switchable();
        let unknown = enabled.iter().chain(disabled).find(|name| {
            !known.contains(&name.as_str()) && !WITHOUT_EFFECT.contains(&name.as_str())
        });
        if let Some(name) = unknown {
            return Err(UnknownPlugin { name: name.clone() });
        }
        let has = |list: &[String], name: &str| list.iter().any(|item| item == name);
        let plugins = PLUGINS.iter().copied().filter(|plugin| {
            let name = plugin.name();
            let off = plugin.is_switchable() && has(disabled, name);
            !off && (plugin.is_default() || has(enabled, name))
        });
        Ok(Arc::new(Self {
            plugins: plugins.collect(),
            cluster: OnceLock::new(),
            compiled: Arc::default(),
        }))
    }

    /// Gives plugins their view of the cluster; until then the chain refuses every write, so that
    /// nothing slips past it while the server is composed. The references are weak because the
    /// registry owns the chain.
    pub fn bind(&self, objects: Weak<dyn Objects>, authorizer: Weak<Authorizer>) {
        let _ = self.cluster.set((objects, authorizer));
    }

    fn cluster(&self) -> Result<Cluster, Status> {
        self.cluster
            .get()
            .and_then(|(objects, authorizer)| {
                Some(Cluster {
                    objects: objects.upgrade()?,
                    authorizer: authorizer.upgrade()?,
                    compiled: Arc::clone(&self.compiled),
                })
            })
            .ok_or_else(|| Status::service_unavailable("the server is not ready to admit requests"))
    }

    /// Whether the user may also create what an update of it would bring into being.
    pub(crate) async fn authorize_create(
        &self,
        user: &UserInfo,
        (group, version, resource): (&str, &str, &str),
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let cluster = self.cluster()?;
        cluster
            .authorizer
            .require(&Question {
                version,
                ..Question::resource(user, "create", group, resource, namespace, name)
            })
            .await
    }

    pub async fn admit(&self, attrs: &mut Attributes) -> Result<(), Status> {
        let cluster = self.cluster()?;
        self.round(attrs, &cluster).await?;
        if attrs.rounds.wanted {
            attrs.rounds.again = true;
            self.round(attrs, &cluster).await?;
        }
        Ok(())
    }

    async fn round(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        let operation = attrs.operation;
        for plugin in self.plugins.iter().filter(|p| p.handles(operation)) {
            plugin.admit(attrs, cluster).await?;
        }
        Ok(())
    }

    pub async fn validate(&self, attrs: &Attributes) -> Result<(), Status> {
        let cluster = self.cluster()?;
        for plugin in self.plugins.iter().filter(|p| p.handles(attrs.operation)) {
            plugin.validate(attrs, &cluster).await?;
        }
        Ok(())
    }
}

/// Puts what a webhook or a policy made of the object, given in `form`, in its place: pruned and
/// completed like a client's own words.
fn replace_object(
    attrs: &mut Attributes,
    cluster: &Cluster,
    form: &matching::Form,
    object: Value,
) -> Result<(), Status> {
    let own = matching::Form::requested(attrs);
    let main = |form: &matching::Form| {
        cluster
            .objects
            .resource(&form.group, &form.version, &form.resource)
            .filter(|entry| entry.kind == form.kind && entry.version == form.kind_version)
    };
    let object = match main(form) {
        // Clients are told of their own mistakes by what they sent; these were not theirs.
        Some(entry) => complete(&entry, object, &attrs.warnings).map_err(|status| {
            let reason = status.message.split_once(" cannot be handled as a ");
            let reason = reason.and_then(|(_, rest)| rest.split_once(": "));
            Status::internal(reason.map_or(status.message.as_str(), |(_, reason)| reason))
        })?,
        // The options of a connection, a Binding, an Eviction: of a type of its own.
        None => keelson_api::kind_type(&form.kind_group, &form.kind_version, &form.kind)
            .and_then(keelson_api::schema)
            .map_or(Ok(object.clone()), |schema| {
                keelson_machinery::decode::normalize(object, schema).map(|d| d.object)
            })
            .map_err(|error| Status::internal(error.to_string()))?,
    };
    attrs.object = Some(if own == *form {
        object
    } else {
        matching::restored(attrs, cluster, object, form)?
    });
    Ok(())
}

/// An amount as the API writes it: text, or a bare number.
pub(crate) fn quantity_of(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// What a pod asks for in all (`requests` or `limits`): the sum of its containers and its
/// restartable init containers, or what its init containers need while they run, whichever is
/// more; pod-level amounts win; overhead is on top.
pub(crate) fn pod_amounts(pod: &Value, key: &str) -> BTreeMap<String, Quantity> {
    let amounts = |value: &Value| -> BTreeMap<String, Quantity> {
        value
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(n, q)| Some((n.clone(), quantity_of(q)?)))
            .collect()
    };
    let add = |into: &mut BTreeMap<String, Quantity>, more: &BTreeMap<String, Quantity>| {
        for (name, amount) in more {
            let sum = into.remove(name).map_or(*amount, |own| own + *amount);
            into.insert(name.clone(), sum);
        }
    };
    let raise = |into: &mut BTreeMap<String, Quantity>, to: BTreeMap<String, Quantity>| {
        for (name, amount) in to {
            if into.get(&name).is_none_or(|own| *own < amount) {
                into.insert(name, amount);
            }
        }
    };
    let spec = &pod["spec"];
    let mut total = BTreeMap::new();
    for container in spec["containers"].as_array().into_iter().flatten() {
        add(&mut total, &amounts(&container["resources"][key]));
    }
    let (mut sidecars, mut starting) = (BTreeMap::new(), BTreeMap::new());
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let own = amounts(&container["resources"][key]);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, sidecars.clone());
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            raise(&mut starting, together);
        }
    }
    raise(&mut total, starting);
    total.extend(amounts(&spec["resources"][key]));
    let overhead = amounts(&spec["overhead"]);
    if key == "requests" {
        add(&mut total, &overhead);
    } else {
        let bounded: BTreeMap<_, _> = overhead
            .into_iter()
            .filter(|(name, _)| total.contains_key(name))
            .collect();
        add(&mut total, &bounded);
    }
    total
}

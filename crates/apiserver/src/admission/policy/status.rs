//! Type checking of ValidatingAdmissionPolicies: what their expressions would mean for the types
//! that they match, written into their status. It changes nothing about how they work.

use std::collections::BTreeSet;
use std::sync::Arc;

use keelson_cel::{DeclType, Version};
use keelson_kinds::expressions::admission::{Compiler, Declared, Typed};
use keelson_kinds::expressions::schema;
use keelson_machinery::meta;
use serde_json::{Value, json};

use crate::admission::matching::GROUP;
use crate::objects::Objects;
use crate::server::Server;

const RESOURCE: &str = "validatingadmissionpolicies";
/// More types than this are not checked for one rule.
const MAX_TYPES: usize = 10;

/// Follows the policies until the server stops.
pub(crate) async fn run(server: Arc<Server>) {
    let mut changes = server.objects.changes(GROUP, RESOURCE);
    changes.mark_changed();
    loop {
        tokio::select! {
            () = server.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        for policy in server.objects.list(GROUP, RESOURCE, "") {
            reconcile(&server.objects, &policy).await;
        }
    }
}

async fn reconcile(objects: &Arc<dyn Objects>, policy: &Arc<Value>) {
    let observed = policy["status"]["observedGeneration"].as_i64().unwrap_or(0);
    let generation = meta::generation(policy);
    if generation <= observed || meta::deletion_timestamp(policy).is_some() {
        return;
    }
    let mut type_checking = json!({});
    let warnings = check(&**objects, policy);
    if !warnings.is_empty() {
        type_checking["expressionWarnings"] = Value::Array(warnings);
    }
    let mut updated = Value::clone(policy);
    updated["status"]["observedGeneration"] = json!(generation);
    updated["status"]["typeChecking"] = type_checking;
    // A conflict means that the policy changed, and that change wakes this again.
    if let Err(status) = objects.update(GROUP, RESOURCE, "", updated).await
        && !status.is_conflict()
        && !status.is_not_found()
    {
        tracing::warn!(policy = meta::name(policy), %status, "updating the status of a ValidatingAdmissionPolicy");
    }
}

/// `expressionWarnings`.
fn check(objects: &dyn Objects, policy: &Value) -> Vec<Value> {
    let kinds = kinds(objects, policy);
    let params = params(objects, policy);
    let mut out = Vec::new();
    let validations = policy["spec"]["validations"].as_array();
    for (index, validation) in validations.into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = validation[field].as_str().unwrap_or_default();
            if source.is_empty() {
                continue;
            }
            let warnings: Vec<String> = kinds
                .iter()
                .filter_map(|kind| {
                    let typed = Typed {
                        object: kind.declared(objects),
                        params: params.clone(),
                    };
                    let issues = issues(policy, typed, source)?;
                    Some(format!("{}: {issues}\n", kind.name()))
                })
                .collect();
            if !warnings.is_empty() {
                out.push(json!({
                    "fieldRef": format!("spec.validations[{index}].{field}"),
                    "warning": warnings.join("\n"),
                }));
            }
        }
    }
    out
}

fn issues(policy: &Value, typed: Typed, source: &str) -> Option<String> {
    let declared = Declared {
        params: policy["spec"]["paramKind"].is_object(),
        authorizer: true,
        mutation: false,
    };
    let mut compiler = Compiler::checking(typed);
    let variables = policy["spec"]["variables"].as_array();
    for variable in variables.into_iter().flatten() {
        let text = |key: &str| variable[key].as_str().unwrap_or_default();
        // What is wrong with a variable shows where it is used.
        let _ = compiler.variable(
            text("name"),
            text("expression"),
            declared,
            Version::STORED_EXPRESSIONS,
        );
    }
    compiler.issues(source, declared)
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

impl Kind {
    fn name(&self) -> String {
        format!("{}/{}, Kind={}", self.group, self.version, self.kind)
    }

    fn declared(&self, objects: &dyn Objects) -> Option<DeclType> {
        let entry = objects.resource_of_kind(&self.group, &self.version, &self.kind)?;
        schema::declared(&entry.schema, &self.kind)
    }
}

/// The kinds that the rules name without wildcards, in order.
fn kinds(objects: &dyn Objects, policy: &Value) -> BTreeSet<Kind> {
    let mut out = BTreeSet::new();
    let rules = policy["spec"]["matchConstraints"]["resourceRules"].as_array();
    for rule in rules.into_iter().flatten() {
        let texts = |key: &str| {
            let list = rule[key].as_array().into_iter().flatten();
            let mut texts: Vec<&str> = list.filter_map(Value::as_str).collect();
            texts.sort_unstable();
            texts
        };
        let (groups, versions) = (texts("apiGroups"), texts("apiVersions"));
        if groups
            .iter()
            .chain(&versions)
            .any(|text| text.contains('*'))
        {
            continue;
        }
        let mut resources = texts("resources");
        resources.retain(|resource| !resource.contains(['*', '/']));
        let mut found = 0;
        for group in &groups {
            for version in &versions {
                for resource in &resources {
                    let Some(entry) = objects.resource(group, version, resource) else {
                        continue;
                    };
                    out.insert(Kind {
                        group: entry.group.clone(),
                        version: entry.version.clone(),
                        kind: entry.kind.clone(),
                    });
                    found += 1;
                    if found == MAX_TYPES {
                        return out;
                    }
                }
            }
        }
    }
    out
}

fn params(objects: &dyn Objects, policy: &Value) -> Option<DeclType> {
    let kind = &policy["spec"]["paramKind"];
    let (group, version) = meta::split_api_version(kind["apiVersion"].as_str()?);
    let kind = Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind["kind"].as_str()?.to_owned(),
    };
    kind.declared(objects)
}

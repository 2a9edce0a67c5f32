//! Policies and conditions with their expressions compiled, kept as long as they do not change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use keelson_cel::{Type, Version};
use keelson_kinds::expressions::admission::{
    APPLY_CONFIGURATION, AUDIT_ANNOTATION, CONDITION, Compiler, Declared, JSON_PATCH, MESSAGE,
};
use keelson_machinery::meta;
use serde_json::Value;

use crate::admission::expressions::{Compiled, Variables};

/// More kept policies than this are forgotten and compiled anew.
const MAX_KEPT: usize = 4096;

/// A policy of either kind; the lists that its kind does not have are empty.
#[derive(Debug, Default)]
pub(super) struct Policy {
    pub variables: Variables,
    pub conditions: Vec<Compiled>,
    pub validations: Vec<Validation>,
    pub audit_annotations: Vec<AuditAnnotation>,
    pub mutations: Vec<Mutation>,
}

#[derive(Debug)]
pub(super) struct Validation {
    pub source: String,
    pub expression: Compiled,
    /// Empty when there is none.
    pub message: String,
    pub message_expression: Option<Compiled>,
    /// Empty when there is none.
    pub reason: String,
}

#[derive(Debug)]
pub(super) struct AuditAnnotation {
    pub key: String,
    pub source: String,
    pub value: Compiled,
}

#[derive(Debug)]
pub(super) enum Mutation {
    ApplyConfiguration(Compiled),
    JsonPatch(Compiled),
}

impl Policy {
    fn compile(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let list = |key: &str| spec[key].as_array().into_iter().flatten();
        let mut compiler = Compiler::composing();
        let declared = Declared {
            params: spec["paramKind"].is_object(),
            authorizer: true,
            mutation: false,
        };
        let version = Version::STORED_EXPRESSIONS;
        let mut variables = Variables::new();
        for variable in list("variables") {
            let (name, source) = (text(&variable["name"]), text(&variable["expression"]));
            let compiled = compiler.variable(name, source, declared, version);
            variables.insert(name.to_owned(), compiled);
        }
        let compile = |source: &Value, declared: Declared, wanted: &[Type]| {
            compiler.compile(text(source), declared, wanted, version)
        };
        let condition = |c: &Value| compile(&c["expression"], declared, &*CONDITION);
        let message_declared = Declared {
            authorizer: false,
            ..declared
        };
        let validation = |v: &Value| Validation {
            source: text(&v["expression"]).to_owned(),
            expression: condition(v),
            message: text(&v["message"]).to_owned(),
            message_expression: Some(&v["messageExpression"])
                .filter(|source| !text(source).is_empty())
                .map(|source| compile(source, message_declared, &*MESSAGE)),
            reason: text(&v["reason"]).to_owned(),
        };
        let audit_annotation = |a: &Value| AuditAnnotation {
            key: text(&a["key"]).to_owned(),
            source: text(&a["valueExpression"]).to_owned(),
            value: compile(&a["valueExpression"], declared, &*AUDIT_ANNOTATION),
        };
        let mutation_declared = Declared {
            mutation: true,
            ..declared
        };
        let mutation = |m: &Value| {
            if m["patchType"] == "JSONPatch" {
                let source = &m["jsonPatch"]["expression"];
                Mutation::JsonPatch(compile(source, mutation_declared, &*JSON_PATCH))
            } else {
                let source = &m["applyConfiguration"]["expression"];
                let compiled = compile(source, mutation_declared, &*APPLY_CONFIGURATION);
                Mutation::ApplyConfiguration(compiled)
            }
        };
        Self {
            conditions: list("matchConditions").map(condition).collect(),
            validations: list("validations").map(validation).collect(),
            audit_annotations: list("auditAnnotations").map(audit_annotation).collect(),
            mutations: list("mutations").map(mutation).collect(),
            variables,
        }
    }
}

/// The match conditions of a webhook.
fn compile_conditions(webhook: &Value) -> Vec<Compiled> {
    let declared = Declared {
        authorizer: true,
        ..Declared::default()
    };
    let compiler = Compiler::stateless();
    let conditions = webhook["matchConditions"].as_array().into_iter().flatten();
    conditions
        .map(|condition| {
            let source = text(&condition["expression"]);
            compiler.compile(source, declared, &*CONDITION, Version::STORED_EXPRESSIONS)
        })
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

type Kept<T> = Mutex<HashMap<String, (i64, Arc<T>)>>;

/// What was compiled, by the identity and the generation of the object that holds it.
#[derive(Default)]
pub(in crate::admission) struct Cache {
    policies: Kept<Policy>,
    conditions: Kept<Vec<Compiled>>,
}

impl Cache {
    pub(super) fn policy(&self, policy: &Value) -> Arc<Policy> {
        let key = meta::uid(policy).to_owned();
        kept(&self.policies, key, meta::generation(policy), || {
            Policy::compile(policy)
        })
    }

    /// The conditions of the webhook at `index` in a configuration.
    pub(in crate::admission) fn conditions(
        &self,
        configuration: &Value,
        index: usize,
    ) -> Arc<Vec<Compiled>> {
        let key = format!("{}/{index}", meta::uid(configuration));
        let generation = meta::generation(configuration);
        kept(&self.conditions, key, generation, || {
            compile_conditions(&configuration["webhooks"][index])
        })
    }
}

fn kept<T>(all: &Kept<T>, key: String, generation: i64, make: impl FnOnce() -> T) -> Arc<T> {
    let lock = || all.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, found)) = lock().get(&key)
        && *of == generation
    {
        return Arc::clone(found);
    }
    // Compiled without the lock: two requests may both do it, none waits for the other.
    let made = Arc::new(make());
    let mut all = lock();
    if all.len() >= MAX_KEPT {
        all.clear();
    }
    all.insert(key, (generation, Arc::clone(&made)));
    made
}

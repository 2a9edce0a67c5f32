//! The corpus files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{Error, NAMESPACE};

/// One file: a collection, objects to start from, and cases.
#[derive(Debug)]
pub struct Corpus {
    /// `group/kind`, the file's path.
    pub name: String,
    pub file: PathBuf,
    pub(super) collection: String,
    pub(super) setup: Vec<Setup>,
    /// How long a server that notices things late is given after the setup.
    pub(super) wait_ms: u64,
    /// What the webhooks of the corpus answer, by path.
    pub(super) answers: BTreeMap<String, Value>,
    pub(super) bases: BTreeMap<String, Value>,
    pub(super) managed_fields: bool,
    /// The bases first, then in the order of the groups.
    pub cases: Vec<Case>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setup {
    pub(super) path: String,
    /// Its status is written through the subresource.
    pub(super) object: Value,
}

/// Whom a request is made as; who makes it impersonates them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    pub(super) user: String,
    #[serde(default)]
    pub(super) groups: Vec<String>,
}

#[derive(Debug)]
pub struct Case {
    pub name: String,
    /// The base its objects are edits of.
    pub(super) base: String,
    pub(super) root: String,
    /// Made before the steps.
    pub(super) before: Vec<Setup>,
    pub(super) wait_ms: u64,
    pub(super) steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) verb: String,
    pub(super) subresource: String,
    pub(super) body: Value,
    pub(super) query: String,
    pub(super) path: String,
    pub(super) accept: String,
    pub(super) content_type: String,
    pub(super) user: Option<User>,
    /// How long a server that notices things late is given afterwards.
    pub(super) wait_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    collection: String,
    #[serde(default)]
    setup: Vec<Setup>,
    #[serde(default)]
    wait: u64,
    #[serde(default)]
    answers: BTreeMap<String, Value>,
    bases: BTreeMap<String, Value>,
    #[serde(default)]
    managed_fields: bool,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(default)]
    verb: String,
    #[serde(default)]
    root: String,
    #[serde(default = "base")]
    from: String,
    #[serde(default)]
    query: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    accept: String,
    #[serde(default, rename = "as")]
    user: Option<User>,
    #[serde(default)]
    before: Vec<Setup>,
    #[serde(default)]
    wait: u64,
    cases: BTreeMap<String, Value>,
}

fn base() -> String {
    "base".to_owned()
}

impl Corpus {
    pub(super) fn read(directory: &Path, file: &Path) -> Result<Self, Error> {
        let name = file.strip_prefix(directory).unwrap_or(file);
        let name = name.with_extension("").display().to_string();
        let failed = |reason: String| Error::Corpus {
            path: file.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(file).map_err(|e| failed(e.to_string()))?;
        let text = text.replace("$ns", NAMESPACE);
        let parsed: File = serde_saphyr::from_str(&text).map_err(|e| failed(e.to_string()))?;
        let mut cases: Vec<Case> = parsed.bases.keys().map(|name| alone(name)).collect();
        for group in parsed.groups {
            for (name, body) in &group.cases {
                let case = group.case(name, body).map_err(failed)?;
                if !parsed.bases.contains_key(&case.base) {
                    return Err(failed(format!("{name}: no base {}", case.base)));
                }
                if cases.iter().any(|other| other.name == case.name) {
                    return Err(failed(format!("two cases are named {name:?}")));
                }
                cases.push(case);
            }
        }
        Ok(Self {
            name,
            file: file.to_owned(),
            collection: parsed.collection,
            setup: parsed.setup,
            wait_ms: parsed.wait,
            answers: parsed.answers,
            bases: parsed.bases,
            managed_fields: parsed.managed_fields,
            cases,
        })
    }
}

/// The case that creates a base as it is.
fn alone(base: &str) -> Case {
    let step = Step::new("create", Value::Null);
    Case {
        name: format!("bases/{base}"),
        base: base.to_owned(),
        root: String::new(),
        before: Vec::new(),
        wait_ms: 0,
        steps: vec![step],
    }
}

impl Group {
    fn case(&self, name: &str, body: &Value) -> Result<Case, String> {
        let mut base = self.from.clone();
        let mut steps = Vec::new();
        if self.verb.is_empty() {
            let list = body
                .as_array()
                .map_or(std::slice::from_ref(body), Vec::as_slice);
            for step in list {
                steps.push(
                    self.step(step, &mut base)
                        .map_err(|e| format!("{name}: {e}"))?,
                );
            }
        } else {
            steps.push(Step {
                query: self.query.clone(),
                path: self.path.clone(),
                accept: self.accept.clone(),
                user: self.user.clone(),
                ..Step::new(&self.verb, body.clone())
            });
        }
        let creates = steps.first().is_some_and(|s| s.verb == "create");
        if !creates {
            steps.insert(0, Step::new("create", Value::Null));
        }
        Ok(Case {
            name: name.to_owned(),
            base,
            root: self.root.clone(),
            before: self.before.clone(),
            wait_ms: self.wait,
            steps,
        })
    }

    fn step(&self, step: &Value, base: &mut String) -> Result<Step, String> {
        let map = step.as_object().ok_or("a step is a map")?;
        let mut out = Step::new("", Value::Null);
        (out.query, out.path, out.accept) =
            (self.query.clone(), self.path.clone(), self.accept.clone());
        out.user = self.user.clone();
        for (key, value) in map {
            let text = || {
                value
                    .as_str()
                    .map(str::to_owned)
                    .ok_or(format!("{key} is a text"))
            };
            match key.as_str() {
                "query" => out.query = text()?,
                "path" => out.path = text()?,
                "accept" => out.accept = text()?,
                "type" => out.content_type = text()?,
                "from" => *base = text()?,
                "as" => {
                    out.user = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?
                }
                "wait" => out.wait_ms = value.as_u64().ok_or("wait is a number")?,
                verb if out.verb.is_empty() => {
                    let named = Step::new(verb, value.clone());
                    (out.verb, out.subresource, out.body) =
                        (named.verb, named.subresource, named.body);
                }
                verb => return Err(format!("{} and {verb} in one step", out.verb)),
            }
        }
        const VERBS: &[&str] = &[
            "create",
            "update",
            "merge",
            "strategic",
            "json",
            "apply",
            "post",
            "delete",
            "deletecollection",
            "get",
            "list",
        ];
        if !VERBS.contains(&out.verb.as_str()) {
            return Err(format!("no verb {:?}", out.verb));
        }
        Ok(out)
    }
}

impl Step {
    fn new(verb: &str, body: Value) -> Self {
        let (verb, subresource) = verb.split_once('/').unwrap_or((verb, ""));
        Self {
            verb: verb.to_owned(),
            subresource: subresource.to_owned(),
            body,
            query: String::new(),
            path: String::new(),
            accept: String::new(),
            content_type: String::new(),
            user: None,
            wait_ms: 0,
        }
    }
}

//! The paths of a group version and of its resources.

use serde_json::{Map, Value, json};

use super::Dialect;
use super::operation::{
    ANY, Body, CUSTOM, CUSTOM_PATCHES, OBJECTS, Operation, PATCHES, STREAMS, path,
};
use super::parameters::{self, NAMESPACE, PRETTY, PROXY_PATH, Parameter, RESOURCE_VERSION};
use super::render::Definitions;
use crate::discovery::{Group, Version};
use crate::registry::{ResourceEntry, SubresourceEntry};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
const RESOURCES: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";

/// Adds every path of the version to `paths`, and the types they need to `definitions`.
pub(super) fn add(
    dialect: Dialect,
    group: &Group,
    version: &Version,
    paths: &mut Map<String, Value>,
    definitions: &mut Definitions,
) {
    let base = if group.name.is_empty() {
        format!("/api/{}", version.version)
    } else {
        format!("/apis/{}/{}", group.name, version.version)
    };
    if version.resources.iter().any(|entry| !entry.custom) {
        let names = Names::of(&group.name, &version.version);
        let id = format!("get{}APIResources", names.id);
        let found = information(
            &names.tag,
            id,
            "get available resources",
            RESOURCES,
            definitions,
        );
        paths.insert(format!("{base}/"), path(dialect, vec![found]));
    }
    for entry in &version.resources {
        let (kind, list) = definitions.resource(entry);
        let writer = Writer {
            dialect,
            base: &base,
            entry,
            names: Names::of(&group.name, &version.version),
            kind: definitions.reference(&kind),
            list: definitions.reference(&list),
        };
        writer.resource(paths, definitions);
    }
}

/// A document about the server itself.
pub(super) fn information<'a>(
    tag: &str,
    id: String,
    description: &str,
    result: &str,
    definitions: &mut Definitions,
) -> Operation<'a> {
    Operation {
        method: "get",
        action: "",
        id,
        tag: tag.to_owned(),
        description: description.to_owned(),
        kind: Value::Null,
        parameters: Vec::new(),
        body: Body::None,
        result: definitions.named(result),
        codes: &[200],
        consumes: OBJECTS,
        produces: OBJECTS,
    }
}

/// What a group version is called in operations: `AppsV1`, `apps_v1`.
pub(super) struct Names {
    pub(super) id: String,
    pub(super) tag: String,
}

impl Names {
    fn of(group: &str, version: &str) -> Self {
        let group = camel(group);
        Self {
            tag: format!("{}_{version}", uncapital(&group)),
            id: format!("{group}{}", capital(version)),
        }
    }
}

/// `FlowcontrolApiserver` for flowcontrol.apiserver.k8s.io, `Core` for the core group.
pub(super) fn camel(group: &str) -> String {
    let group = match group.strip_suffix(".k8s.io").unwrap_or(group) {
        "" => "core",
        group => group,
    };
    let words = group.split(|c: char| !c.is_ascii_alphanumeric());
    words.map(capital).collect()
}

pub(super) fn uncapital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

struct Writer<'a> {
    dialect: Dialect,
    base: &'a str,
    entry: &'a ResourceEntry,
    names: Names,
    kind: Value,
    list: Value,
}

impl<'a> Writer<'a> {
    fn resource(&self, paths: &mut Map<String, Value>, definitions: &mut Definitions) {
        let (base, plural) = (self.base, &self.entry.resource);
        let scope = if self.entry.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let collection = format!("{scope}/{plural}");
        let mut add = |at: String, operations: Vec<Operation<'_>>| {
            if !operations.is_empty() {
                paths.insert(format!("{base}{at}"), path(self.dialect, operations));
            }
        };
        let watched = self.entry.has_verb("watch") && !self.entry.custom;
        add(collection.clone(), self.collection(definitions));
        if self.entry.namespaced && self.entry.has_verb("list") {
            add(format!("/{plural}"), vec![self.list(true)]);
            if watched {
                let all = self.watch("watchlist", true, false, definitions);
                add(format!("/watch/{plural}"), vec![all]);
            }
        }
        add(format!("{collection}/{{name}}"), self.item(definitions));
        if watched {
            let list = self.watch("watchlist", false, false, definitions);
            add(format!("/watch{collection}"), vec![list]);
            if self.entry.has_verb("get") {
                let one = self.watch("watch", false, true, definitions);
                add(format!("/watch{collection}/{{name}}"), vec![one]);
            }
        }
        for sub in &self.entry.subresources {
            let at = format!("{collection}/{{name}}/{}", sub.name);
            if !sub.kind.ends_with("Options") {
                add(at, self.subresource(sub, definitions));
                continue;
            }
            add(at.clone(), self.connect(sub, false));
            if is_proxy(sub) {
                add(format!("{at}/{{path}}"), self.connect(sub, true));
            }
        }
    }

    fn collection(&self, definitions: &mut Definitions) -> Vec<Operation<'a>> {
        let kind = &self.entry.kind;
        let mut out = Vec::new();
        if self.entry.has_verb("list") {
            out.push(self.list(false));
        }
        if self.entry.has_verb("create") {
            let mut create = self.operation("post", "post", "create", "", None);
            create.description = format!("create{}{kind}", article(kind));
            create.parameters.extend(known(parameters::WRITE));
            create.body = Body::Object(self.kind.clone());
            create.codes = &[200, 201, 202];
            out.push(create);
        }
        if self.entry.has_verb("deletecollection") {
            let mut delete = self.operation("delete", "deletecollection", "delete", "", None);
            delete.id = self.id("delete", "Collection", false, "");
            delete.description = format!("delete collection of {kind}");
            delete.parameters.extend(known(match self.entry.custom {
                true => parameters::LIST,
                false => parameters::DELETE_COLLECTION,
            }));
            if !self.entry.custom {
                delete.body = Body::DeleteOptions(definitions.named(DELETE_OPTIONS));
            }
            delete.result = definitions.named(STATUS);
            out.push(delete);
        }
        out
    }

    fn list(&self, all_namespaces: bool) -> Operation<'a> {
        let mut list = self.operation("get", "list", "list", "", None);
        let watched = self.entry.has_verb("watch") && !self.entry.custom;
        let what = if watched { "list or watch" } else { "list" };
        list.description = format!("{what} objects of kind {}", self.entry.kind);
        list.parameters.extend(known(parameters::LIST));
        if all_namespaces {
            list.id = self.id("list", "", true, "ForAllNamespaces");
            list.parameters
                .retain(|p| *p != Parameter::Known(NAMESPACE));
        }
        list.result = self.list.clone();
        if !self.entry.custom {
            list.produces = STREAMS;
        }
        list
    }

    fn item(&self, definitions: &mut Definitions) -> Vec<Operation<'a>> {
        let mut out = Vec::new();
        let kind = &self.entry.kind;
        for verb in ["get", "update", "patch"] {
            if self.entry.has_verb(verb) {
                out.push(self.object(verb, None, self.kind.clone(), definitions));
            }
        }
        if self.entry.has_verb("delete") {
            let mut delete = self.operation("delete", "delete", "delete", "", Some(kind));
            delete.description = format!("delete{}{kind}", article(kind));
            delete.parameters.extend(known(parameters::DELETE));
            delete.body = Body::DeleteOptions(definitions.named(DELETE_OPTIONS));
            delete.codes = &[200, 202];
            // Upstream's document has a Status for namespaces, which answer with themselves.
            if !self.entry.returns_deleted() || kind == "Namespace" {
                delete.result = definitions.named(STATUS);
            }
            out.push(delete);
        }
        out
    }

    /// What reads and writes one object: itself, or a subresource of it.
    fn object(
        &self,
        verb: &str,
        sub: Option<&'a SubresourceEntry>,
        schema: Value,
        definitions: &mut Definitions,
    ) -> Operation<'a> {
        let (method, word, words) = match verb {
            "update" => ("put", "replace", "replace"),
            "patch" => ("patch", "patch", "partially update"),
            _ => ("get", "read", "read"),
        };
        let name = sub.map_or("", |sub| sub.name.as_str());
        let kind = sub.map_or(&self.entry.kind, |sub| &sub.kind);
        let mut out = self.operation(method, method, word, name, Some(kind));
        let of = sub.map_or(String::new(), |sub| format!("{} of ", sub.name));
        out.description = format!("{words} {of}the specified {}", self.entry.kind);
        out.result = schema.clone();
        match verb {
            "update" => {
                out.parameters.extend(known(parameters::WRITE));
                out.body = Body::Object(schema);
                out.codes = &[200, 201];
            }
            "patch" => {
                out.parameters.extend(known(parameters::PATCH));
                out.body = Body::Patch(definitions.named(PATCH));
                out.consumes = PATCHES;
                out.codes = &[200, 201];
                if self.entry.custom {
                    out.consumes = CUSTOM_PATCHES;
                    out.codes = &[200];
                }
            }
            _ if self.entry.custom => out.parameters.push(Parameter::Known(RESOURCE_VERSION)),
            _ => {}
        }
        out
    }

    fn subresource(
        &self,
        sub: &'a SubresourceEntry,
        definitions: &mut Definitions,
    ) -> Vec<Operation<'a>> {
        let schema = match keelson_api::kind_type(&sub.group, &sub.version, &sub.kind) {
            Some(name) => definitions.named(name),
            None => self.kind.clone(),
        };
        let kind = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
        let mut out = Vec::new();
        for verb in ["get", "update", "patch", "create"] {
            if !sub.verbs.iter().any(|v| v == verb) {
                continue;
            }
            let mut operation = if verb == "create" {
                let of = &self.entry.kind;
                let mut create =
                    self.operation("post", "post", "create", &sub.name, Some(&sub.kind));
                create.description = format!("create {} of{}{of}", sub.name, article(of));
                create.parameters.extend(known(parameters::WRITE));
                create.body = Body::Object(schema.clone());
                create.result = schema.clone();
                create.codes = &[200, 201, 202];
                create
            } else {
                self.object(verb, Some(sub), schema.clone(), definitions)
            };
            operation.kind = kind.clone();
            let text = parameters::of_subresource(&sub.kind, &sub.name);
            if !text.is_empty() {
                operation.parameters.extend(known(text));
                operation.result = json!({"type": "string"});
                operation.produces = LOG;
            }
            out.push(operation);
        }
        out
    }

    /// What is passed on to a node, a pod or a service.
    fn connect(&self, sub: &'a SubresourceEntry, with_path: bool) -> Vec<Operation<'a>> {
        let all = ["get", "put", "post", "delete", "options", "head", "patch"];
        let methods = all
            .into_iter()
            .filter(|m| is_proxy(sub) || matches!(*m, "get" | "post"));
        let mut out = Vec::new();
        for method in methods {
            let mut operation = self.operation(method, "connect", "", "", Some(&sub.kind));
            let suffix = if with_path { "WithPath" } else { "" };
            let last = format!("{}{suffix}", capital(&sub.name));
            operation.id = self.id("connect", &capital(method), false, &last);
            operation.description = format!(
                "connect {} requests to {} of {}",
                method.to_uppercase(),
                sub.name,
                self.entry.kind
            );
            operation.kind = json!({"group": sub.group, "version": sub.version, "kind": sub.kind});
            operation
                .parameters
                .retain(|p| *p != Parameter::Known(PRETTY));
            let own = parameters::of_subresource(&sub.kind, &sub.name);
            operation.parameters.extend(known(own));
            if with_path {
                operation.parameters.push(Parameter::Known(PROXY_PATH));
            }
            operation.result = json!({"type": "string"});
            operation.produces = ANY;
            out.push(operation);
        }
        out
    }

    /// The paths of watches that were there before lists had `watch=true`.
    fn watch(
        &self,
        action: &'static str,
        all_namespaces: bool,
        named: bool,
        definitions: &mut Definitions,
    ) -> Operation<'a> {
        let kind = &self.entry.kind;
        let mut watch = self.operation("get", action, "watch", "", named.then_some(kind));
        let suffix = match (named, all_namespaces) {
            (true, _) => "",
            (false, true) => "ListForAllNamespaces",
            (false, false) => "List",
        };
        watch.id = self.id("watch", "", all_namespaces, suffix);
        if all_namespaces {
            watch
                .parameters
                .retain(|p| *p != Parameter::Known(NAMESPACE));
        }
        let deprecated = "deprecated: use the 'watch' parameter with a list operation instead";
        watch.description = if named {
            format!(
                "watch changes to an object of kind {kind}. {deprecated}, filtered to a single item with the 'fieldSelector' parameter."
            )
        } else {
            format!("watch individual changes to a list of {kind}. {deprecated}.")
        };
        watch.parameters.extend(known(parameters::LIST));
        watch.result = definitions.named(WATCH_EVENT);
        watch.produces = STREAMS;
        watch
    }

    /// What operations of this resource have in common; `name` is the kind that the name in the
    /// path is one of.
    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        word: &str,
        sub: &str,
        name: Option<&'a String>,
    ) -> Operation<'a> {
        let entry = self.entry;
        let mut own = vec![Parameter::Known(PRETTY)];
        own.extend(name.map(|kind| Parameter::Name(kind)));
        own.extend(entry.namespaced.then_some(Parameter::Known(NAMESPACE)));
        let (consumes, produces) = if entry.custom {
            (CUSTOM, CUSTOM)
        } else {
            (ANY, OBJECTS)
        };
        Operation {
            method,
            action,
            id: self.id(word, "", false, &capital(sub)),
            tag: self.names.tag.clone(),
            description: String::new(),
            kind: json!({"group": entry.group, "version": entry.version, "kind": entry.kind}),
            parameters: own,
            body: Body::None,
            result: self.kind.clone(),
            codes: &[200],
            consumes,
            produces,
        }
    }

    fn id(&self, word: &str, middle: &str, all_namespaces: bool, last: &str) -> String {
        let scope = if self.entry.namespaced && !all_namespaces {
            "Namespaced"
        } else {
            ""
        };
        let (version, kind) = (&self.names.id, &self.entry.kind);
        format!("{word}{version}{middle}{scope}{kind}{last}")
    }
}

const LOG: &[&str] = &[
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

fn is_proxy(sub: &SubresourceEntry) -> bool {
    sub.verbs.iter().any(|verb| verb == "update")
}

fn known<'k>(keys: &'static [&'static str]) -> impl Iterator<Item = Parameter<'k>> {
    keys.iter().map(|key| Parameter::Known(key))
}

/// ` a `, ` an `, or nothing for what is many.
fn article(kind: &str) -> &'static str {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        " "
    } else if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        " an "
    } else {
        " a "
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_kinds_have_their_words() {
        assert_eq!(
            camel("flowcontrol.apiserver.k8s.io"),
            "FlowcontrolApiserver"
        );
        assert_eq!(Names::of("", "v1").tag, "core_v1");
        assert_eq!(Names::of("batch", "v1beta1").id, "BatchV1beta1");
        assert_eq!(Names::of("a-b.example.com", "v1").tag, "aBExampleCom_v1");
        assert_eq!(article("Endpoints"), " ");
        assert_eq!(article("Ingress"), " an ");
        assert_eq!(article("Pod"), " a ");
    }
}

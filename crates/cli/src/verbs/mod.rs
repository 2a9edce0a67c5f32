//! The verbs, one file each.

mod api_resources;
mod apply;
mod config;
mod create;
mod delete;
mod describe;
mod exec;
mod get;
mod label;
mod logs;
mod rollout;
mod scale;
mod version;
mod wait;

use async_trait::async_trait;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

use crate::Error;
use crate::resources::{Resource, Resources, text};
use crate::session::Session;

pub(crate) static VERBS: &[&dyn Verb] = &[
    &get::Get,
    &describe::Describe,
    &create::Create,
    &apply::Apply,
    &delete::Delete,
    &logs::Logs,
    &exec::Exec,
    &scale::Scale,
    &rollout::Rollout,
    &label::Label { annotations: false },
    &label::Label { annotations: true },
    &wait::Wait,
    &api_resources::ApiResources,
    &config::Config,
    &version::Version,
];

#[async_trait]
pub(crate) trait Verb: Sync {
    fn name(&self) -> &'static str;
    fn command(&self) -> Command;
    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error>;
}

/// `TYPE NAME…`, `TYPE/NAME…`, as every verb on objects takes them.
fn targets_argument() -> Arg {
    Arg::new("targets")
        .value_name("TYPE[/NAME] [NAME…]")
        .num_args(0..)
        .help("Resource type and names")
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::SetTrue)
        .help(help)
}

fn selector_argument() -> Arg {
    Arg::new("selector")
        .long("selector")
        .short('l')
        .value_name("SELECTOR")
        .help("Label selector")
}

fn files_argument() -> Arg {
    Arg::new("filename")
        .long("filename")
        .short('f')
        .value_name("FILE")
        .action(ArgAction::Append)
        .help("File or directory with objects, `-` for standard input")
}

fn strings<'a>(arguments: &'a ArgMatches, name: &str) -> Vec<&'a str> {
    arguments
        .get_many::<String>(name)
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect()
}

/// One or more collections and the names wanted of them; no name means all.
struct Target<'a> {
    resource: &'a Resource,
    name: Option<String>,
}

fn targets<'a>(resources: &'a Resources, words: &[&str]) -> Result<Vec<Target<'a>>, Error> {
    if words.iter().any(|word| word.contains('/')) {
        return words
            .iter()
            .map(|word| {
                let (kind, name) = word.split_once('/').ok_or_else(|| {
                    Error::Usage("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form".to_owned())
                })?;
                Ok(Target { resource: resources.find(kind)?, name: Some(name.to_owned()) })
            })
            .collect();
    }
    let Some((types, names)) = words.split_first() else {
        return Err(Error::Usage(
            "you must specify the type of resource, for example `pods`".to_owned(),
        ));
    };
    let found = resources.find_all(types)?;
    if names.is_empty() {
        return Ok(found
            .into_iter()
            .map(|resource| Target {
                resource,
                name: None,
            })
            .collect());
    }
    let of_resource = |resource| {
        names.iter().map(move |name| Target {
            resource,
            name: Some((*name).to_owned()),
        })
    };
    Ok(found.into_iter().flat_map(of_resource).collect())
}

/// Targets that must each name an object.
fn named_targets<'a>(
    resources: &'a Resources,
    words: &[&str],
) -> Result<Vec<(&'a Resource, String)>, Error> {
    targets(resources, words)?
        .into_iter()
        .map(|target| match target.name {
            Some(name) => Ok((target.resource, name)),
            None => Err(Error::Usage("resource name may not be empty".to_owned())),
        })
        .collect()
}

/// Where an object from a manifest lives.
fn namespace_of<'a>(session: &'a Session, resource: &Resource, object: &'a Value) -> &'a str {
    if !resource.kind.namespaced {
        return "";
    }
    let own = text(&object["metadata"], "namespace");
    if own.is_empty() {
        &session.namespace
    } else {
        own
    }
}

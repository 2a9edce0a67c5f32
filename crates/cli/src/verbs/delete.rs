//! `delete`: by name, by selector or by file.

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use keelson_client::{DeleteOptions, Propagation, escape};
use serde_json::Value;

use super::{
    Verb, files_argument, flag, namespace_of, selector_argument, strings, targets, targets_argument,
};
use crate::Error;
use crate::manifest::read_all;
use crate::resources::{Resource, list, text};
use crate::session::Session;
use crate::verbs::wait::until_gone;

pub(crate) struct Delete;

#[async_trait]
impl Verb for Delete {
    fn name(&self) -> &'static str {
        "delete"
    }

    fn command(&self) -> Command {
        Command::new("delete")
            .about("Delete objects by name, selector or file")
            .arg(targets_argument())
            .arg(files_argument())
            .arg(selector_argument())
            .arg(flag(
                "all",
                "Delete all objects of the types in the namespace",
            ))
            .arg(flag(
                "ignore-not-found",
                "An object that does not exist is no error",
            ))
            .arg(flag("now", "Give pods one second"))
            .arg(
                Arg::new("wait")
                    .long("wait")
                    .default_value("true")
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_parser(clap::value_parser!(bool))
                    .help("Return when the objects are gone"),
            )
            .arg(
                Arg::new("grace-period")
                    .long("grace-period")
                    .value_name("SECONDS")
                    .value_parser(clap::value_parser!(i64))
                    .help("Time given to pods to end"),
            )
            .arg(
                Arg::new("cascade")
                    .long("cascade")
                    .value_parser(["background", "foreground", "orphan"])
                    .default_value("background")
                    .help("What happens to dependents"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let resources = session.resources().await?;
        let mut doomed: Vec<(&Resource, String, String)> = Vec::new();
        let files: Vec<String> = strings(arguments, "filename")
            .into_iter()
            .map(str::to_owned)
            .collect();
        if files.is_empty() {
            for target in targets(&resources, &strings(arguments, "targets"))? {
                let namespace = session.namespace_for(target.resource).to_owned();
                match target.name {
                    Some(name) => doomed.push((target.resource, namespace, name)),
                    None => doomed
                        .extend(selected(session, arguments, target.resource, &namespace).await?),
                }
            }
        } else {
            for object in read_all(&files, false)? {
                let resource = resources.of_object(&object)?;
                let namespace = namespace_of(session, resource, &object).to_owned();
                doomed.push((
                    resource,
                    namespace,
                    text(&object["metadata"], "name").to_owned(),
                ));
            }
        }
        let options = options(arguments);
        let mut deleted = Vec::new();
        for (resource, namespace, name) in doomed {
            match session
                .client
                .delete_resource(&resource.kind, &namespace, &name, &options)
                .await
            {
                Ok(()) => println!("{} {name:?} deleted", resource.label()),
                Err(error) if error.is_not_found() && arguments.get_flag("ignore-not-found") => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            deleted.push(resource.kind.path(&namespace, &name, ""));
        }
        if arguments.get_one::<bool>("wait").copied().unwrap_or(true) {
            for path in deleted {
                until_gone(session, &path, None).await?;
            }
        }
        Ok(())
    }
}

fn options(arguments: &ArgMatches) -> DeleteOptions {
    let grace = arguments.get_one::<i64>("grace-period").copied();
    DeleteOptions {
        grace_period_seconds: if arguments.get_flag("now") {
            Some(1)
        } else {
            grace
        },
        propagation: Some(
            match arguments.get_one::<String>("cascade").map(String::as_str) {
                Some("foreground") => Propagation::Foreground,
                Some("orphan") => Propagation::Orphan,
                _ => Propagation::Background,
            },
        ),
        ..DeleteOptions::default()
    }
}

async fn selected<'a>(
    session: &Session,
    arguments: &ArgMatches,
    resource: &'a Resource,
    namespace: &str,
) -> Result<Vec<(&'a Resource, String, String)>, Error> {
    let selector = arguments.get_one::<String>("selector");
    if selector.is_none() && !arguments.get_flag("all") {
        return Err(Error::Usage(
            "resource(s) were provided, but no name was specified: name them, or use -l or --all"
                .to_owned(),
        ));
    }
    let mut path = resource.kind.path(namespace, "", "");
    if let Some(selector) = selector {
        path.push_str(&format!("?labelSelector={}", escape(selector)));
    }
    let answer: Value = session.client.request(Method::GET, &path, None).await?;
    let name = |item: &Value| {
        (
            resource,
            namespace.to_owned(),
            text(&item["metadata"], "name").to_owned(),
        )
    };
    Ok(list(&answer, "items").iter().map(name).collect())
}

//! `create -f`, and the short forms for a namespace and a token.

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use serde_json::json;

use super::{Verb, files_argument, namespace_of, strings};
use crate::Error;
use crate::manifest::read_all;
use crate::resources::text;
use crate::session::Session;

pub(crate) struct Create;

#[async_trait]
impl Verb for Create {
    fn name(&self) -> &'static str {
        "create"
    }

    fn command(&self) -> Command {
        let name = || Arg::new("name").required(true).value_name("NAME");
        Command::new("create")
            .about("Create objects from files, or one by name")
            .arg(files_argument())
            .subcommand(
                Command::new("namespace")
                    .visible_alias("ns")
                    .about("Create a namespace")
                    .arg(name()),
            )
            .subcommand(
                Command::new("token")
                    .about("Request a token of a service account")
                    .arg(name())
                    .arg(
                        Arg::new("duration")
                            .long("duration")
                            .value_name("SECONDS")
                            .value_parser(clap::value_parser!(i64))
                            .help("How long it is to be valid"),
                    ),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        match arguments.subcommand() {
            Some(("namespace", arguments)) => {
                let name = arguments
                    .get_one::<String>("name")
                    .map_or("", String::as_str);
                let body =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                session
                    .client
                    .request(Method::POST, "/api/v1/namespaces", Some(&body))
                    .await?;
                println!("namespace/{name} created");
                Ok(())
            }
            Some(("token", arguments)) => {
                let name = arguments
                    .get_one::<String>("name")
                    .map_or("", String::as_str);
                let mut body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
                if let Some(seconds) = arguments.get_one::<i64>("duration") {
                    body["spec"]["expirationSeconds"] = (*seconds).into();
                }
                let path = format!(
                    "/api/v1/namespaces/{}/serviceaccounts/{name}/token",
                    session.namespace
                );
                let answer = session
                    .client
                    .request(Method::POST, &path, Some(&body))
                    .await?;
                println!("{}", text(&answer["status"], "token"));
                Ok(())
            }
            _ => from_files(session, arguments).await,
        }
    }
}

async fn from_files(session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
    let files: Vec<String> = strings(arguments, "filename")
        .into_iter()
        .map(str::to_owned)
        .collect();
    if files.is_empty() {
        return Err(Error::Usage(
            "must specify -f, or what to create".to_owned(),
        ));
    }
    let resources = session.resources().await?;
    for object in read_all(&files, false)? {
        let resource = resources.of_object(&object)?;
        let path = resource
            .kind
            .path(namespace_of(session, resource, &object), "", "");
        let created = session
            .client
            .request(Method::POST, &path, Some(&object))
            .await?;
        println!(
            "{}/{} created",
            resource.label(),
            text(&created["metadata"], "name")
        );
    }
    Ok(())
}

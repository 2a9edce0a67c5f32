//! `apply -f`: server-side apply.

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use keelson_client::{Patch, escape};

use super::{Verb, files_argument, flag, namespace_of, strings};
use crate::Error;
use crate::manifest::read_all;
use crate::resources::text;
use crate::session::Session;

pub(crate) struct Apply;

#[async_trait]
impl Verb for Apply {
    fn name(&self) -> &'static str {
        "apply"
    }

    fn command(&self) -> Command {
        Command::new("apply")
            .about("Apply objects from files, by server-side apply")
            .arg(files_argument())
            .arg(flag("recursive", "Descend into directories").short('R'))
            .arg(flag(
                "force-conflicts",
                "Take fields over from other managers",
            ))
            .arg(flag(
                "server-side",
                "The only way this client applies; accepted for scripts",
            ))
            .arg(
                Arg::new("field-manager")
                    .long("field-manager")
                    .default_value("kubectl")
                    .value_name("NAME")
                    .help("Manager to own the fields"),
            )
            .arg(
                Arg::new("dry-run")
                    .long("dry-run")
                    .value_parser(["none", "server"])
                    .default_value("none")
                    .help("`server` checks without storing"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let files: Vec<String> = strings(arguments, "filename")
            .into_iter()
            .map(str::to_owned)
            .collect();
        if files.is_empty() {
            return Err(Error::Usage("must specify -f".to_owned()));
        }
        let objects = read_all(&files, arguments.get_flag("recursive"))?;
        let manager = arguments
            .get_one::<String>("field-manager")
            .map_or("kubectl", String::as_str);
        let dry_run = arguments
            .get_one::<String>("dry-run")
            .is_some_and(|mode| mode == "server");
        let mut resources = session.resources().await?;
        for object in objects {
            // A CRD of the same files may have brought the kind a moment ago.
            if resources.of_object(&object).is_err() {
                resources = session.resources().await?;
            }
            let resource = resources.of_object(&object)?;
            let name = text(&object["metadata"], "name").to_owned();
            if name.is_empty() {
                return Err(Error::Usage(
                    "resource name may not be empty: apply needs metadata.name".to_owned(),
                ));
            }
            let path = resource
                .kind
                .path(namespace_of(session, resource, &object), &name, "");
            let before = session.client.request(Method::GET, &path, None).await.ok();
            let force = arguments.get_flag("force-conflicts");
            let mut applied = format!("{path}?fieldManager={}&force={force}", escape(manager));
            if dry_run {
                applied.push_str("&dryRun=All");
            }
            let patch = Patch::Apply {
                manager: manager.to_owned(),
                force,
                value: object,
            };
            let after = session.client.patch_path(&applied, &patch).await?;
            let done = match before {
                None => "created",
                Some(before)
                    if before["metadata"]["resourceVersion"]
                        == after["metadata"]["resourceVersion"] =>
                {
                    "unchanged"
                }
                Some(_) => "configured",
            };
            println!(
                "{}/{name} {done}{}",
                resource.label(),
                if dry_run { " (server dry run)" } else { "" }
            );
        }
        Ok(())
    }
}

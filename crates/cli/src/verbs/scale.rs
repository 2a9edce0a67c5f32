//! `scale`: how many replicas.

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use keelson_client::Patch;
use serde_json::json;

use super::{Verb, named_targets, strings, targets_argument};
use crate::Error;
use crate::session::Session;

pub(crate) struct Scale;

#[async_trait]
impl Verb for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn command(&self) -> Command {
        Command::new("scale")
            .about("Set the number of replicas")
            .arg(targets_argument())
            .arg(
                Arg::new("replicas")
                    .long("replicas")
                    .required(true)
                    .value_parser(clap::value_parser!(i32).range(0..))
                    .help("How many"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let replicas = arguments
            .get_one::<i32>("replicas")
            .copied()
            .unwrap_or_default();
        let resources = session.resources().await?;
        for (resource, name) in named_targets(&resources, &strings(arguments, "targets"))? {
            let path = resource
                .kind
                .path(session.namespace_for(resource), &name, "scale");
            session
                .client
                .patch_path(
                    &path,
                    &Patch::Merge(json!({"spec": {"replicas": replicas}})),
                )
                .await?;
            println!("{}/{name} scaled", resource.label());
        }
        Ok(())
    }
}

//! `rollout restart`: new pods for the same specification.

use async_trait::async_trait;
use clap::{ArgMatches, Command};
use keelson_client::Patch;
use serde_json::json;

use super::{Verb, named_targets, strings, targets_argument};
use crate::Error;
use crate::session::Session;

pub(crate) struct Rollout;

#[async_trait]
impl Verb for Rollout {
    fn name(&self) -> &'static str {
        "rollout"
    }

    fn command(&self) -> Command {
        Command::new("rollout")
            .about("Manage the rollout of a workload")
            .subcommand_required(true)
            .subcommand(
                Command::new("restart")
                    .about("Replace every pod, by the workload's own strategy")
                    .arg(targets_argument()),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let Some((_, arguments)) = arguments.subcommand() else {
            return Ok(());
        };
        let resources = session.resources().await?;
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        for (resource, name) in named_targets(&resources, &strings(arguments, "targets"))? {
            let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
            let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
            let path = resource
                .kind
                .path(session.namespace_for(resource), &name, "");
            session
                .client
                .patch_path(&path, &Patch::Strategic(patch))
                .await?;
            println!("{}/{name} restarted", resource.label());
        }
        Ok(())
    }
}

//! `api-resources`: what the server serves.

use async_trait::async_trait;
use clap::{ArgMatches, Command};

use super::Verb;
use crate::Error;
use crate::session::Session;
use crate::table::align;

pub(crate) struct ApiResources;

#[async_trait]
impl Verb for ApiResources {
    fn name(&self) -> &'static str {
        "api-resources"
    }

    fn command(&self) -> Command {
        Command::new("api-resources").about("Print the resources that the server serves")
    }

    async fn run(&self, session: &Session, _arguments: &ArgMatches) -> Result<(), Error> {
        let mut rows = vec![
            ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for resource in session
            .resources()
            .await?
            .iter()
            .filter(|resource| resource.verbs.iter().any(|v| v == "list"))
        {
            rows.push(vec![
                resource.kind.resource.clone(),
                resource.short_names.join(","),
                resource.kind.api_version(),
                resource.kind.namespaced.to_string(),
                resource.kind.kind.clone(),
            ]);
        }
        print!("{}", align(&rows));
        Ok(())
    }
}

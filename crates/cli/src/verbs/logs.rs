//! `logs`: what a container wrote.

use std::io::Write;

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use http_body_util::BodyExt;
use keelson_client::escape;
use serde_json::Value;

use super::{Verb, flag};
use crate::Error;
use crate::resources::{list, text};
use crate::session::Session;

pub(crate) struct Logs;

#[async_trait]
impl Verb for Logs {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn command(&self) -> Command {
        Command::new("logs")
            .about("Print the log of a container")
            .arg(
                Arg::new("target")
                    .required(true)
                    .value_name("POD|TYPE/NAME"),
            )
            .arg(
                Arg::new("container")
                    .long("container")
                    .short('c')
                    .value_name("NAME"),
            )
            .arg(flag("follow", "Go on as the log grows").short('f'))
            .arg(flag("previous", "The container before the last restart").short('p'))
            .arg(flag("timestamps", "Put the time in front of each line"))
            .arg(
                Arg::new("tail")
                    .long("tail")
                    .value_name("LINES")
                    .value_parser(clap::value_parser!(i64))
                    .help("Only the last lines"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let target = arguments
            .get_one::<String>("target")
            .map_or("", String::as_str);
        let pod = pod_of(session, target).await?;
        let mut path = format!("/api/v1/namespaces/{}/pods/{pod}/log?", session.namespace);
        if let Some(container) = arguments.get_one::<String>("container") {
            path.push_str(&format!("container={}&", escape(container)));
        }
        for flag in ["follow", "previous", "timestamps"] {
            if arguments.get_flag(flag) {
                path.push_str(&format!("{flag}=true&"));
            }
        }
        if let Some(lines) = arguments.get_one::<i64>("tail") {
            path.push_str(&format!("tailLines={lines}&"));
        }
        let path = path.trim_end_matches(['?', '&']);
        let mut body = session
            .client
            .raw(Method::GET, path, None, None, "*/*")
            .await?
            .into_body();
        let mut out = std::io::stdout();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Error::Stream(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                out.write_all(&data)?;
                out.flush()?;
            }
        }
        Ok(())
    }
}

/// The pod itself, or the first one that a workload selects.
pub(crate) async fn pod_of(session: &Session, target: &str) -> Result<String, Error> {
    let Some((kind, name)) = target.split_once('/') else {
        return Ok(target.to_owned());
    };
    let resources = session.resources().await?;
    let resource = resources.find(kind)?;
    if resource.kind.resource == "pods" && resource.kind.group.is_empty() {
        return Ok(name.to_owned());
    }
    let path = resource
        .kind
        .path(session.namespace_for(resource), name, "");
    let object = session.client.request(Method::GET, &path, None).await?;
    let selector = &object["spec"]["selector"];
    let labels = if selector["matchLabels"].is_object() {
        &selector["matchLabels"]
    } else {
        selector
    };
    let selector: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    if selector.is_empty() {
        return Err(Error::Usage(format!("{target} selects no pods")));
    }
    let path = format!(
        "/api/v1/namespaces/{}/pods?labelSelector={}",
        session.namespace,
        escape(&selector.join(","))
    );
    let pods: Value = session.client.request(Method::GET, &path, None).await?;
    let running = |pod: &&Value| text(&pod["status"], "phase") == "Running";
    let pods = list(&pods, "items");
    let pod = pods.iter().find(running).or_else(|| pods.first());
    pod.map(|pod| text(&pod["metadata"], "name").to_owned())
        .ok_or_else(|| Error::Usage(format!("{target} has no pods yet")))
}

//! `wait --for=condition=X|delete|jsonpath`, without polling.

use std::time::Duration;

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use http_body_util::BodyExt;
use keelson_client::escape;
use serde_json::Value;

use super::{Verb, named_targets, strings, targets_argument};
use crate::Error;
use crate::resources::{list, text};
use crate::session::Session;

pub(crate) struct Wait;

#[async_trait]
impl Verb for Wait {
    fn name(&self) -> &'static str {
        "wait"
    }

    fn command(&self) -> Command {
        Command::new("wait")
            .about("Wait until objects have a condition or are gone")
            .arg(targets_argument())
            .arg(
                Arg::new("for")
                    .long("for")
                    .required(true)
                    .value_name("WHAT")
                    .help("`delete`, `condition=NAME` or `condition=NAME=VALUE`"),
            )
            .arg(
                Arg::new("timeout")
                    .long("timeout")
                    .default_value("30s")
                    .value_name("TIME")
                    .help("For example 90s, 5m"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let what = arguments
            .get_one::<String>("for")
            .map_or("", String::as_str);
        let timeout = duration(
            arguments
                .get_one::<String>("timeout")
                .map_or("30s", String::as_str),
        )?;
        let resources = session.resources().await?;
        for (resource, name) in named_targets(&resources, &strings(arguments, "targets"))? {
            let namespace = session.namespace_for(resource);
            let path = resource.kind.path(namespace, &name, "");
            if what == "delete" {
                until_gone(session, &path, Some(timeout)).await?;
            } else if let Some(condition) = what.strip_prefix("condition=") {
                let (kind, value) = condition.split_once('=').unwrap_or((condition, "True"));
                let met = |object: &Value| has_condition(object, kind, value);
                until(session, &path, Some(timeout), &met).await?;
            } else {
                return Err(Error::Usage(format!("unrecognized condition: {what:?}")));
            }
            println!("{}/{name} condition met", resource.label());
        }
        Ok(())
    }
}

fn has_condition(object: &Value, kind: &str, value: &str) -> bool {
    list(&object["status"], "conditions")
        .iter()
        .any(|condition| {
            text(condition, "type").eq_ignore_ascii_case(kind)
                && text(condition, "status").eq_ignore_ascii_case(value)
        })
}

fn duration(typed: &str) -> Result<Duration, Error> {
    let split = typed
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(typed.len());
    let unit = match &typed[split..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        _ => {
            return Err(Error::Usage(format!(
                "invalid duration {typed:?}: use 30s, 5m or 1h"
            )));
        }
    };
    let number: u64 = typed[..split]
        .parse()
        .map_err(|_| Error::Usage(format!("invalid duration {typed:?}")))?;
    Ok(Duration::from_secs(number.saturating_mul(unit)))
}

pub(crate) async fn until_gone(
    session: &Session,
    path: &str,
    timeout: Option<Duration>,
) -> Result<(), Error> {
    until(session, path, timeout, &Value::is_null).await
}

/// Returns when the predicate holds of the object; a null stands for its absence.
async fn until(
    session: &Session,
    path: &str,
    timeout: Option<Duration>,
    met: &(dyn Fn(&Value) -> bool + Send + Sync),
) -> Result<(), Error> {
    let work = async {
        loop {
            let object = match session.client.request(Method::GET, path, None).await {
                Ok(object) => object,
                Err(error) if error.is_not_found() => Value::Null,
                Err(error) => return Err(error.into()),
            };
            if met(&object) {
                return Ok(());
            }
            if object.is_null() {
                return Err(Error::Usage(format!("{path} does not exist")));
            }
            next_change(session, path, &object, met).await?;
        }
    };
    match timeout {
        None => work.await,
        Some(timeout) => tokio::time::timeout(timeout, work)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Usage(format!(
                    "timed out waiting for the condition on {path}"
                )))
            }),
    }
}

/// Watches the object until the predicate may hold, or the watch ends.
async fn next_change(
    session: &Session,
    path: &str,
    object: &Value,
    met: &(dyn Fn(&Value) -> bool + Send + Sync),
) -> Result<(), Error> {
    let (collection, name) = path.rsplit_once('/').unwrap_or((path, ""));
    let selector = escape(&format!("metadata.name={name}"));
    let version = text(&object["metadata"], "resourceVersion");
    let watch =
        format!("{collection}?watch=true&fieldSelector={selector}&resourceVersion={version}");
    let mut body = session
        .client
        .raw(Method::GET, &watch, None, None, "application/json")
        .await?
        .into_body();
    let mut buffer = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Stream(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let event: Value =
                serde_json::from_slice(&line).map_err(keelson_client::Error::Decode)?;
            let gone = matches!(text(&event, "type"), "DELETED" | "ERROR");
            if gone || met(&event["object"]) {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(duration("90s").unwrap().as_secs(), 90);
        assert_eq!(duration("2m").unwrap().as_secs(), 120);
        assert!(duration("soon").is_err());
    }
}

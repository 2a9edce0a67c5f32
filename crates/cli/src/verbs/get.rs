//! `get`: tables as the server renders them, or the objects themselves.

use async_trait::async_trait;
use clap::{Arg, ArgMatches, Command};
use http::Method;
use http_body_util::BodyExt;
use keelson_client::escape;
use serde_json::{Value, json};

use super::{Target, Verb, flag, selector_argument, strings, targets, targets_argument};
use crate::Error;
use crate::resources::{list, text};
use crate::session::Session;
use crate::table::{TableOptions, render};

pub(crate) struct Get;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

#[async_trait]
impl Verb for Get {
    fn name(&self) -> &'static str {
        "get"
    }

    fn command(&self) -> Command {
        Command::new("get")
            .about("Display one or many resources")
            .arg(targets_argument())
            .arg(selector_argument())
            .arg(
                Arg::new("field-selector")
                    .long("field-selector")
                    .value_name("SELECTOR")
                    .help("Field selector"),
            )
            .arg(flag("all-namespaces", "List across all namespaces").short('A'))
            .arg(flag("no-headers", "Leave the header out"))
            .arg(flag("show-labels", "Print labels as the last column"))
            .arg(flag("watch", "Print changes as they come, after the list").short('w'))
            .arg(
                Arg::new("output")
                    .long("output")
                    .short('o')
                    .value_name("FORMAT")
                    .value_parser(["wide", "name", "json", "yaml"])
                    .help("How to print"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let resources = session.resources().await?;
        let targets = targets(&resources, &strings(arguments, "targets"))?;
        let format = arguments
            .get_one::<String>("output")
            .map_or("", String::as_str);
        if matches!(format, "json" | "yaml" | "name") {
            return objects(session, arguments, &targets, format).await;
        }
        let options = TableOptions {
            wide: format == "wide",
            no_headers: arguments.get_flag("no-headers"),
            namespaces: arguments.get_flag("all-namespaces"),
            labels: arguments.get_flag("show-labels"),
        };
        let several = targets
            .windows(2)
            .any(|pair| pair[0].resource.kind != pair[1].resource.kind);
        let mut printed = false;
        for target in &targets {
            let path = path(session, arguments, target);
            let table = fetch(session, &path, TABLE).await?;
            if list(&table, "rows").is_empty() {
                continue;
            }
            if printed && several {
                println!();
            }
            let prefix = if several {
                format!("{}/", target.resource.label())
            } else {
                String::new()
            };
            print!(
                "{}",
                render(
                    &table,
                    TableOptions {
                        namespaces: options.namespaces && target.resource.kind.namespaced,
                        ..options
                    },
                    &prefix
                )
            );
            printed = true;
            if arguments.get_flag("watch") && targets.len() == 1 {
                return watch(
                    session,
                    &path,
                    text(&table["metadata"], "resourceVersion"),
                    options,
                )
                .await;
            }
        }
        if !printed {
            match (
                arguments.get_flag("all-namespaces"),
                targets.iter().any(|target| target.resource.kind.namespaced),
            ) {
                (false, true) => {
                    eprintln!("No resources found in {} namespace.", session.namespace)
                }
                _ => eprintln!("No resources found"),
            }
        }
        Ok(())
    }
}

fn path(session: &Session, arguments: &ArgMatches, target: &Target<'_>) -> String {
    let all = arguments.get_flag("all-namespaces");
    let namespace = if all {
        ""
    } else {
        session.namespace_for(target.resource)
    };
    let mut path =
        target
            .resource
            .kind
            .path(namespace, target.name.as_deref().unwrap_or_default(), "");
    let mut separator = '?';
    for (flag, parameter) in [
        ("selector", "labelSelector"),
        ("field-selector", "fieldSelector"),
    ] {
        if let Some(value) = arguments.get_one::<String>(flag) {
            path.push_str(&format!("{separator}{parameter}={}", escape(value)));
            separator = '&';
        }
    }
    path
}

async fn fetch(session: &Session, path: &str, accept: &str) -> Result<Value, Error> {
    let response = session
        .client
        .raw(Method::GET, path, None, None, accept)
        .await?;
    let bytes = response
        .into_body()
        .collect()
        .await
        .map_err(|error| Error::Stream(error.to_string()))?
        .to_bytes();
    Ok(serde_json::from_slice(&bytes).map_err(keelson_client::Error::Decode)?)
}

async fn objects(
    session: &Session,
    arguments: &ArgMatches,
    targets: &[Target<'_>],
    format: &str,
) -> Result<(), Error> {
    let mut found = Vec::new();
    for target in targets {
        let mut answer = fetch(
            session,
            &path(session, arguments, target),
            "application/json",
        )
        .await?;
        if target.name.is_some() {
            found.push((target.resource, answer));
            continue;
        }
        let (api_version, kind) = (
            target.resource.kind.api_version(),
            target.resource.kind.kind.clone(),
        );
        if let Some(Value::Array(items)) = answer.get_mut("items").map(Value::take) {
            for mut item in items {
                item["apiVersion"] = api_version.as_str().into();
                item["kind"] = kind.as_str().into();
                found.push((target.resource, item));
            }
        }
    }
    if format == "name" {
        for (resource, object) in &found {
            println!("{}/{}", resource.label(), text(&object["metadata"], "name"));
        }
        return Ok(());
    }
    for (_, object) in &mut found {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    let single = targets.len() == 1 && targets[0].name.is_some();
    let printed = match found.pop() {
        Some((_, object)) if single => object,
        last => {
            let items: Vec<Value> = found
                .into_iter()
                .chain(last)
                .map(|(_, object)| object)
                .collect();
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
        }
    };
    if format == "json" {
        println!(
            "{}",
            serde_json::to_string_pretty(&printed).map_err(keelson_client::Error::Decode)?
        );
    } else {
        print!(
            "{}",
            serde_saphyr::to_string(&printed).map_err(|error| Error::Stream(error.to_string()))?
        );
    }
    Ok(())
}

async fn watch(
    session: &Session,
    path: &str,
    version: &str,
    options: TableOptions,
) -> Result<(), Error> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}watch=true&resourceVersion={version}");
    let mut body = session
        .client
        .raw(Method::GET, &path, None, None, TABLE)
        .await?
        .into_body();
    let mut buffer = Vec::new();
    let mut columns = Value::Null;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Stream(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let mut event: Value =
                serde_json::from_slice(&line).map_err(keelson_client::Error::Decode)?;
            if text(&event, "type") == "ERROR" {
                return Err(Error::Stream(text(&event["object"], "message").to_owned()));
            }
            // Only the first table of a watch names its columns.
            if event["object"]["columnDefinitions"].is_array() {
                columns = event["object"]["columnDefinitions"].clone();
            }
            event["object"]["columnDefinitions"] = columns.clone();
            print!(
                "{}",
                render(
                    &event["object"],
                    TableOptions {
                        no_headers: true,
                        ..options
                    },
                    ""
                )
            );
        }
    }
    Ok(())
}

//! `describe`: the object as an outline, and the events about it.

use async_trait::async_trait;
use clap::{ArgMatches, Command};
use http::Method;
use keelson_client::escape;
use serde_json::Value;

use super::{Verb, named_targets, strings, targets_argument};
use crate::Error;
use crate::resources::{list, text};
use crate::session::Session;
use crate::table::align;

pub(crate) struct Describe;

#[async_trait]
impl Verb for Describe {
    fn name(&self) -> &'static str {
        "describe"
    }

    fn command(&self) -> Command {
        Command::new("describe")
            .about("Show an object in detail, with its events")
            .arg(targets_argument())
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let resources = session.resources().await?;
        for (resource, name) in named_targets(&resources, &strings(arguments, "targets"))? {
            let namespace = session.namespace_for(resource);
            let path = resource.kind.path(namespace, &name, "");
            let mut object = session.client.request(Method::GET, &path, None).await?;
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            let mut lines = Vec::new();
            outline(&object, 0, &mut lines);
            println!("{}", lines.join("\n"));
            let uid = text(&object["metadata"], "uid");
            let selector = escape(&format!("involvedObject.uid={uid}"));
            let in_namespace = if namespace.is_empty() {
                String::new()
            } else {
                format!("/namespaces/{namespace}")
            };
            let events = format!("/api/v1{in_namespace}/events?fieldSelector={selector}");
            print_events(&session.client.request(Method::GET, &events, None).await?);
        }
        Ok(())
    }
}

fn print_events(events: &Value) {
    let items = list(events, "items");
    if items.is_empty() {
        println!("Events: <none>");
        return;
    }
    println!("Events:");
    let header = ["  Type", "Reason", "Count", "Last seen", "Message"]
        .map(str::to_owned)
        .to_vec();
    let rows = items.iter().map(|event| {
        vec![
            format!("  {}", text(event, "type")),
            text(event, "reason").to_owned(),
            event["count"].as_i64().unwrap_or(1).to_string(),
            text(event, "lastTimestamp").to_owned(),
            text(event, "message").to_owned(),
        ]
    });
    print!(
        "{}",
        align(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
    );
}

/// Keys in words, nested values indented, list items behind a dash.
fn outline(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if is_plain(value) {
                    lines.push(format!("{indent}{key}: {}", plain(value)));
                } else {
                    lines.push(format!("{indent}{key}:"));
                    outline(value, depth + 1, lines);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                if is_plain(item) {
                    lines.push(format!("{indent}- {}", plain(item)));
                } else {
                    lines.push(format!("{indent}-"));
                    outline(item, depth + 1, lines);
                }
            }
        }
        other => lines.push(format!("{indent}{}", plain(other))),
    }
}

fn is_plain(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Object(_) | Value::Array(_) => "<none>".to_owned(),
        other => other.to_string(),
    }
}

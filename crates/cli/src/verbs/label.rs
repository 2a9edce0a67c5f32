//! `label` and `annotate`: `key=value` sets, `key-` removes.

use async_trait::async_trait;
use clap::{Arg, ArgAction, ArgMatches, Command};
use http::Method;
use keelson_client::Patch;
use serde_json::{Map, Value, json};

use super::{Verb, named_targets, strings};
use crate::Error;
use crate::session::Session;

pub(crate) struct Label {
    pub(crate) annotations: bool,
}

#[async_trait]
impl Verb for Label {
    fn name(&self) -> &'static str {
        if self.annotations {
            "annotate"
        } else {
            "label"
        }
    }

    fn command(&self) -> Command {
        let about = if self.annotations {
            "Change annotations of objects"
        } else {
            "Change labels of objects"
        };
        Command::new(self.name())
            .about(about)
            .arg(
                Arg::new("words")
                    .num_args(2..)
                    .required(true)
                    .value_name("TYPE NAME KEY=VALUE|KEY-"),
            )
            .arg(
                Arg::new("overwrite")
                    .long("overwrite")
                    .action(ArgAction::SetTrue)
                    .help("Change values that exist"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let words = strings(arguments, "words");
        let is_change = |word: &&str| word.contains('=') || word.ends_with('-');
        let (changes, targets): (Vec<&str>, Vec<&str>) = words.into_iter().partition(is_change);
        if changes.is_empty() {
            return Err(Error::Usage(
                "at least one update is required: KEY=VALUE, or KEY- to remove".to_owned(),
            ));
        }
        let field = if self.annotations {
            "annotations"
        } else {
            "labels"
        };
        let mut wanted = Map::new();
        for change in changes {
            match change.split_once('=') {
                Some((key, value)) => wanted.insert(key.to_owned(), value.into()),
                None => wanted.insert(change.trim_end_matches('-').to_owned(), Value::Null),
            };
        }
        let resources = session.resources().await?;
        for (resource, name) in named_targets(&resources, &targets)? {
            let path = resource
                .kind
                .path(session.namespace_for(resource), &name, "");
            if !arguments.get_flag("overwrite") {
                let object = session.client.request(Method::GET, &path, None).await?;
                let current = &object["metadata"][field];
                let taken = wanted.iter().find(|(key, value)| {
                    !value.is_null()
                        && current
                            .get(key.as_str())
                            .is_some_and(|current| current != *value)
                });
                if let Some((key, _)) = taken {
                    return Err(Error::Usage(format!(
                        "{key:?} already has a value ({}), and --overwrite is false",
                        current[key]
                    )));
                }
            }
            session
                .client
                .patch_path(&path, &Patch::Merge(json!({"metadata": {field: wanted}})))
                .await?;
            println!(
                "{}/{name} {}",
                resource.label(),
                if self.annotations {
                    "annotated"
                } else {
                    "labeled"
                }
            );
        }
        Ok(())
    }
}

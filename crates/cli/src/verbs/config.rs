//! `config`: contexts of the kubeconfig.

use async_trait::async_trait;
use clap::{Arg, ArgAction, ArgMatches, Command};
use keelson_client::Kubeconfig;
use serde_json::Value;

use super::Verb;
use crate::Error;
use crate::session::Session;
use crate::table::align;

pub(crate) struct Config;

#[async_trait]
impl Verb for Config {
    fn name(&self) -> &'static str {
        "config"
    }

    fn command(&self) -> Command {
        let name = || Arg::new("name").required(true).value_name("CONTEXT");
        Command::new("config")
            .about("Look at and change the kubeconfig's contexts")
            .subcommand_required(true)
            .subcommand(Command::new("current-context").about("Print the current context"))
            .subcommand(Command::new("get-contexts").about("List the contexts"))
            .subcommand(
                Command::new("use-context")
                    .about("Make a context current")
                    .arg(name()),
            )
            .subcommand(
                Command::new("set-context")
                    .about("Change a context; its namespace is --namespace")
                    .arg(Arg::new("name").value_name("CONTEXT"))
                    .arg(
                        Arg::new("current")
                            .long("current")
                            .action(ArgAction::SetTrue)
                            .help("The current context"),
                    ),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let mut file = Kubeconfig::read(&session.kubeconfig)?;
        match arguments.subcommand() {
            Some(("current-context", _)) => println!("{}", file.current_context),
            Some(("get-contexts", _)) => {
                let mut rows = vec![
                    ["CURRENT", "NAME", "CLUSTER", "NAMESPACE"]
                        .map(str::to_owned)
                        .to_vec(),
                ];
                for context in &file.contexts {
                    let text = |key: &str| {
                        context
                            .context
                            .get(key)
                            .and_then(Value::as_str)
                            .unwrap_or_default()
                            .to_owned()
                    };
                    let current = if context.name == file.current_context {
                        "*"
                    } else {
                        ""
                    };
                    rows.push(vec![
                        current.to_owned(),
                        context.name.clone(),
                        text("cluster"),
                        text("namespace"),
                    ]);
                }
                print!("{}", align(&rows));
            }
            Some(("use-context", arguments)) => {
                let name = arguments
                    .get_one::<String>("name")
                    .cloned()
                    .unwrap_or_default();
                if !file.contexts.iter().any(|context| context.name == name) {
                    return Err(Error::Usage(format!(
                        "no context exists with the name: {name:?}"
                    )));
                }
                println!("Switched to context {name:?}.");
                file.current_context = name;
                file.write(&session.kubeconfig)?;
            }
            Some(("set-context", own)) => {
                let name = own
                    .get_one::<String>("name")
                    .cloned()
                    .unwrap_or_else(|| file.current_context.clone());
                let Some(context) = file
                    .contexts
                    .iter_mut()
                    .find(|context| context.name == name)
                else {
                    return Err(Error::Usage(format!(
                        "no context exists with the name: {name:?}"
                    )));
                };
                if let Some(namespace) = own.get_one::<String>("namespace") {
                    context
                        .context
                        .insert("namespace".to_owned(), namespace.as_str().into());
                }
                file.write(&session.kubeconfig)?;
                println!("Context {name:?} modified.");
            }
            _ => {}
        }
        Ok(())
    }
}

//! `exec`: a command in a container.

use async_trait::async_trait;
use clap::{Arg, ArgAction, ArgMatches, Command};
use keelson_client::escape;

use super::logs::pod_of;
use super::{Verb, strings};
use crate::Error;
use crate::session::Session;

pub(crate) struct Exec;

#[async_trait]
impl Verb for Exec {
    fn name(&self) -> &'static str {
        "exec"
    }

    fn command(&self) -> Command {
        Command::new("exec")
            .about("Run a command in a container")
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
            .arg(
                Arg::new("stdin")
                    .long("stdin")
                    .short('i')
                    .action(ArgAction::SetTrue)
                    .help("Pass standard input"),
            )
            .arg(
                Arg::new("tty")
                    .long("tty")
                    .short('t')
                    .action(ArgAction::SetTrue)
                    .help("Standard input is a terminal"),
            )
            .arg(
                Arg::new("command")
                    .num_args(1..)
                    .last(true)
                    .required(true)
                    .value_name("COMMAND"),
            )
    }

    async fn run(&self, session: &Session, arguments: &ArgMatches) -> Result<(), Error> {
        let target = arguments
            .get_one::<String>("target")
            .map_or("", String::as_str);
        let pod = pod_of(session, target).await?;
        let (stdin, tty) = (arguments.get_flag("stdin"), arguments.get_flag("tty"));
        let mut path = format!(
            "/api/v1/namespaces/{}/pods/{pod}/exec?stdout=true&stderr={}&stdin={stdin}&tty={tty}",
            session.namespace, !tty
        );
        if let Some(container) = arguments.get_one::<String>("container") {
            path.push_str(&format!("&container={}", escape(container)));
        }
        for word in strings(arguments, "command") {
            path.push_str(&format!("&command={}", escape(word)));
        }
        match crate::exec::run(&session.config, &path, stdin, tty).await? {
            0 => Ok(()),
            code => Err(Error::Exit(code)),
        }
    }
}

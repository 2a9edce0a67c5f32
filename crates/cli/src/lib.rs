//! `keelson kubectl`: the command line client. It prints the tables that the server renders and
//! finds resources by discovery, so it knows no kind.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod exec;
mod manifest;
mod resources;
mod session;
mod table;
mod verbs;

use std::process::ExitCode;

use clap::{Arg, ArgAction, Command};

pub use error::Error;
use session::Session;
use verbs::VERBS;

/// Runs one command; `arguments` come without the program's name.
pub fn main(arguments: &[String]) -> ExitCode {
    let matches = match command().try_get_matches_from(
        std::iter::once("kubectl").chain(arguments.iter().map(String::as_str)),
    ) {
        Ok(matches) => matches,
        Err(error) => {
            // Printing help to a closed pipe is no failure worth a message.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some((name, arguments)) = matches.subcommand() else {
        return ExitCode::FAILURE;
    };
    let Some(verb) = VERBS.iter().find(|verb| verb.name() == name) else {
        return ExitCode::FAILURE;
    };
    let outcome = runtime.block_on(async {
        let session = Session::open(arguments)?;
        verb.run(&session, arguments).await
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Exit(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let global = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .global(true)
            .help(help)
            .help_heading("Global options")
    };
    Command::new("kubectl")
        .about("Controls a Kubernetes cluster.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(
            global(
                "kubeconfig",
                "Kubeconfig file [default: $KUBECONFIG or ~/.kube/config]",
            )
            .value_name("FILE"),
        )
        .arg(global("context", "Context of the kubeconfig").value_name("NAME"))
        .arg(
            global("namespace", "Namespace [default: the context's]")
                .short('n')
                .value_name("NAME"),
        )
        .arg(
            global("server", "Address of the API server")
                .short('s')
                .value_name("URL"),
        )
        .arg(global("token", "Bearer token").value_name("TOKEN"))
        .arg(
            global(
                "insecure-skip-tls-verify",
                "Do not check the server's certificate",
            )
            .action(ArgAction::SetTrue),
        )
        .subcommands(VERBS.iter().map(|verb| verb.command()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}

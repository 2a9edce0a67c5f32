//! The composition root: parse flags, resolve the configuration, start the components, supervise
//! them. Nothing else lives here.

mod api_args;
mod args;
mod check;
mod closed;
mod components;
mod dns_service;
mod down;
mod image;
mod instance;
mod node_args;
mod ready;
mod server;
mod service_args;
mod snapshot;
mod status;
mod store;
mod tls;
mod up;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let raw: Vec<OsString> = std::env::args_os().collect();
    // The shim and the built-in image are this same binary. They must stay small and
    // single-threaded, so nothing may run before them.
    if raw
        .get(1)
        .is_some_and(|argument| argument == keelson_linux::SHIM_ARGUMENT)
    {
        keelson_linux::shim_main(&raw[2..]);
    }
    if let Some(arguments) = keelson_linux::hello_arguments(&raw) {
        keelson_linux::hello_main(arguments);
    }
    let arguments: Vec<String> = raw
        .iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("keelson: a TLS provider was installed twice; this is a bug");
        return ExitCode::FAILURE;
    }
    if called_as_kubectl(&arguments) {
        return keelson_cli::main(&arguments[1..]);
    }
    if arguments
        .get(1)
        .is_some_and(|argument| argument == "kubectl")
    {
        return keelson_cli::main(&arguments[2..]);
    }
    let arguments = match args::with_config_file(arguments) {
        Ok(arguments) => arguments,
        Err(message) => return fail(&message),
    };
    let command = args::Cli::parse_from(arguments).command;
    // Files that the verbs of kubectl make are the user's own affair.
    if !matches!(command, args::Command::Kubectl { .. }) {
        closed::by_default();
    }
    let outcome = match command {
        args::Command::Up(args) => up::run(args),
        args::Command::Server(args) => server::run(args),
        args::Command::Down(args) => down::run(&args),
        args::Command::Status(args) => status::run(&args),
        args::Command::Image(args) => image::run(args),
        args::Command::Snapshot(args) => snapshot::run(args),
        args::Command::Kubectl { arguments } => return keelson_cli::main(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Every user-facing failure: one sentence that says what is wrong and what to do.
fn fail(message: &str) -> ExitCode {
    eprintln!("keelson: {message}");
    ExitCode::FAILURE
}

fn called_as_kubectl(arguments: &[String]) -> bool {
    let program = arguments.first().map(std::path::Path::new);
    program
        .and_then(|program| program.file_name())
        .is_some_and(|name| name == "kubectl")
}

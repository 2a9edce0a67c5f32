//! Figures, taken on the real binary: a node's life (`node`) and an API server (`api`), the latter
//! beside a server that does nothing but send the same bytes.
//!
//! Every run ends with one line of JSON that holds the same figures as the table above it. Nothing
//! here judges; a figure means something next to another one from the same machine.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
mod bare;
mod collections;
mod node;
mod processes;
mod report;
mod statistics;
mod subject;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "keelson-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start `keelson up` in a network namespace of its own and measure it: start, memory, idle
    /// CPU, deployments, stop. Needs root, and `unshare` of util-linux.
    Node(node::Args),
    /// Measure any API server: creates, reads, lists and the fan-out of watches, in a namespace
    /// that is made for it and deleted afterwards; then the reads once more beside a bare server
    /// on this machine that answers the same bytes.
    Api(api::Args),
    /// Measure any API server: how long it takes to delete a collection of many objects, and a
    /// namespace that holds as many.
    Collections(collections::Args),
    /// The bare server of `api`.
    #[command(hide = true)]
    Bare(bare::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        // Before any thread exists, since it may replace this process.
        Command::Node(args) => node::run(args).map(Some),
        Command::Api(args) => api::run(args).map(Some),
        Command::Collections(args) => collections::run(args).map(Some),
        Command::Bare(args) => bare::serve(&args).map(|()| None),
    };
    match outcome {
        Ok(report) => {
            if let Some(report) = report {
                print!("{report}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("keelson-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

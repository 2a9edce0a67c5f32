//! Chores of this repository: `cargo xtask --help`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod generate;
mod graph;
mod tidy;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn upstream's facts into the checked-in tables of `crates/api/src/generated`.
    Gen {
        /// Holds schemas.json, discovery.json and protobuf.json.
        #[arg(long)]
        from: PathBuf,
        /// A checkout of Kubernetes of the same version; tells which fields are pointers and which
        /// are left out when empty, which OpenAPI does not.
        #[arg(long, required_unless_present = "check")]
        source: Option<PathBuf>,
        /// Write nothing; say which tables are not what the facts give, those of types only where
        /// there is a checkout.
        #[arg(long)]
        check: bool,
    },
    /// Take the descriptions of types and fields from the source of the `k8s-openapi` crate.
    Describe {
        /// `src/v1_36` of the unpacked crate.
        #[arg(long)]
        from: PathBuf,
    },
    /// Check file sizes, names and the crate graph.
    Tidy,
    /// Print the crate graph as `crate -> dependency` lines.
    Graph,
}

fn main() -> ExitCode {
    let root = repository();
    match Args::parse().command {
        Command::Gen {
            from,
            source,
            check,
        } => match generate::tables(&from, source.as_deref()) {
            Ok(tables) if check => stale(&generate::stale(&tables, &root)),
            Ok(tables) => match generate::write(&tables, &root) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => fail(&e),
            },
            Err(e) => fail(&e),
        },
        Command::Describe { from } => match generate::describe(&from, &root) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => fail(&e),
        },
        Command::Tidy => {
            let complaints = tidy::check(&root);
            for c in &complaints {
                eprintln!("{c}");
            }
            if complaints.is_empty() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Command::Graph => match graph::edges(&root) {
            Ok(edges) => {
                for (from, to) in edges {
                    println!("{from} -> {to}");
                }
                ExitCode::SUCCESS
            }
            Err(e) => fail(&e),
        },
    }
}

fn stale(tables: &[&str]) -> ExitCode {
    for name in tables {
        eprintln!("{name} is not what the facts give");
    }
    if tables.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

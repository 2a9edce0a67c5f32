//! A node's life: start, rest, work, rest under load, end.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::processes::{self, Processes};
use crate::report::Report;
use crate::statistics::{Samples, milliseconds};
use crate::subject::Subject;
use crate::workload::Workloads;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The program to measure [default: `keelson` beside this one].
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// How often a start on an empty data directory is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    starts: u32,
    /// How often a deployment of one replica is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    deployments: u32,
    /// Replicas of the large deployment.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=100))]
    pods: i32,
    /// How long an idle server is watched, without pods and with them.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    idle_seconds: u64,
    /// How long a single step may take before the run fails.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=1800))]
    patience_seconds: u64,
    /// This process is in its own network namespace already.
    #[arg(long, hide = true)]
    inside: bool,
}

pub(crate) fn run(args: Args) -> Result<Report, String> {
    if !args.inside {
        return Err(enter_namespace());
    }
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => beside()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut subject = Subject::new(&binary)?;
        let mut report = Report::new("One node");
        report.fact("binary", binary.display().to_string());
        report.fact("pods", args.pods);
        // An interrupt ends the measurement, and the subject is cleaned away on the way out.
        tokio::select! {
            outcome = measure(&args, &mut subject, &mut report) => outcome?,
            _ = tokio::signal::ctrl_c() => return Err("interrupted".to_owned()),
        }
        Ok(report)
    })
}

/// Becomes the same command in a network namespace of its own, which goes with the process and so
/// cannot be left behind. Returns only when that fails.
fn enter_namespace() -> String {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return format!("finding this program: {error}"),
    };
    let error = Command::new("unshare")
        .args(["--net", "--"])
        .arg(own)
        .args(std::env::args_os().skip(1))
        .arg("--inside")
        .exec();
    format!("`unshare --net`: {error}")
}

fn beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| format!("finding this program: {error}"))?;
    let binary = own.parent().unwrap_or(Path::new(".")).join("keelson");
    if binary.is_file() {
        Ok(binary)
    } else {
        Err(format!(
            "{} does not exist: build it (`cargo build --release -p keelson`), or name one with --binary",
            binary.display()
        ))
    }
}

async fn measure(args: &Args, subject: &mut Subject, report: &mut Report) -> Result<(), String> {
    let patience = Duration::from_secs(args.patience_seconds);
    starts(args, subject, report, patience)?;
    let mut workloads = Workloads::open(subject.client()?, patience).await?;
    idle(args, subject, report, "idle", "idle").await?;

    let (mut up, mut gone) = (Vec::new(), Vec::new());
    for round in 0..args.deployments {
        let name = format!("one-{round}");
        step(&format!("deployment of 1, round {}", round + 1));
        up.push(workloads.start(&name, 1).await?);
        gone.push(workloads.delete(&name).await?);
    }
    for (key, what, durations) in [
        ("deploy_1_ms", "Deployment of 1: created → available", &up),
        ("delete_1_ms", "Deployment of 1: deleted → pod gone", &gone),
    ] {
        if let Some(samples) = Samples::of_durations_ms(durations) {
            report.median(key, what, &samples, "ms");
        }
    }

    let pods = args.pods;
    step(&format!("deployment of {pods}"));
    let took = workloads.start("many", pods).await?;
    let what = format!("Deployment of {pods}: created → available");
    report.figure("deploy_many_ms", &what, milliseconds(took), "ms");
    idle(args, subject, report, "loaded", &format!("{pods} pods")).await?;
    step(&format!("server killed, and up again with {pods} pods"));
    subject.kill();
    let again = subject.up(patience)?;
    let what = format!("killed, up again with {pods} pods → ready");
    report.figure("restart_ms", &what, milliseconds(again.dns), "ms");
    step(&format!("deleting {pods} pods"));
    let took = workloads.delete("many").await?;
    let what = format!("Deployment of {pods}: deleted → pods gone");
    report.figure("delete_many_ms", &what, milliseconds(took), "ms");
    drop(workloads);

    step("down");
    let took = subject.down()?;
    report.figure("down_ms", "keelson down", milliseconds(took), "ms");
    let left = subject.processes();
    report.figure(
        "left_processes",
        "processes left by keelson down",
        left as f64,
        "",
    );
    Ok(())
}

/// The last start is left running.
fn starts(
    args: &Args,
    subject: &mut Subject,
    report: &mut Report,
    patience: Duration,
) -> Result<(), String> {
    let (mut api, mut node, mut dns) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.starts {
        if round > 0 {
            subject.down()?;
        }
        step(&format!("start {} of {}", round + 1, args.starts));
        let start = subject.up(patience)?;
        api.push(start.api);
        node.push(start.node);
        dns.push(start.dns);
    }
    for (key, what, durations) in [
        ("start_api_ms", "exec → API server answers", &api),
        ("start_node_ms", "exec → node Ready", &node),
        ("start_dns_ms", "exec → DNS answers", &dns),
    ] {
        if let Some(samples) = Samples::of_durations_ms(durations) {
            report.median(key, what, &samples, "ms");
        }
    }
    Ok(())
}

/// Memory now, and CPU over the window; what the last step stirred up settles first.
async fn idle(
    args: &Args,
    subject: &Subject,
    report: &mut Report,
    key: &str,
    what: &str,
) -> Result<(), String> {
    step(&format!("{what}: watching for {} s", args.idle_seconds));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let window = Duration::from_secs(args.idle_seconds);
    let processes = Processes::below(subject.server()?);
    let server = [processes.server];
    let shims = [processes.template.clone(), processes.shims.clone()].concat();
    let before = (processes::cpu_ms(&server), processes::cpu_ms(&shims));
    tokio::time::sleep(window).await;
    let after = (processes::cpu_ms(&server), processes::cpu_ms(&shims));
    let percent = |before: u64, after: u64| {
        after.saturating_sub(before) as f64 / window.as_millis() as f64 * 100.0
    };
    let mib = |kib: u64| kib as f64 / 1024.0;
    let memory = processes::memory(&server);
    let mut row = |name: &str, label: &str, value: f64, unit: &'static str| {
        report.figure(
            &format!("{key}_{name}"),
            &format!("{what}: {label}"),
            value,
            unit,
        );
    };
    row("server_pss_mib", "server, PSS", mib(memory.pss_kib), "MiB");
    row(
        "server_cpu_percent",
        "server, CPU",
        percent(before.0, after.0),
        "% of a core",
    );
    if processes.shims.is_empty() {
        return Ok(());
    }
    let count = processes.shims.len() as f64;
    let of_shims = processes::memory(&processes.shims);
    row("shims", "shims", count, "");
    row(
        "shim_private_mib",
        "private memory a shim",
        mib(of_shims.private_kib) / count,
        "MiB",
    );
    row(
        "shims_pss_mib",
        "shims and their template, PSS",
        mib(processes::memory(&shims).pss_kib),
        "MiB",
    );
    row(
        "shims_cpu_percent",
        "shims, CPU",
        percent(before.1, after.1),
        "% of a core",
    );
    row(
        "contained_pss_mib",
        "processes in pods, PSS",
        mib(processes::memory(&processes.contained).pss_kib),
        "MiB",
    );
    Ok(())
}

/// Progress, apart from the figures.
fn step(what: &str) {
    eprintln!("{what}");
}

//! Runs the corpus against this server and a reference and prints what differs; see
//! `keelson_testkit::differential`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use keelson_client::{Client, Kubeconfig};
use keelson_testkit::Cluster;
use keelson_testkit::differential::{
    Case, Corpus, Expected, Observation, Runner, Side, all_versions_directory, corpora,
    differences, directory, dual_stack_directory,
};

/// Compare this API server with another one, case by case.
#[derive(Debug, Parser)]
struct Args {
    /// The kubeconfig of the reference; without it the recorded answers are compared with.
    #[arg(long, env = "KEELSON_REFERENCE_KUBECONFIG")]
    reference: Option<PathBuf>,
    /// The kubeconfig of a server to compare, instead of one started in process.
    #[arg(long)]
    server: Option<PathBuf>,
    /// Write down what the reference answers.
    #[arg(long, requires = "reference")]
    record: bool,
    /// Where the corpus is [default: that of the repository].
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Compare servers that have Services of both families, on the corpus for them.
    #[arg(long)]
    dual_stack: bool,
    /// Compare servers that serve alpha and beta versions too, on the corpus for them.
    #[arg(long, conflicts_with = "dual_stack")]
    all_versions: bool,
    /// Print the answers in whole.
    #[arg(long, short)]
    verbose: bool,
    /// Parts of `group/kind: case`; all cases without one.
    filters: Vec<String>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match compare(&Args::parse()).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}", keelson_client::causes(&*error));
            ExitCode::from(2)
        }
    }
}

/// How many cases differ.
async fn compare(args: &Args) -> Result<usize> {
    let mut cluster = None;
    let server = match &args.server {
        Some(kubeconfig) => Side::new(client(kubeconfig)?),
        None if args.dual_stack => {
            Side::new(cluster.insert(Cluster::start_dual_stack().await).admin())
        }
        None if args.all_versions => {
            Side::new(cluster.insert(Cluster::start_all_versions().await).admin())
        }
        None => Side::new(cluster.insert(Cluster::start().await).admin()),
    };
    server.prepare().await?;
    let reference = match &args.reference {
        Some(kubeconfig) => Some(Side::new(client(kubeconfig)?).noticing_late()),
        None => None,
    };
    if let Some(reference) = &reference {
        reference.prepare().await?;
    }
    let (mut run, mut different) = (0, 0);
    let own = match (args.dual_stack, args.all_versions) {
        (true, _) => dual_stack_directory(),
        (_, true) => all_versions_directory(),
        _ => directory(),
    };
    for corpus in corpora(args.corpus.as_deref().unwrap_or(&own))? {
        let chosen: Vec<&Case> = corpus
            .cases
            .iter()
            .filter(|case| args.chooses(&corpus, case))
            .collect();
        if !chosen.is_empty() {
            run += chosen.len();
            different += one(args, &corpus, &chosen, &server, reference.as_ref()).await?;
        }
    }
    println!("{run} cases, {different} differ");
    if let Some(cluster) = cluster {
        cluster.stop().await;
    }
    Ok(different)
}

async fn one(
    args: &Args,
    corpus: &Corpus,
    cases: &[&Case],
    server: &Side,
    reference: Option<&Side>,
) -> Result<usize> {
    let mut expected = Expected::read(corpus)?;
    let here = Runner::new(server, corpus);
    let there = reference.map(|side| Runner::new(side, corpus));
    here.set_up().await?;
    if let Some(there) = &there {
        there.set_up().await?;
    }
    let mut different = 0;
    for case in cases {
        let (ours, theirs) = match &there {
            Some(there) => {
                let (ours, theirs) = tokio::join!(here.run(case), there.run(case));
                (ours?, Some(theirs?))
            }
            None => (here.run(case).await?, expected.answers(case)),
        };
        let Some(theirs) = theirs else {
            println!("\n{}: {}: nothing is recorded", corpus.name, case.name);
            different += 1;
            continue;
        };
        if args.record {
            expected.record(case, &theirs);
        }
        different += usize::from(print(args, corpus, case, &theirs, &ours));
    }
    if args.record {
        expected.write(corpus)?;
    }
    here.tear_down().await?;
    if let Some(there) = &there {
        there.tear_down().await?;
    }
    Ok(different)
}

/// Whether they differ.
fn print(
    args: &Args,
    corpus: &Corpus,
    case: &Case,
    theirs: &[Observation],
    ours: &[Observation],
) -> bool {
    let differ = theirs != ours;
    if !differ && !args.verbose {
        return false;
    }
    println!("\n{}: {}", corpus.name, case.name);
    for (step, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
        if args.verbose {
            println!("  step {step} reference {:#}", theirs.value());
        }
        for d in differences(&theirs.value(), &ours.value()) {
            let text = |side: Option<serde_json::Value>| {
                side.map_or("(absent)".to_owned(), |v| v.to_string())
            };
            println!("  step {step} {}", d.at);
            println!("    reference {}", text(d.left));
            println!("    here      {}", text(d.right));
        }
    }
    differ
}

impl Args {
    /// Bases are always run when something is recorded, since results are kept as differences
    /// from theirs.
    fn chooses(&self, corpus: &Corpus, case: &Case) -> bool {
        let name = format!("{}: {}", corpus.name, case.name);
        let chosen = |name: &str| {
            self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f.as_str()))
        };
        chosen(&name)
            || self.record
                && case.name.starts_with("bases/")
                && corpus
                    .cases
                    .iter()
                    .any(|c| chosen(&format!("{}: {}", corpus.name, c.name)))
    }
}

fn client(kubeconfig: &Path) -> Result<Client> {
    let directory = kubeconfig.parent().unwrap_or(Path::new("."));
    let config = Kubeconfig::read(kubeconfig)?.client_config(None, directory)?;
    Ok(Client::https(&config)?)
}

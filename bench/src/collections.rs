//! Many objects deleted at once: a collection, and a namespace that holds one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::stream::{StreamExt, TryStreamExt};
use http::Method;
use keelson_client::{Client, Kubeconfig};
use serde_json::json;

use crate::report::Report;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The kubeconfig with address and credentials [default: $KUBECONFIG or ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How many ConfigMaps of one kilobyte.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    objects: u32,
    /// How long a single step may take before the run fails.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1800))]
    patience_seconds: u64,
}

/// Creations in flight.
const WRITERS: usize = 64;

pub(crate) fn run(args: Args) -> Result<Report, String> {
    let path = args
        .kubeconfig
        .clone()
        .unwrap_or_else(Kubeconfig::default_path);
    let directory = path.parent().map(PathBuf::from).unwrap_or_default();
    let config = Kubeconfig::read(&path)
        .and_then(|file| file.client_config(None, &directory))
        .map_err(|error| error.to_string())?;
    let client = Client::https(&config).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let patience = Duration::from_secs(args.patience_seconds);
    runtime.block_on(async {
        let mut report = Report::new("collections");
        report.fact("objects", args.objects);
        let namespace = made(&client, args.objects).await?;
        let maps = format!("/api/v1/namespaces/{namespace}/configmaps");
        let collection = timed(patience, request(&client, Method::DELETE, &maps)).await?;
        report.figure(
            "delete_collection_s",
            "a collection is deleted",
            collection,
            "s",
        );
        let second = made(&client, args.objects).await?;
        let gone = timed(patience, until_gone(&client, &second)).await?;
        report.figure(
            "delete_namespace_s",
            "a namespace of them is gone",
            gone,
            "s",
        );
        timed(patience, until_gone(&client, &namespace)).await?;
        Ok(report)
    })
}

/// A namespace with as many ConfigMaps.
async fn made(client: &Client, objects: u32) -> Result<String, String> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "keelson-bench-"}});
    let created = client
        .request(Method::POST, "/api/v1/namespaces", Some(&namespace))
        .await
        .map_err(|error| format!("creating a namespace: {error}"))?;
    let name = created["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{name}/configmaps");
    let data = "x".repeat(1024);
    futures::stream::iter(0..objects)
        .map(|number| {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("m-{number}")}, "data": {"text": data}});
            let path = &path;
            async move { client.request(Method::POST, path, Some(&map)).await }
        })
        .buffer_unordered(WRITERS)
        .try_for_each(|_| async { Ok(()) })
        .await
        .map_err(|error| format!("creating a ConfigMap: {error}"))?;
    Ok(name.to_owned())
}

async fn request(client: &Client, method: Method, path: &str) -> Result<(), String> {
    let outcome = client.request(method, path, None).await;
    outcome
        .map(drop)
        .map_err(|error| format!("{path}: {error}"))
}

async fn until_gone(client: &Client, namespace: &str) -> Result<(), String> {
    let path = format!("/api/v1/namespaces/{namespace}");
    request(client, Method::DELETE, &path).await?;
    loop {
        match client.request(Method::GET, &path, None).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(format!("{path}: {error}")),
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn timed(
    patience: Duration,
    work: impl Future<Output = Result<(), String>>,
) -> Result<f64, String> {
    let started = Instant::now();
    match tokio::time::timeout(patience, work).await {
        Ok(outcome) => outcome.map(|()| started.elapsed().as_secs_f64()),
        Err(_) => Err(format!("not within {} s", patience.as_secs())),
    }
}

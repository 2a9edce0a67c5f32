//! An API server: what clients get out of it, each on a connection of its own.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use http::Method;
use http_body_util::BodyExt;
use keelson_client::{Client, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::bare::Bare;
use crate::report::Report;
use crate::statistics::{Samples, rate};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The kubeconfig with address and credentials [default: $KUBECONFIG or ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context to use [default: the current one].
    #[arg(long)]
    context: Option<String>,
    /// Another address than the kubeconfig's.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// How many ConfigMaps of one kilobyte.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    objects: u32,
    /// Clients with one request in flight each.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=512))]
    concurrency: u32,
    /// Watches opened for the fan-out, on a connection each.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    watches: u32,
    /// How long a single step may take before the run fails.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=1800))]
    patience_seconds: u64,
}

pub(crate) fn run(args: Args) -> Result<Report, String> {
    let path = args
        .kubeconfig
        .clone()
        .unwrap_or_else(Kubeconfig::default_path);
    let directory = path.parent().map(PathBuf::from).unwrap_or_default();
    let mut config = Kubeconfig::read(&path)
        .and_then(|file| file.client_config(args.context.as_deref(), &directory))
        .map_err(|error| error.to_string())?;
    if let Some(server) = &args.server {
        config.server.clone_from(server);
    }
    let target = Target::connect(&args, || {
        Client::https(&config).map_err(|error| error.to_string())
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let mut report = Report::new("API server");
        report.fact("server", config.server.as_str());
        report.fact("objects", args.objects);
        report.fact("concurrency", args.concurrency);
        report.fact("watches", args.watches);
        let run = Run::open(target, &args).await?;
        let outcome = tokio::select! {
            outcome = run.measure(&mut report) => outcome,
            _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
        };
        let closed = run.close().await;
        outcome.and(closed)?;
        Ok(report)
    })
}

/// The clients of one server, each with a connection of its own.
struct Target {
    clients: Vec<Client>,
    /// Those that watch.
    watchers: Vec<Client>,
}

impl Target {
    fn connect(args: &Args, client: impl Fn() -> Result<Client, String>) -> Result<Self, String> {
        let several = |count: u32| (0..count).map(|_| client()).collect::<Result<_, _>>();
        Ok(Self {
            clients: several(args.concurrency)?,
            watchers: several(args.watches)?,
        })
    }
}

struct Run {
    client: Client,
    target: Target,
    args: Args,
    namespace: String,
    objects: usize,
    patience: Duration,
    /// What the next updates write, so that each is a change.
    round: AtomicU32,
}

/// Figures of the server and of the bare one, a round each.
type Pair = [Vec<f64>; 2];

impl Run {
    async fn open(target: Target, args: &Args) -> Result<Self, String> {
        let client = target.clients.first().ok_or("no client")?.clone();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "keelson-bench-"}});
        let created = client
            .request(Method::POST, "/api/v1/namespaces", Some(&namespace))
            .await
            .map_err(|error| format!("creating a namespace: {error}"))?;
        let namespace = created["metadata"]["name"]
            .as_str()
            .ok_or("the namespace that was created has no name")?;
        Ok(Self {
            client,
            target,
            args: args.clone(),
            namespace: namespace.to_owned(),
            objects: args.objects as usize,
            patience: Duration::from_secs(args.patience_seconds),
            round: AtomicU32::new(1),
        })
    }

    async fn close(&self) -> Result<(), String> {
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let deleted = self.client.request(Method::DELETE, &path, None).await;
        deleted
            .map(drop)
            .map_err(|error| format!("deleting {path}: {error}"))
    }

    async fn measure(&self, report: &mut Report) -> Result<(), String> {
        self.requests(
            report,
            "create",
            "create",
            |client, path, index| async move {
                let body = config_map(index, 0);
                client.request(Method::POST, &path, Some(&body)).await
            },
        )
        .await?;
        self.requests(report, "get", "get", |client, path, index| async move {
            let path = format!("{path}/{}", name(index));
            client.request(Method::GET, &path, None).await
        })
        .await?;
        self.lists(report).await?;
        let events = self.fan_out(&self.target).await?;
        let what = format!("watch events, {} watches", self.args.watches);
        report.figure("watch_events_per_second", &what, events, "/s");
        self.beside_bare(report).await
    }

    /// The reads once more, in turns with a server that only sends, so that both meet the same
    /// noise. Answers are read and not decoded.
    async fn beside_bare(&self, report: &mut Report) -> Result<(), String> {
        const ROUNDS: usize = 5;
        const LISTS: usize = 20;
        let one = format!("{}/{}", self.path(), name(0));
        let object = read(&self.client, &one).await?;
        let list = read(&self.client, &self.path()).await?;
        let bare = Bare::start(&object, &list)?;
        let others = Target::connect(&self.args, || bare.client())?;
        // A list fills a core by itself; more readers would only measure the scheduler.
        let pair = self.target.clients.len().min(2);
        let (mut gets, mut lists, mut events) = <[Pair; 3]>::default().into();
        for round in 1..=ROUNDS {
            eprintln!("beside a bare server: round {round} of {ROUNDS}");
            let count = self.objects.max(1000);
            for (target, bare) in [(&self.target, false), (&others, true)] {
                let clients = &target.clients;
                gets[usize::from(bare)].push(self.reads(clients, count, false).await?);
                let few = &clients[..pair];
                lists[usize::from(bare)].push(self.reads(few, LISTS, true).await?);
                events[usize::from(bare)].push(self.fan_out(target).await?);
            }
        }
        for (key, [ours, bare]) in [("get", gets), ("list", lists), ("watch_events", events)] {
            let shares = ours
                .iter()
                .zip(&bare)
                .map(|(ours, bare)| 100.0 * ours / bare);
            let shares = Samples::new(shares.collect());
            let (Some(ours), Some(bare), Some(share)) =
                (Samples::new(ours), Samples::new(bare), shares)
            else {
                return Err(format!("{key}: no figures"));
            };
            let what = format!("{key} without decoding");
            report.median(&format!("raw_{key}_per_second"), &what, &ours, "/s");
            let what = format!("{key} from a bare server");
            report.median(&format!("bare_{key}_per_second"), &what, &bare, "/s");
            let what = format!("{key}, share of the bare server's rate");
            report.median(&format!("{key}_of_bare_percent"), &what, &share, "%");
        }
        Ok(())
    }

    /// Reads a second, of single objects or of the whole list.
    async fn reads(&self, clients: &[Client], count: usize, list: bool) -> Result<f64, String> {
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        let workers = clients.iter().map(|client| async {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok::<_, String>(());
                }
                let path = match list {
                    true => self.path(),
                    false => format!("{}/{}", self.path(), name(index % self.objects)),
                };
                drain(client, &path).await?;
            }
        });
        self.bounded("reading", try_join_all(workers)).await?;
        Ok(rate(count, started.elapsed()))
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/configmaps", self.namespace)
    }

    /// One request for every object, `concurrency` at a time.
    async fn requests<F>(
        &self,
        report: &mut Report,
        key: &str,
        what: &str,
        request: impl Fn(Client, String, usize) -> F + Copy,
    ) -> Result<(), String>
    where
        F: Future<Output = keelson_client::Result<Value>>,
    {
        eprintln!("{what}: {} objects", self.objects);
        let next = AtomicUsize::new(0);
        let started = Instant::now();
        let workers = self.target.clients.iter().map(|client| async {
            let mut times = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.objects {
                    return Ok::<_, String>(times);
                }
                let asked = Instant::now();
                request(client.clone(), self.path(), index)
                    .await
                    .map_err(|error| format!("{what}: {error}"))?;
                times.push(asked.elapsed());
            }
        });
        let times = self.bounded(what, try_join_all(workers)).await?.concat();
        let elapsed = started.elapsed();
        let rate = rate(times.len(), elapsed);
        report.figure(&format!("{key}_per_second"), what, rate, "/s");
        if let Some(samples) = Samples::of_durations_ms(&times) {
            report.latency(key, what, &samples);
        }
        Ok(())
    }

    async fn lists(&self, report: &mut Report) -> Result<(), String> {
        const LISTS: usize = 20;
        eprintln!("list: {LISTS} times {} objects", self.objects);
        let path = self.path();
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..LISTS {
            let asked = Instant::now();
            let list = drain(&self.client, &path);
            size = self.bounded("list", list).await?;
            times.push(asked.elapsed());
        }
        let total: Duration = times.iter().sum();
        let megabytes = size as f64 * LISTS as f64 / 1e6;
        if let Some(samples) = Samples::of_durations_ms(&times) {
            let what = format!("list of {} objects", self.objects);
            report.median("list_ms", &what, &samples, "ms");
        }
        let value = megabytes / total.as_secs_f64().max(f64::EPSILON);
        report.figure("list_megabytes_per_second", "list, volume", value, "MB/s");
        Ok(())
    }

    /// Updates of objects, each seen by every watch; returns events a second.
    async fn fan_out(&self, target: &Target) -> Result<f64, String> {
        let updates = self.objects.min(500);
        let watches = target.watchers.len();
        eprintln!("watch: {watches} watches, {updates} updates");
        let client = target.clients.first().ok_or("no client")?;
        let path = format!("{}?limit=1", self.path());
        let list = client.request(Method::GET, &path, None).await;
        let list = list.map_err(|error| format!("list: {error}"))?;
        let version = list["metadata"]["resourceVersion"]
            .as_str()
            .ok_or("the list has no resourceVersion")?;
        let expected = updates * watches;
        let tally = Arc::new(Tally::default());
        let path = format!("{}?watch=1&resourceVersion={version}", self.path());
        let opening = target
            .watchers
            .iter()
            .map(|client| client.raw(Method::GET, &path, None, None, "application/json"));
        let opened = self
            .bounded("opening watches", async {
                try_join_all(opening)
                    .await
                    .map_err(|error| format!("watch: {error}"))
            })
            .await?;
        let readers: Vec<_> = opened
            .into_iter()
            .map(|response| {
                let tally = Arc::clone(&tally);
                tokio::spawn(async move { tally.count(response.into_body(), expected).await })
            })
            .collect();
        let started = Instant::now();
        let outcome = self
            .bounded("watch", async {
                self.update(&target.clients, updates).await?;
                tally.all_seen.notified().await;
                Ok(())
            })
            .await;
        let elapsed = started.elapsed();
        for reader in &readers {
            reader.abort();
        }
        join_all(readers).await;
        outcome.map_err(|error| {
            let seen = tally.events.load(Ordering::Relaxed);
            format!("{error} ({seen} of {expected} events seen)")
        })?;
        Ok(rate(expected, elapsed))
    }

    /// Writes objects with something new in them.
    async fn update(&self, clients: &[Client], updates: usize) -> Result<(), String> {
        let next = AtomicUsize::new(0);
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let workers = clients.iter().map(|client| async {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= updates {
                    return Ok::<_, String>(());
                }
                let path = format!("{}/{}", self.path(), name(index));
                let body = config_map(index, round);
                client
                    .request(Method::PUT, &path, Some(&body))
                    .await
                    .map_err(|error| format!("update: {error}"))?;
            }
        });
        try_join_all(workers).await.map(drop)
    }

    async fn bounded<T>(
        &self,
        what: &str,
        step: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let late = || format!("{what}: not done within {} s", self.patience.as_secs());
        tokio::time::timeout(self.patience, step)
            .await
            .map_err(|_| late())?
    }
}

/// Reads an answer to its end without keeping it; returns its size in bytes.
async fn drain(client: &Client, path: &str) -> Result<usize, String> {
    let response = client.raw(Method::GET, path, None, None, "application/json");
    let mut body = response
        .await
        .map_err(|error| format!("{path}: {error}"))?
        .into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("{path}: {error}"))?;
        size += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(size)
}

async fn read(client: &Client, path: &str) -> Result<Bytes, String> {
    let response = client.raw(Method::GET, path, None, None, "application/json");
    let body = response
        .await
        .map_err(|error| format!("{path}: {error}"))?
        .into_body();
    let whole = body.collect().await;
    whole
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| format!("{path}: {error}"))
}

/// What all watches together have seen.
#[derive(Default)]
struct Tally {
    events: AtomicUsize,
    all_seen: Notify,
}

impl Tally {
    /// An event is a line. Bookmarks are sent only to those who ask.
    async fn count(&self, mut body: keelson_client::Body, expected: usize) {
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else {
                continue;
            };
            let lines = data.iter().filter(|byte| **byte == b'\n').count();
            if self.events.fetch_add(lines, Ordering::Relaxed) + lines >= expected {
                self.all_seen.notify_one();
            }
        }
    }
}

fn name(index: usize) -> String {
    format!("object-{index:06}")
}

/// About one kilobyte; rounds differ, so that an update is a change.
fn config_map(index: usize, round: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name(index), "labels": {"app": "bench"}},
        "data": {"round": round.to_string(), "payload": "x".repeat(1000)},
    })
}

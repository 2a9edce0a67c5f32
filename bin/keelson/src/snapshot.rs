//! `keelson snapshot`: the whole state of a cluster as a file, and a new data directory of it.

use std::io::Write;
use std::path::Path;

use bytes::Bytes;
use http_body_util::BodyExt;
use keelson_client::{Client, Kubeconfig, Replacement, causes};
use keelson_store::snapshot::{self, Summary};
use serde_json::json;

use crate::args::{Output, SnapshotAction, SnapshotArgs};
use crate::instance::{Instance, Record};
use crate::{closed, server, store};

/// A restored store goes on far beyond the revisions that the lost one may have reached since, so
/// that no client takes a new object for one it has seen. etcd's documentation advises the same.
const REVISION_BUMP: u64 = 1_000_000_000;

pub(crate) fn run(args: SnapshotArgs) -> Result<(), String> {
    let instance = Instance::new(&args.on.data_dir)?;
    let summary = match &args.action {
        SnapshotAction::Save { file, .. } => {
            server::runtime()?.block_on(save(&args, &instance, file))?
        }
        SnapshotAction::Restore { file } => restore(&instance, file)?,
        SnapshotAction::Status { file } => {
            snapshot::verify(file).map_err(|error| causes(&error))?
        }
    };
    print(&summary, args.on.output)
}

async fn save(args: &SnapshotArgs, instance: &Instance, file: &Path) -> Result<Summary, String> {
    let SnapshotAction::Save { etcd, .. } = &args.action else {
        return Err("nothing to save".to_owned());
    };
    let server = instance
        .running()
        .filter(|_| etcd.etcd_endpoints.is_empty());
    if server.is_none() && etcd.etcd_endpoints.is_empty() && !closed::has_store(&instance.data_dir)
    {
        // Opening it would make an empty one, which the next start would take for the cluster's.
        return Err(format!(
            "there is no store in {}: name the server's directory with --data-dir, or its etcd with --etcd-endpoints",
            instance.data_dir.display()
        ));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut new = Replacement::begin(file).map_err(failed)?;
    match &server {
        Some(record) => from_server(instance, record, new.file()).await?,
        None => from_store(&store::open(etcd, instance).await?, new.file()).await?,
    }
    let summary = snapshot::verify(new.path()).map_err(|error| causes(&error))?;
    new.commit().map_err(failed)?;
    Ok(summary)
}

async fn from_store(
    store: &keelson_store::SharedStore,
    out: &mut std::fs::File,
) -> Result<(), String> {
    let pieces = snapshot::take(store)
        .await
        .map_err(|error| causes(&error))?;
    let mut out = std::io::BufWriter::new(out);
    for piece in pieces {
        out.write_all(&piece).map_err(|error| error.to_string())?;
    }
    out.flush().map_err(|error| error.to_string())
}

/// A server that runs is asked, as its administrator.
async fn from_server(
    instance: &Instance,
    record: &Record,
    out: &mut std::fs::File,
) -> Result<(), String> {
    let kubeconfig = instance.admin_kubeconfig();
    let config = Kubeconfig::read(&kubeconfig)
        .and_then(|file| file.client_config(None, &instance.data_dir))
        .map_err(|error| format!("{}: {error}", kubeconfig.display()))?;
    let client = Client::https(&config).map_err(|error| causes(&error))?;
    let request = http::Request::get("/keelson/snapshot")
        .body(Bytes::new())
        .map_err(|error| error.to_string())?;
    let answer = client
        .call(request)
        .await
        .map_err(|error| format!("asking {}: {}", record.server, causes(&error)))?;
    let code = answer.status();
    let mut body = answer.into_body();
    if code != http::StatusCode::OK {
        return Err(format!("{} answered {code}", record.server));
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("reading from {}: {error}", record.server))?;
        if let Ok(data) = frame.into_data() {
            out.write_all(&data).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn restore(instance: &Instance, file: &Path) -> Result<Summary, String> {
    if let Some(record) = instance.running() {
        return Err(format!(
            "a server (process {}) runs on {}: stop it first",
            record.pid,
            instance.data_dir.display()
        ));
    }
    // Certificates of another cluster would win over those of the snapshot.
    for part in ["store/store.redb", "pki"] {
        let path = instance.data_dir.join(part);
        if path.exists() {
            return Err(format!(
                "{} is there already: move it away, or restore to another --data-dir",
                path.display()
            ));
        }
    }
    snapshot::restore(file, &instance.data_dir.join("store"), REVISION_BUMP)
        .map_err(|error| causes(&error))
}

fn print(summary: &Summary, output: Output) -> Result<(), String> {
    let Summary {
        revision,
        keys,
        size_bytes,
        hash,
    } = summary;
    match output {
        Output::Json => {
            let facts = json!({"revision": revision, "keys": keys, "sizeBytes": size_bytes, "sha256": hash});
            let text = serde_json::to_string_pretty(&facts).map_err(|error| error.to_string())?;
            println!("{text}");
        }
        Output::Text => {
            println!("revision  {revision}");
            println!("keys      {keys}");
            println!("size      {size_bytes} bytes");
            println!("sha256    {hash}");
        }
    }
    Ok(())
}

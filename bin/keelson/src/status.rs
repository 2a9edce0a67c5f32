//! `keelson status`: what runs, whether it is healthy, and why not.

use http::Method;
use keelson_client::{Client, Kubeconfig};
use serde::Serialize;
use serde_json::Value;

use crate::args::{Output, StatusArgs};
use crate::instance::Instance;
use crate::server;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    running: bool,
    pid: Option<u32>,
    server: Option<String>,
    version: Option<String>,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: String,
    healthy: bool,
    message: String,
}

impl Check {
    fn new(name: impl Into<String>, result: Result<String, String>) -> Self {
        let healthy = result.is_ok();
        Self {
            name: name.into(),
            healthy,
            message: result.unwrap_or_else(|message| message),
        }
    }
}

pub(crate) fn run(args: &StatusArgs) -> Result<(), String> {
    let instance = Instance::new(&args.instance.data_dir)?;
    let report = server::runtime()?.block_on(gather(&instance));
    match args.output {
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?
        ),
        Output::Text => print(&instance, &report),
    }
    let sick: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| !check.healthy)
        .map(|check| check.name.as_str())
        .collect();
    match (report.running, sick.is_empty()) {
        (true, true) => Ok(()),
        (true, false) => Err(format!("not healthy: {}", sick.join(", "))),
        (false, _) => Err(format!(
            "no server runs on {}: start one with `keelson up`, or name another --data-dir",
            instance.data_dir.display()
        )),
    }
}

fn print(instance: &Instance, report: &Report) {
    if let (Some(pid), Some(server)) = (report.pid, &report.server) {
        println!(
            "keelson {} runs as process {pid}",
            report.version.as_deref().unwrap_or("?")
        );
        println!("  server    {server}");
        println!("  data      {}", instance.data_dir.display());
    }
    for check in &report.checks {
        let mark = if check.healthy { "ok  " } else { "FAIL" };
        println!("  {mark}  {:<28} {}", check.name, check.message);
    }
}

async fn gather(instance: &Instance) -> Report {
    let mut report = Report {
        running: false,
        pid: None,
        server: None,
        version: None,
        checks: Vec::new(),
    };
    let Some(record) = instance.running() else {
        return report;
    };
    report.running = true;
    report.pid = Some(record.pid);
    report.server = Some(record.server);
    let client = Kubeconfig::read(&instance.admin_kubeconfig())
        .and_then(|file| file.client_config(None, &instance.data_dir))
        .and_then(|config| Client::https(&config));
    let client = match client {
        Ok(client) => client,
        Err(error) => {
            report
                .checks
                .push(Check::new("admin kubeconfig", Err(error.to_string())));
            return report;
        }
    };
    match client.request(Method::GET, "/version", None).await {
        Ok(version) => report.version = version["gitVersion"].as_str().map(str::to_owned),
        Err(error) => {
            report
                .checks
                .push(Check::new("API server", Err(error.to_string())));
            return report;
        }
    }
    let ready = client.raw(Method::GET, "/readyz", None, None, "*/*").await;
    let ready = ready
        .map(|_| "ready".to_owned())
        .map_err(|error| error.to_string());
    report.checks.push(Check::new("API server", ready));
    match client.request(Method::GET, "/api/v1/nodes", None).await {
        Ok(nodes) => report
            .checks
            .extend(nodes["items"].as_array().into_iter().flatten().map(node)),
        Err(error) => report
            .checks
            .push(Check::new("nodes", Err(error.to_string()))),
    }
    if let Ok(pods) = client.request(Method::GET, "/api/v1/pods", None).await {
        let pods = pods["items"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let running = pods
            .iter()
            .filter(|pod| pod["status"]["phase"] == "Running")
            .count();
        report.checks.push(Check::new(
            "pods",
            Ok(format!("{running} of {} run", pods.len())),
        ));
    }
    report
}

fn node(node: &Value) -> Check {
    let conditions = node["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready");
    let result = match ready {
        Some(ready) if ready["status"] == "True" => Ok("ready".to_owned()),
        Some(ready) => Err(ready["message"].as_str().unwrap_or("not ready").to_owned()),
        None => Err("reports no condition".to_owned()),
    };
    Check::new(
        format!(
            "node {}",
            node["metadata"]["name"].as_str().unwrap_or_default()
        ),
        result,
    )
}

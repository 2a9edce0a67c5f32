//! `keelson up`: a cluster in the foreground, with progress on the terminal.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_client::Kubeconfig;

use crate::args::ServerArgs;
use crate::instance::Instance;
use crate::{check, components, ready, server};

/// Long enough for a slow disk; a healthy machine needs about a second.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: ServerArgs) -> Result<(), String> {
    let started = Instant::now();
    server::logging(args.log_level.as_deref().unwrap_or("error"))?;
    let instance = Instance::new(&args.instance.data_dir)?;
    let kubeconfig = args
        .kubeconfig
        .clone()
        .unwrap_or_else(Kubeconfig::default_path);
    check::run(&args, &instance, &kubeconfig)?;
    let is_new = check::is_new(&args, &instance);
    server::runtime()?.block_on(async {
        let say = |what: &str| println!("{:>6.2}s  {what}", started.elapsed().as_secs_f64());
        say(&format!(
            "Keelson {} starts in {}",
            env!("CARGO_PKG_VERSION"),
            instance.data_dir.display()
        ));
        if is_new {
            say("No cluster lives there yet: this is a new one");
        }
        let cluster = components::start(&args, &instance).await?;
        say(&format!("API server answers at {}", cluster.server_url()));
        cluster.write_kubeconfig(&kubeconfig)?;
        if let Some(node) = cluster.node_name() {
            let waited = tokio::time::timeout(PATIENCE, async {
                ready::node(&cluster, node).await;
                say(&format!("Node {node} is Ready"));
                ready::dns(&cluster).await;
                say(&format!("DNS answers at {}", cluster.dns_ip()));
            });
            if waited.await.is_err() {
                let reason = ready::why_not(&cluster, node).await;
                server::stop(cluster).await;
                return Err(format!(
                    "the cluster was not ready after {} s: {reason}",
                    PATIENCE.as_secs()
                ));
            }
        }
        next_steps(&kubeconfig);
        server::wait_for_signal().await?;
        println!();
        say(
            "stopping; pods keep running: `keelson up` finds them again, `keelson down` stops them",
        );
        server::stop(cluster).await;
        Ok(())
    })
}

fn next_steps(kubeconfig: &Path) {
    let default = kubeconfig == Kubeconfig::default_path();
    let flag = if default {
        String::new()
    } else {
        format!(" --kubeconfig {}", kubeconfig.display())
    };
    println!();
    println!(
        "The cluster is ready; its context is in {}. In another terminal:",
        kubeconfig.display()
    );
    println!(
        "  kubectl{flag} create deployment hello --image localhost/keelson/hello --replicas 3"
    );
    println!("  kubectl{flag} get pods -o wide");
    println!("No kubectl? `keelson kubectl` takes the same arguments. Ctrl-C ends the server.");
}

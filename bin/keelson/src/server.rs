//! `keelson server`: the parts as a service, until SIGTERM or SIGINT.

use tokio::signal::unix::{SignalKind, signal};

use crate::args::ServerArgs;
use crate::check;
use crate::components::{self, Cluster};
use crate::instance::Instance;

pub(crate) fn run(args: ServerArgs) -> Result<(), String> {
    logging(args.log_level.as_deref().unwrap_or("info"))?;
    let instance = Instance::new(&args.instance.data_dir)?;
    let kubeconfig = args
        .kubeconfig
        .clone()
        .unwrap_or_else(|| instance.admin_kubeconfig());
    check::run(&args, &instance, &kubeconfig)?;
    let is_new = check::is_new(&args, &instance);
    if is_new {
        tracing::info!(data_dir = %instance.data_dir.display(), "no cluster lives there yet: this is a new one");
    }
    runtime()?.block_on(async {
        let cluster = components::start(&args, &instance).await?;
        cluster.write_kubeconfig(&kubeconfig)?;
        tracing::info!(server = cluster.server_url(), kubeconfig = %kubeconfig.display(), "serving");
        wait_for_signal().await?;
        stop(cluster).await;
        Ok(())
    })
}

pub(crate) async fn stop(cluster: Cluster) {
    cluster.shutdown().await;
}

pub(crate) async fn wait_for_signal() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("listening for signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(
            std::thread::available_parallelism()
                .map_or(2, usize::from)
                .clamp(2, 16),
        )
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(3))
        .thread_stack_size(1 << 20)
        .build()
        .map_err(|error| format!("starting the runtime: {error}"))
}

pub(crate) fn logging(level: &str) -> Result<(), String> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(level)
        .map_err(|error| format!("--log-level {level:?}: {error}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

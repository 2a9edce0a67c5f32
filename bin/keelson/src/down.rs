//! `keelson down`: ends the server if it runs, then everything it left on the machine.

use std::path::Path;
use std::time::{Duration, Instant};

use keelson_client::Kubeconfig;
use keelson_linux::{BridgeNetwork, NetworkConfig, NftRules, PacketRulesConfig};
use keelson_ports::{PacketRules, PodNetwork};

use crate::args::DownArgs;
use crate::instance::{Instance, Record, start_ticks};
use crate::server;

const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn run(args: &DownArgs) -> Result<(), String> {
    let instance = Instance::new(&args.instance.data_dir)?;
    if !rustix::process::geteuid().is_root() {
        return Err("cleaning the host needs root: use sudo".to_owned());
    }
    if let Some(record) = instance.running() {
        end(&record)?;
    }
    server::runtime()?.block_on(clean(&instance))?;
    remove_dir(&instance.run_dir)?;
    instance.remove_empty_run_dirs();
    if args.purge {
        let kubeconfig = args
            .kubeconfig
            .clone()
            .unwrap_or_else(Kubeconfig::default_path);
        forget_context(&instance, &kubeconfig)?;
        remove_dir(&instance.data_dir)?;
    }
    println!(
        "The host is clean{}.",
        if args.purge {
            "; the data are gone too"
        } else {
            "; the data are kept"
        }
    );
    Ok(())
}

fn end(record: &Record) -> Result<(), String> {
    let Some(pid) = i32::try_from(record.pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return Ok(());
    };
    let deadline = Instant::now() + PATIENCE;
    let mut signal = rustix::process::Signal::TERM;
    while start_ticks(record.pid) == Some(record.start_ticks) {
        if Instant::now() > deadline {
            signal = rustix::process::Signal::KILL;
        }
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(format!("ending process {}: {error}", record.pid)),
        }
        if Instant::now() > deadline + PATIENCE {
            return Err(format!("process {} does not end", record.pid));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

async fn clean(instance: &Instance) -> Result<(), String> {
    let failed = |what: &'static str| move |error: keelson_ports::Error| format!("{what}: {error}");
    keelson_linux::purge(
        &instance.run_dir,
        &instance.cgroup_root(),
        &instance.data_dir,
    )
    .await
    .map_err(failed("stopping containers"))?;
    let packets = NftRules::new(PacketRulesConfig {
        table: instance.table(),
        ..PacketRulesConfig::default()
    });
    packets
        .clear()
        .await
        .map_err(failed("removing packet rules"))?;
    let network = BridgeNetwork::open(NetworkConfig {
        bridge: instance.bridge(),
        table: format!("{}-pods", instance.table()),
        ..NetworkConfig::new(instance.run_dir.clone())
    })
    .map_err(failed("opening the pod network"))?;
    network
        .teardown_node()
        .await
        .map_err(failed("removing the pod network"))
}

fn remove_dir(path: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the context out of a kubeconfig if it is this instance's: contexts of other instances have
/// the same name and another authority.
fn forget_context(instance: &Instance, path: &Path) -> Result<(), String> {
    let (Ok(own), Ok(mut file)) = (
        Kubeconfig::read(&instance.admin_kubeconfig()),
        Kubeconfig::read(path),
    ) else {
        return Ok(());
    };
    let authority = |file: &Kubeconfig| {
        let cluster = file
            .clusters
            .iter()
            .find(|cluster| cluster.name == crate::components::NAME)?;
        cluster.cluster.get("certificate-authority-data").cloned()
    };
    if authority(&own).is_some() && authority(&own) == authority(&file) {
        file.remove(crate::components::NAME);
        file.write(path).map_err(|error| error.to_string())?;
    }
    Ok(())
}

//! What must hold before anything starts, with a remedy in every message.

use std::net::TcpListener;
use std::path::Path;

use keelson_client::Replacement;

use crate::args::ServerArgs;
use crate::closed;
use crate::instance::Instance;

pub(crate) fn run(args: &ServerArgs, instance: &Instance, kubeconfig: &Path) -> Result<(), String> {
    unsupported(args)?;
    args.node.check()?;
    if let Some(record) = instance.running() {
        return Err(format!(
            "the data directory {} is in use by process {}: stop it (`keelson down --data-dir {0}` also cleans up), \
             or choose another --data-dir",
            instance.data_dir.display(),
            record.pid
        ));
    }
    port_free("--port", args.bind_address, args.port)?;
    Replacement::check(kubeconfig)
        .map_err(|error| format!("--kubeconfig {}: {error}", kubeconfig.display()))?;
    if args.etcd.etcd_endpoints.is_empty() {
        closed::store_is_there(&instance.data_dir)?;
    }
    if args.no_node {
        return closed::directories(instance);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(
            "running containers needs root: use sudo, or --no-node for a control plane alone"
                .to_owned(),
        );
    }
    port_free("--kubelet-port", args.bind_address, args.kubelet_port)?;
    overlayfs()?;
    closed::directories(instance)
}

/// Whether this start makes a new cluster, which is to be said aloud: somebody may have named the
/// wrong directory.
pub(crate) fn is_new(args: &ServerArgs, instance: &Instance) -> bool {
    args.etcd.etcd_endpoints.is_empty() && !closed::has_store(&instance.data_dir)
}

fn unsupported(args: &ServerArgs) -> Result<(), String> {
    if args.runtime_endpoint.is_some() {
        return Err(
            "--runtime-endpoint is not available in this version: leave it out to use the built-in runtime".to_owned()
        );
    }
    Ok(())
}

fn port_free(flag: &str, address: std::net::IpAddr, port: u16) -> Result<(), String> {
    TcpListener::bind((address, port)).map(drop).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("port {port} is in use by another program: stop it, or choose another port with {flag}")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine: choose another --bind-address")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("port {port} needs more privileges: use sudo, or choose a port above 1023 with {flag}")
        }
        _ => format!("listening on {address}:{port}: {error}"),
    })
}

fn overlayfs() -> Result<(), String> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"))
    {
        return Ok(());
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if Path::new("/lib/modules")
        .join(release.trim())
        .join("kernel/fs/overlayfs")
        .exists()
    {
        return Err("the overlay file system is not loaded: run `modprobe overlay`".to_owned());
    }
    Err("this kernel has no overlay file system, which container images need: use a kernel with CONFIG_OVERLAY_FS".to_owned())
}

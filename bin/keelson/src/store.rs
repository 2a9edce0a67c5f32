//! Where state is kept: the embedded store, or an etcd cluster.

use std::path::Path;

use keelson_client::causes;
use keelson_store::{SharedStore, embedded, etcd};

use crate::args::EtcdArgs;
use crate::instance::Instance;

pub(crate) async fn open(args: &EtcdArgs, instance: &Instance) -> Result<SharedStore, String> {
    let EtcdArgs {
        etcd_endpoints,
        etcd_cafile,
        etcd_certfile,
        etcd_keyfile,
        etcd_prefix,
    } = args;
    if etcd_endpoints.is_empty() {
        return embedded::open(&instance.data_dir.join("store")).map_err(|error| causes(&error));
    }
    let read = |flag: &str, file: &Path| {
        std::fs::read(file).map_err(|error| format!("{flag} {}: {error}", file.display()))
    };
    let ca_pem = match etcd_cafile {
        Some(file) => Some(read("--etcd-cafile", file)?),
        None => None,
    };
    let client_pem = match (etcd_certfile, etcd_keyfile) {
        (Some(certificate), Some(key)) => Some((
            read("--etcd-certfile", certificate)?,
            read("--etcd-keyfile", key)?,
        )),
        _ => None,
    };
    let options = etcd::Options {
        ca_pem,
        client_pem,
        prefix: etcd_prefix.clone(),
        ..etcd::Options::new(etcd_endpoints.clone())
    };
    etcd::connect(options).await.map_err(|error| {
        format!(
            "{}; check --etcd-endpoints and that etcd runs",
            causes(&error)
        )
    })
}

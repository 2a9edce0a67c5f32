//! The command line. A flag beats the YAML file given by `--config`, which beats the environment
//! (`KEELSON_` and the flag's name in capitals), which beats the default.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde_json::Value;

use crate::api_args::ApiServerArgs;
use crate::node_args::NodeArgs;
use crate::service_args::ServiceArgs;

/// Kubernetes in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "keelson",
    version,
    about,
    args_override_self = true,
    propagate_version = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a single-node cluster in the foreground and write a kubeconfig for it.
    ///
    /// Everything has a default. Containers keep running when this process ends, and are found
    /// again when it is started once more; `keelson down` stops them and cleans the host.
    #[command(args_override_self = true)]
    Up(ServerArgs),
    /// Run the control plane, and a node unless --no-node, as a long-running service.
    #[command(args_override_self = true)]
    Server(ServerArgs),
    /// Stop every pod and remove every process, mount, cgroup, network device and rule of this
    /// instance. Data are kept unless --purge.
    Down(DownArgs),
    /// Say what runs, whether it is healthy, and why not.
    Status(StatusArgs),
    /// Look after the node's images.
    Image(ImageArgs),
    /// Save the whole state of a cluster to a file, and make a new cluster of it.
    Snapshot(SnapshotArgs),
    /// The command line client; `kubectl` as a name of this binary is the same.
    #[command(disable_help_flag = true, trailing_var_arg = true)]
    Kubectl {
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceArgs {
    /// Where state is kept; several instances run side by side with different directories.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/keelson",
        env = "KEELSON_DATA_DIR"
    )]
    pub(crate) data_dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,
    /// Kubeconfig to write the admin's context into [default: $KUBECONFIG or ~/.kube/config for
    /// `up`, DATA_DIR/admin.kubeconfig for `server`].
    #[arg(long, value_name = "FILE", env = "KEELSON_KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Address the API server listens on.
    #[arg(
        long,
        value_name = "IP",
        default_value = "0.0.0.0",
        env = "KEELSON_BIND_ADDRESS"
    )]
    pub(crate) bind_address: IpAddr,
    /// Port the API server listens on.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 6443,
        env = "KEELSON_PORT"
    )]
    pub(crate) port: u16,
    /// Port the node agent listens on.
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10250,
        env = "KEELSON_KUBELET_PORT"
    )]
    pub(crate) kubelet_port: u16,
    /// Name of this node [default: the host's name].
    #[arg(long, value_name = "NAME", env = "KEELSON_NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// Run the control plane alone.
    #[arg(long, env = "KEELSON_NO_NODE")]
    pub(crate) no_node: bool,
    /// Run no controllers and no scheduler here: they are run elsewhere, against this API server.
    #[arg(long, env = "KEELSON_NO_CONTROLLERS")]
    pub(crate) no_controllers: bool,
    /// Addresses of the cluster's pods; every node gets a /24 of it.
    #[arg(
        long,
        value_name = "CIDR",
        default_value = "10.244.0.0/16",
        env = "KEELSON_POD_CIDR"
    )]
    pub(crate) pod_cidr: IpNet,
    #[command(flatten)]
    pub(crate) services: ServiceArgs,
    /// DNS domain of the cluster.
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "KEELSON_CLUSTER_DOMAIN"
    )]
    pub(crate) cluster_domain: String,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    /// Socket of an external CRI runtime, instead of the built-in one (not available yet).
    #[arg(long, value_name = "SOCKET", env = "KEELSON_RUNTIME_ENDPOINT")]
    pub(crate) runtime_endpoint: Option<String>,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) api: ApiServerArgs,
    /// YAML file with flags by their names: `port: 7443`.
    #[arg(long, value_name = "FILE", env = "KEELSON_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a tracing filter.
    #[arg(long, value_name = "LEVEL", env = "KEELSON_LOG_LEVEL")]
    pub(crate) log_level: Option<String>,
}

/// An etcd cluster to keep state in. Servers with the same endpoints and prefix are one cluster:
/// all of them serve, and one of them runs the controllers and the scheduler.
#[derive(Debug, Clone, Args)]
pub(crate) struct EtcdArgs {
    /// URLs of etcd's members (3.4 or later), instead of the embedded store.
    #[arg(
        long,
        value_name = "URL,…",
        value_delimiter = ',',
        env = "KEELSON_ETCD_ENDPOINTS"
    )]
    pub(crate) etcd_endpoints: Vec<String>,
    /// PEM file with the authorities that may sign etcd's certificates.
    #[arg(long, value_name = "FILE", env = "KEELSON_ETCD_CAFILE")]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// PEM file with the certificate to show to etcd.
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_keyfile",
        env = "KEELSON_ETCD_CERTFILE"
    )]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// PEM file with that certificate's key.
    #[arg(
        long,
        value_name = "FILE",
        requires = "etcd_certfile",
        env = "KEELSON_ETCD_KEYFILE"
    )]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// What objects' keys begin with in etcd; clusters that share an etcd have different ones.
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "/registry",
        env = "KEELSON_ETCD_PREFIX"
    )]
    pub(crate) etcd_prefix: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,
    /// Remove the data directory too: objects, images, certificates.
    #[arg(long)]
    pub(crate) purge: bool,
    /// Kubeconfig to take the context out of when purging.
    #[arg(long, value_name = "FILE", env = "KEELSON_KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) instance: InstanceArgs,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What every action of a verb takes, before or after the action's name.
#[derive(Debug, Clone, Args)]
pub(crate) struct ActionArgs {
    /// The instance's directory, where state is kept.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/keelson",
        env = "KEELSON_DATA_DIR",
        global = true
    )]
    pub(crate) data_dir: PathBuf,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Text, global = true)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArgs {
    #[command(flatten)]
    pub(crate) on: ActionArgs,
    #[command(subcommand)]
    pub(crate) action: ImageAction,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ImageAction {
    /// Pull an image from its registry.
    Pull {
        reference: String,
        /// `user:password` for the registry.
        #[arg(long, value_name = "USER:PASSWORD")]
        creds: Option<String>,
    },
    /// Import every image of an OCI or `docker save` archive; works while a server runs.
    Import { file: PathBuf },
    /// List the images of this node.
    List,
    /// Remove images by name or id.
    Remove { references: Vec<String> },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SnapshotArgs {
    #[command(flatten)]
    pub(crate) on: ActionArgs,
    #[command(subcommand)]
    pub(crate) action: SnapshotAction,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum SnapshotAction {
    /// Write every object, and the cluster's certificates and keys, to a file. Works while the
    /// server runs, which is not held up.
    Save {
        file: PathBuf,
        #[command(flatten)]
        etcd: EtcdArgs,
    },
    /// Make the embedded store of a data directory that has none; the next start on it is the
    /// cluster as it was saved, on this machine or another.
    Restore { file: PathBuf },
    /// Check a file and say what it holds.
    Status { file: PathBuf },
}

/// Puts the settings of the file that `--config` (or `KEELSON_CONFIG`) names in front of the flags
/// given, so that later ones win.
pub(crate) fn with_config_file(arguments: Vec<String>) -> Result<Vec<String>, String> {
    let Some(command) = arguments
        .get(1)
        .filter(|command| matches!(command.as_str(), "up" | "server"))
    else {
        return Ok(arguments);
    };
    let flag = arguments
        .iter()
        .enumerate()
        .find_map(|(index, argument)| match argument.as_str() {
            "--config" => arguments.get(index + 1).cloned(),
            _ => argument.strip_prefix("--config=").map(str::to_owned),
        });
    let Some(file) = flag.or_else(|| std::env::var("KEELSON_CONFIG").ok()) else {
        return Ok(arguments);
    };
    let text =
        std::fs::read_to_string(&file).map_err(|error| format!("--config {file}: {error}"))?;
    let settings: Option<serde_json::Map<String, Value>> =
        serde_saphyr::from_str(&text).map_err(|error| format!("--config {file}: {error}"))?;
    let mut merged = vec![arguments[0].clone(), command.clone()];
    for (name, value) in settings.unwrap_or_default() {
        match value {
            Value::Bool(true) => merged.push(format!("--{name}")),
            Value::Bool(false) | Value::Null => {}
            Value::String(text) => merged.push(format!("--{name}={text}")),
            Value::Number(number) => merged.push(format!("--{name}={number}")),
            Value::Array(list) => {
                let list: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
                merged.push(format!("--{name}={}", list.join(",")));
            }
            Value::Object(_) => {
                return Err(format!(
                    "--config {file}: {name} must be a plain value or a list"
                ));
            }
        }
    }
    merged.extend(arguments.into_iter().skip(2));
    Ok(merged)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> ServerArgs {
        let arguments = arguments
            .iter()
            .map(|argument| (*argument).to_owned())
            .collect();
        let arguments = with_config_file(arguments).unwrap();
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Up(args) | Command::Server(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let file = std::env::temp_dir().join(format!("keelson-args-{}.yaml", std::process::id()));
        std::fs::write(
            &file,
            "port: 7443\ncluster-domain: corp.test\nno-node: true\n",
        )
        .unwrap();
        let config = format!("--config={}", file.display());
        let args = parse(&["keelson", "server", &config, "--port", "8443"]);
        assert_eq!(
            (args.port, args.cluster_domain.as_str(), args.no_node),
            (8443, "corp.test", true)
        );
        assert_eq!(parse(&["keelson", "up"]).port, 6443);
        std::fs::write(&file, "prot: 7443\n").unwrap();
        let arguments = ["keelson".to_owned(), "up".to_owned(), config].to_vec();
        let error = Cli::try_parse_from(with_config_file(arguments).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("--prot"), "{error}");
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

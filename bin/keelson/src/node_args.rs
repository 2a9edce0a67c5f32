//! Settings of the node, by the kubelet's names.

use clap::Args;
use keelson_linux::LogLimits;
use keelson_machinery::quantity::Quantity;
use keelson_node::{NodeConfig, UnsafeSysctls};

#[derive(Debug, Clone, Args)]
pub(crate) struct NodeArgs {
    /// Kernel settings besides the safe ones that pods may ask for; `net.core.*` allows all that
    /// begin so.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        env = "KEELSON_ALLOWED_UNSAFE_SYSCTLS"
    )]
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    /// A container's log goes on in a new file at this size.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "10Mi",
        env = "KEELSON_CONTAINER_LOG_MAX_SIZE"
    )]
    pub(crate) container_log_max_size: String,
    /// Log files of a container that are kept, the newest among them; at least two.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(2..=100),
        env = "KEELSON_CONTAINER_LOG_MAX_FILES"
    )]
    pub(crate) container_log_max_files: u16,
}

impl NodeArgs {
    /// Refused before anything starts.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.sysctls()?;
        self.log_bytes().map(drop)
    }

    fn sysctls(&self) -> Result<UnsafeSysctls, String> {
        UnsafeSysctls::parse(&self.allowed_unsafe_sysctls)
            .map_err(|error| format!("--allowed-unsafe-sysctls: {error}"))
    }

    fn log_bytes(&self) -> Result<u64, String> {
        let text = &self.container_log_max_size;
        Quantity::parse(text)
            .ok()
            .and_then(|size| u64::try_from(size.value()).ok())
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| format!("--container-log-max-size {text:?}: write a size like 10Mi"))
    }

    /// The runtime's share of the settings.
    pub(crate) fn log_limits(&self) -> Result<LogLimits, String> {
        Ok(LogLimits {
            max_bytes: self.log_bytes()?,
            max_files: usize::from(self.container_log_max_files),
        })
    }

    pub(crate) fn apply(&self, config: &mut NodeConfig) -> Result<(), String> {
        config.allowed_unsafe_sysctls = self.sysctls()?;
        config.container_log_max_bytes = self.log_bytes()?;
        config.container_log_max_files = usize::from(self.container_log_max_files);
        Ok(())
    }
}

//! Flags of the API server's policies, under the names they have upstream.

use clap::Args;
use keelson_apiserver::Config;

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "API server policy")]
pub(crate) struct ApiServerArgs {
    /// Admission plugins to run besides the default ones.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) enable_admission_plugins: Vec<String>,
    /// Admission plugins not to run.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) disable_admission_plugins: Vec<String>,
}

impl ApiServerArgs {
    pub(crate) fn apply(&self, config: &mut Config) -> Result<(), String> {
        let Self {
            enable_admission_plugins,
            disable_admission_plugins,
        } = self.clone();
        config.enable_admission_plugins = enable_admission_plugins;
        config.disable_admission_plugins = disable_admission_plugins;
        Ok(())
    }
}

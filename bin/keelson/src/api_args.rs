//! Flags of the API server's policies, under the names they have upstream.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use keelson_apiserver::authn::{AuthenticationOptions, OidcFlags, WebhookOptions};
use keelson_apiserver::{AuditOptions, AuthorizationOptions, Config};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "API server policy")]
pub(crate) struct ApiServerArgs {
    /// Admission plugins to run besides the default ones.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) enable_admission_plugins: Vec<String>,
    /// Admission plugins not to run.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) disable_admission_plugins: Vec<String>,
    /// Whether requests without credentials are taken as system:anonymous.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub(crate) anonymous_auth: bool,
    /// AuthenticationConfiguration file: issuers of JWTs, and who may come without credentials;
    /// followed while running.
    #[arg(long, value_name = "FILE")]
    pub(crate) authentication_config: Option<PathBuf>,
    /// CSV file of tokens: token, user, uid, groups.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_auth_file: Option<PathBuf>,
    /// Kubeconfig of a service that knows tokens.
    #[arg(long, value_name = "FILE")]
    pub(crate) authentication_token_webhook_config_file: Option<PathBuf>,
    /// Version of the TokenReview sent to it.
    #[arg(long, value_name = "VERSION", default_value = "v1beta1", value_parser = ["v1", "v1beta1"])]
    pub(crate) authentication_token_webhook_version: String,
    /// Seconds that its answers are kept.
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub(crate) authentication_token_webhook_cache_ttl_seconds: u64,
    /// URL of an OpenID Connect issuer.
    #[arg(long, value_name = "URL", default_value = "")]
    pub(crate) oidc_issuer_url: String,
    /// The audience its tokens must be for.
    #[arg(long, value_name = "ID", default_value = "")]
    pub(crate) oidc_client_id: String,
    /// Claim that is the user's name.
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub(crate) oidc_username_claim: String,
    /// Prefix of user names, `-` for none [default: the issuer's URL and #, unless the claim is
    /// email].
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub(crate) oidc_username_prefix: String,
    /// Claim that holds the user's groups.
    #[arg(long, value_name = "CLAIM", default_value = "")]
    pub(crate) oidc_groups_claim: String,
    /// Prefix of groups.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub(crate) oidc_groups_prefix: String,
    /// PEM file of the authority that signed the issuer's certificate.
    #[arg(long, value_name = "FILE")]
    pub(crate) oidc_ca_file: Option<PathBuf>,
    /// Claims that must have a value.
    #[arg(long, value_name = "CLAIM=VALUE", value_delimiter = ',')]
    pub(crate) oidc_required_claim: Vec<String>,
    /// Who is asked whether a request is allowed, in this order: Node, RBAC, Webhook,
    /// AlwaysAllow, AlwaysDeny.
    #[arg(
        long,
        value_name = "MODE,…",
        value_delimiter = ',',
        default_value = "Node,RBAC"
    )]
    pub(crate) authorization_mode: Vec<String>,
    /// AuthorizationConfiguration file, instead of --authorization-mode; followed while running.
    #[arg(long, value_name = "FILE")]
    pub(crate) authorization_config: Option<PathBuf>,
    /// Kubeconfig of the service that the mode Webhook asks.
    #[arg(long, value_name = "FILE")]
    pub(crate) authorization_webhook_config_file: Option<PathBuf>,
    /// EncryptionConfiguration file: what is encrypted at rest, and how; followed while running.
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_provider_config: Option<PathBuf>,
    /// Audit policy file; nothing is recorded without one.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_policy_file: Option<PathBuf>,
    /// File that audit events are written to, `-` for the standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log_path: Option<String>,
    /// Days that old audit logs are kept; 0 keeps them.
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    pub(crate) audit_log_maxage: u32,
    /// Old audit logs that are kept; 0 keeps all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) audit_log_maxbackup: usize,
    /// Megabytes after which the audit log is put aside; 0 never does.
    #[arg(long, value_name = "MB", default_value_t = 100)]
    pub(crate) audit_log_maxsize: u64,
    /// Kubeconfig of a service that audit events are sent to.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_webhook_config_file: Option<PathBuf>,
    /// Events sent at once.
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub(crate) audit_webhook_batch_max_size: usize,
    /// Seconds that events wait for others to be sent with.
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub(crate) audit_webhook_batch_max_wait_seconds: u64,
    /// API versions and resources to serve besides the default ones, or not to serve:
    /// api/all, api/ga, api/beta, api/alpha, GROUP/VERSION or GROUP/VERSION/RESOURCE.
    #[arg(long, value_name = "KEY=true|false,…", value_delimiter = ',')]
    pub(crate) runtime_config: Vec<String>,
    /// Features to switch on or off, by upstream's names: CBORServingAndStorage, and the resources
    /// of ClusterTrustBundle, GenericWorkload, PodCertificateRequest, StorageVersionMigrator.
    #[arg(long, value_name = "NAME=true|false,…", value_delimiter = ',')]
    pub(crate) feature_gates: Vec<String>,
}

impl ApiServerArgs {
    pub(crate) fn apply(&self, config: &mut Config) -> Result<(), String> {
        let Self {
            enable_admission_plugins,
            disable_admission_plugins,
            anonymous_auth,
            authentication_config,
            token_auth_file,
            authentication_token_webhook_config_file,
            authentication_token_webhook_version,
            authentication_token_webhook_cache_ttl_seconds,
            oidc_issuer_url,
            oidc_client_id,
            oidc_username_claim,
            oidc_username_prefix,
            oidc_groups_claim,
            oidc_groups_prefix,
            oidc_ca_file,
            oidc_required_claim,
            authorization_mode,
            authorization_config,
            authorization_webhook_config_file,
            encryption_provider_config,
            audit_policy_file,
            audit_log_path,
            audit_log_maxage,
            audit_log_maxbackup,
            audit_log_maxsize,
            audit_webhook_config_file,
            audit_webhook_batch_max_size,
            audit_webhook_batch_max_wait_seconds,
            runtime_config,
            feature_gates,
        } = self.clone();
        config.enable_admission_plugins = enable_admission_plugins;
        config.disable_admission_plugins = disable_admission_plugins;
        config.runtime_config = runtime_config;
        config.feature_gates = feature_gates;
        let oidc_ca = match oidc_ca_file {
            Some(file) => Some(
                std::fs::read_to_string(&file)
                    .map_err(|error| format!("--oidc-ca-file {}: {error}", file.display()))?,
            ),
            None => None,
        };
        config.authentication = AuthenticationOptions {
            anonymous: anonymous_auth,
            config_file: authentication_config,
            token_file: token_auth_file,
            webhook: authentication_token_webhook_config_file.map(|config_file| WebhookOptions {
                config_file,
                version: authentication_token_webhook_version,
                cache_ttl: Duration::from_secs(authentication_token_webhook_cache_ttl_seconds),
            }),
            oidc: OidcFlags {
                issuer_url: oidc_issuer_url,
                client_id: oidc_client_id,
                username_claim: oidc_username_claim,
                username_prefix: oidc_username_prefix,
                groups_claim: oidc_groups_claim,
                groups_prefix: oidc_groups_prefix,
                certificate_authority: oidc_ca,
                required_claims: oidc_required_claim,
            },
            ..AuthenticationOptions::default()
        };
        config.authorization = AuthorizationOptions {
            modes: authorization_mode,
            config_file: authorization_config,
            webhook_config_file: authorization_webhook_config_file,
            ..AuthorizationOptions::default()
        };
        config.encryption_file = encryption_provider_config;
        config.audit = AuditOptions {
            policy_file: audit_policy_file,
            log_path: audit_log_path,
            log_max_age: audit_log_maxage,
            log_max_backups: audit_log_maxbackup,
            log_max_size: audit_log_maxsize,
            webhook_config_file: audit_webhook_config_file,
            webhook_batch_max_size: Some(audit_webhook_batch_max_size),
            webhook_batch_max_wait: Some(Duration::from_secs(audit_webhook_batch_max_wait_seconds)),
        };
        Ok(())
    }
}

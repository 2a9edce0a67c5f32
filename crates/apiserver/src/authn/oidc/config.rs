//! The configuration as it is written, in a file or by flags.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Configuration {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    pub(super) jwt: Vec<Jwt>,
    pub(super) anonymous: Option<Anonymous>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Jwt {
    #[serde(default)]
    pub(super) issuer: IssuerConfiguration,
    #[serde(default)]
    pub(super) claim_validation_rules: Vec<ClaimRule>,
    #[serde(default)]
    pub(super) claim_mappings: Mappings,
    #[serde(default)]
    pub(super) user_validation_rules: Vec<UserRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IssuerConfiguration {
    pub(super) url: String,
    #[serde(rename = "discoveryURL")]
    pub(super) discovery_url: Option<String>,
    /// PEM; the system's authorities when absent.
    pub(super) certificate_authority: Option<String>,
    pub(super) audiences: Vec<String>,
    pub(super) audience_match_policy: String,
    /// `controlplane` or `cluster`: a network to call the issuer through.
    pub(super) egress_selector_type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClaimRule {
    pub(super) claim: String,
    pub(super) required_value: String,
    pub(super) expression: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UserRule {
    pub(super) expression: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mappings {
    pub(super) username: Mapping,
    pub(super) groups: Mapping,
    pub(super) uid: UidMapping,
    pub(super) extra: Vec<ExtraMapping>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mapping {
    pub(super) claim: String,
    pub(super) prefix: Option<String>,
    pub(super) expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UidMapping {
    pub(super) claim: String,
    pub(super) expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExtraMapping {
    pub(super) key: String,
    pub(super) value_expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anonymous {
    #[serde(default)]
    pub(super) enabled: bool,
    #[serde(default)]
    pub(super) conditions: Vec<AnonymousCondition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnonymousCondition {
    pub(super) path: String,
}

impl Anonymous {
    pub(super) fn allows(&self, path: &str) -> bool {
        self.enabled
            && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

impl Configuration {
    /// From YAML. What it says is judged by [`super::validation`].
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let configuration: Self =
            serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let known = [
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1beta1",
            "apiserver.config.k8s.io/v1alpha1",
        ];
        if configuration.kind != "AuthenticationConfiguration"
            || !known.contains(&configuration.api_version.as_str())
        {
            return Err(format!(
                "expected an AuthenticationConfiguration of {}, found {} of {}",
                known[0], configuration.kind, configuration.api_version
            ));
        }
        Ok(configuration)
    }
}

/// The `--oidc-*` flags.
#[derive(Debug, Clone, Default)]
pub struct OidcFlags {
    pub issuer_url: String,
    pub client_id: String,
    pub username_claim: String,
    /// Empty for the default, `-` for none.
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    /// PEM.
    pub certificate_authority: Option<String>,
    /// `claim=value`.
    pub required_claims: Vec<String>,
}

impl OidcFlags {
    pub(super) fn is_set(&self) -> bool {
        !self.issuer_url.is_empty() || !self.client_id.is_empty()
    }

    /// No issuer when the flags name none.
    pub(super) fn configuration(&self) -> Result<Configuration, String> {
        let mut configuration = Configuration {
            api_version: String::new(),
            kind: String::new(),
            jwt: Vec::new(),
            anonymous: None,
        };
        if !self.is_set() {
            return Ok(configuration);
        }
        let claim = if self.username_claim.is_empty() {
            "sub"
        } else {
            &self.username_claim
        };
        // Names of an issuer's users are told from the cluster's own by the issuer's URL; mail
        // addresses speak for themselves.
        let prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            "" if claim == "email" => String::new(),
            "" => format!("{}#", self.issuer_url),
            given => given.to_owned(),
        };
        let rule = |text: &String| {
            let (claim, value) = text
                .split_once('=')
                .ok_or_else(|| format!("required claim {text:?} is not of the form claim=value"))?;
            Ok(ClaimRule {
                claim: claim.to_owned(),
                required_value: value.to_owned(),
                ..ClaimRule::default()
            })
        };
        configuration.jwt.push(Jwt {
            issuer: IssuerConfiguration {
                url: self.issuer_url.clone(),
                certificate_authority: self.certificate_authority.clone(),
                audiences: vec![self.client_id.clone()],
                ..IssuerConfiguration::default()
            },
            claim_validation_rules: self
                .required_claims
                .iter()
                .map(rule)
                .collect::<Result<_, String>>()?,
            claim_mappings: Mappings {
                username: Mapping {
                    claim: claim.to_owned(),
                    prefix: Some(prefix),
                    ..Mapping::default()
                },
                groups: Mapping {
                    claim: self.groups_claim.clone(),
                    prefix: Some(self.groups_prefix.clone()),
                    ..Mapping::default()
                },
                ..Mappings::default()
            },
            user_validation_rules: Vec::new(),
        });
        Ok(configuration)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn parse(jwt: &str) -> Result<Configuration, String> {
        Configuration::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n- {{{jwt}}}\n"
        ))
    }

    #[test]
    fn fields_that_are_unknown_are_refused() {
        let error = parse("issuer: {url: 'https://i'}, more: 1").unwrap_err();
        assert!(error.contains("more"), "{error}");
    }

    #[test]
    fn flags_come_down_to_a_configuration() {
        let mut flags = OidcFlags {
            issuer_url: "https://i".to_owned(),
            client_id: "c".to_owned(),
            required_claims: vec!["hd=x".to_owned()],
            ..OidcFlags::default()
        };
        let jwt = &flags.configuration().unwrap().jwt[0];
        assert_eq!(jwt.claim_mappings.username.claim, "sub");
        assert_eq!(
            jwt.claim_mappings.username.prefix.as_deref(),
            Some("https://i#")
        );
        assert_eq!(jwt.claim_validation_rules[0].required_value, "x");
        flags.username_claim = "email".to_owned();
        assert_eq!(
            flags.configuration().unwrap().jwt[0]
                .claim_mappings
                .username
                .prefix
                .as_deref(),
            Some("")
        );
        assert!(OidcFlags::default().configuration().unwrap().jwt.is_empty());
    }

    #[test]
    fn anonymous_may_be_for_some_paths_only() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}]}\n";
        let anonymous = Configuration::parse(text).unwrap().anonymous.unwrap();
        assert!(anonymous.allows("/livez") && !anonymous.allows("/api"));
    }
}

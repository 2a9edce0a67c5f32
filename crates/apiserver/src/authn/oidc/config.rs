//! The configuration as it is written, checked.

use std::collections::BTreeSet;

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
    pub(super) issuer: IssuerConfiguration,
    #[serde(default)]
    pub(super) claim_validation_rules: Vec<ClaimRule>,
    pub(super) claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct IssuerConfiguration {
    pub(super) url: String,
    #[serde(rename = "discoveryURL")]
    pub(super) discovery_url: Option<String>,
    /// PEM; the system's authorities when absent.
    pub(super) certificate_authority: Option<String>,
    pub(super) audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ClaimRule {
    #[serde(default)]
    pub(super) claim: String,
    #[serde(default)]
    pub(super) required_value: String,
    #[serde(default)]
    expression: String,
    #[serde(default, rename = "message")]
    _message: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserRule {
    expression: String,
    #[serde(default, rename = "message")]
    _message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mappings {
    pub(super) username: Mapping,
    #[serde(default)]
    pub(super) groups: Mapping,
    #[serde(default)]
    pub(super) uid: Mapping,
    #[serde(default)]
    extra: Vec<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Mapping {
    pub(super) claim: String,
    pub(super) prefix: Option<String>,
    expression: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Anonymous {
    enabled: bool,
    #[serde(default)]
    conditions: Vec<AnonymousCondition>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnonymousCondition {
    path: String,
}

impl Anonymous {
    pub(super) fn allows(&self, path: &str) -> bool {
        self.enabled
            && (self.conditions.is_empty() || self.conditions.iter().any(|c| c.path == path))
    }
}

const NO_CEL: &str = "this server does not evaluate expressions in authentication yet; use claims";

impl Configuration {
    /// From YAML; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let configuration: Self =
            serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let known = [
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1beta1",
        ];
        if configuration.kind != "AuthenticationConfiguration"
            || !known.contains(&configuration.api_version.as_str())
        {
            return Err(format!(
                "expected an AuthenticationConfiguration of {}, found {} of {}",
                known[0], configuration.kind, configuration.api_version
            ));
        }
        configuration.check()?;
        Ok(configuration)
    }

    fn check(&self) -> Result<(), String> {
        if self.jwt.len() > 64 {
            return Err(format!(
                "jwt: Too many: {}: must have at most 64 items",
                self.jwt.len()
            ));
        }
        let mut urls = BTreeSet::new();
        for (index, jwt) in self.jwt.iter().enumerate() {
            jwt.check()
                .map_err(|reason| format!("jwt[{index}].{reason}"))?;
            if !urls.insert(&jwt.issuer.url) {
                return Err(format!(
                    "jwt[{index}].issuer.url: Duplicate value: {:?}",
                    jwt.issuer.url
                ));
            }
        }
        match &self.anonymous {
            Some(anonymous) if !anonymous.enabled && !anonymous.conditions.is_empty() => Err(
                "anonymous.conditions: enabled should be set to true when conditions are defined"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

impl Jwt {
    fn check(&self) -> Result<(), String> {
        let issuer = &self.issuer;
        for (field, url) in [
            ("url", Some(&issuer.url)),
            ("discoveryURL", issuer.discovery_url.as_ref()),
        ] {
            if let Some(url) = url
                && !url.starts_with("https://")
            {
                return Err(format!(
                    "issuer.{field}: Invalid value: {url:?}: URL scheme must be https"
                ));
            }
        }
        if issuer.audiences.is_empty() || issuer.audiences.iter().any(String::is_empty) {
            return Err(
                "issuer.audiences: Required value: at least one jwt[].issuer.audiences is required"
                    .to_owned(),
            );
        }
        match issuer.audience_match_policy.as_str() {
            "MatchAny" => {}
            "" if issuer.audiences.len() == 1 => {}
            other => {
                return Err(format!(
                    "issuer.audienceMatchPolicy: Invalid value: {other:?}: audienceMatchPolicy must be MatchAny for multiple audiences"
                ));
            }
        }
        if let Some(rule) = self.user_validation_rules.first() {
            return Err(format!(
                "userValidationRules: {:?}: {NO_CEL}",
                rule.expression
            ));
        }
        for rule in &self.claim_validation_rules {
            if !rule.expression.is_empty() {
                return Err(format!(
                    "claimValidationRules: {:?}: {NO_CEL}",
                    rule.expression
                ));
            }
            if rule.claim.is_empty() {
                return Err(
                    "claimValidationRules: Required value: claim or expression is required"
                        .to_owned(),
                );
            }
        }
        let mappings = &self.claim_mappings;
        for (field, mapping) in [
            ("username", &mappings.username),
            ("groups", &mappings.groups),
            ("uid", &mappings.uid),
        ] {
            if !mapping.expression.is_empty() {
                return Err(format!("claimMappings.{field}.expression: {NO_CEL}"));
            }
            let needs_prefix = field != "uid" && !mapping.claim.is_empty();
            if needs_prefix && mapping.prefix.is_none() {
                return Err(format!(
                    "claimMappings.{field}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
                ));
            }
        }
        if !mappings.extra.is_empty() {
            return Err(format!("claimMappings.extra: {NO_CEL}"));
        }
        if mappings.username.claim.is_empty() {
            return Err(
                "claimMappings.username: Required value: claim or expression is required"
                    .to_owned(),
            );
        }
        Ok(())
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
                expression: String::new(),
                _message: String::new(),
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
        configuration.check()?;
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
    fn a_bad_configuration_is_refused_with_the_reason() {
        let issuer = "issuer: {url: 'https://i', audiences: [a]}";
        let username = "username: {claim: sub, prefix: ''}";
        assert!(parse(&format!("{issuer}, claimMappings: {{{username}}}")).is_ok());
        for (text, reason) in [
            (
                format!(
                    "issuer: {{url: 'http://i', audiences: [a]}}, claimMappings: {{{username}}}"
                ),
                "scheme must be https",
            ),
            (
                format!(
                    "issuer: {{url: 'https://i', audiences: [a, b]}}, claimMappings: {{{username}}}"
                ),
                "must be MatchAny",
            ),
            (
                format!("{issuer}, claimMappings: {{username: {{claim: sub}}}}"),
                "prefix is required",
            ),
            (
                format!("{issuer}, claimMappings: {{username: {{expression: claims.sub}}}}"),
                "expressions",
            ),
            (
                format!("{issuer}, claimMappings: {{{username}}}, more: 1"),
                "more",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
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

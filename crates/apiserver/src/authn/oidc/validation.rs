//! What an authentication configuration may say, and its expressions compiled. Pure.
//!
//! Fields, orders and words are those of upstream's validation of `AuthenticationConfiguration`.

use std::collections::BTreeSet;

use keelson_cel::Expression;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::validation::is_dns1123_subdomain;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::config::{Configuration, IssuerConfiguration, Jwt, Mapping};
use super::expressions::{Expressions, Problem, Rule, Subject};

const MAX_ISSUERS: usize = 64;
const BOTH: &str = "claim and expression can't both be set";
const NEITHER: &str = "claim or expression is required";
const UNVERIFIED_EMAIL: &str = "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression";

/// The expressions of every issuer, or all that is wrong. `reserved` are issuers that no token
/// from elsewhere may name: this server's own.
pub(super) fn validate(
    configuration: &Configuration,
    reserved: &[String],
) -> Result<Vec<Expressions>, Vec<FieldError>> {
    let root = Path::new("jwt");
    if configuration.jwt.len() > MAX_ISSUERS {
        let count = configuration.jwt.len();
        return Err(vec![FieldError::too_many(&root, count, MAX_ISSUERS)]);
    }
    let mut errors = Vec::new();
    let (mut urls, mut discovery_urls) = (BTreeSet::new(), BTreeSet::new());
    let mut all = Vec::new();
    for (index, jwt) in configuration.jwt.iter().enumerate() {
        let path = root.index(index);
        all.push(validate_jwt(jwt, reserved, &path, &mut errors));
        let path = path.child("issuer");
        if !urls.insert(&jwt.issuer.url) {
            let url = jwt.issuer.url.as_str();
            errors.push(FieldError::duplicate(&path.child("url"), url));
        }
        if let Some(url) = &jwt.issuer.discovery_url
            && !discovery_urls.insert(url)
        {
            let path = path.child("discoveryURL");
            errors.push(FieldError::duplicate(&path, url.as_str()));
        }
    }
    if let Some(anonymous) = &configuration.anonymous
        && !anonymous.enabled
        && !anonymous.conditions.is_empty()
    {
        let paths: Vec<_> = anonymous.conditions.iter().map(|c| &c.path).collect();
        errors.push(FieldError::invalid(
            &Path::new("anonymous.conditions"),
            serde_json::json!(paths),
            "enabled should be set to true when conditions are defined",
        ));
    }
    if errors.is_empty() {
        Ok(all)
    } else {
        Err(errors)
    }
}

fn validate_jwt(
    jwt: &Jwt,
    reserved: &[String],
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Expressions {
    let mut out = Expressions::default();
    validate_issuer(&jwt.issuer, reserved, &path.child("issuer"), errors);
    claim_rules(jwt, &path.child("claimValidationRules"), &mut out, errors);
    mappings(jwt, &path.child("claimMappings"), &mut out, errors);
    user_rules(jwt, &path.child("userValidationRules"), &mut out, errors);
    out
}

fn validate_issuer(
    issuer: &IssuerConfiguration,
    reserved: &[String],
    path: &Path,
    errors: &mut Vec<FieldError>,
) {
    let url = path.child("url");
    if issuer.url.is_empty() {
        errors.push(FieldError::required(&url, ""));
    } else {
        validate_url(&issuer.url, reserved, &url, errors);
    }
    if let Some(discovery) = issuer.discovery_url.as_deref().filter(|u| !u.is_empty()) {
        let at = path.child("discoveryURL");
        let same = issuer.url.trim_end_matches('/') == discovery.trim_end_matches('/');
        if !issuer.url.is_empty() && same {
            let detail = "discoveryURL must be different from URL";
            errors.push(FieldError::invalid(&at, discovery, detail));
        }
        validate_url(discovery, &[], &at, errors);
    }
    validate_audiences(issuer, path, errors);
    if let Some(pem) = issuer
        .certificate_authority
        .as_deref()
        .filter(|p| !p.is_empty())
    {
        let mut certificates =
            CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok);
        let readable = |der: CertificateDer<'_>| x509_parser::parse_x509_certificate(&der).is_ok();
        if !certificates.next().is_some_and(readable) {
            errors.push(FieldError::invalid(
                &path.child("certificateAuthority"),
                "<omitted>",
                "data does not contain any valid RSA or ECDSA certificates",
            ));
        }
    }
    let egress = issuer.egress_selector_type.as_str();
    if !matches!(egress, "" | "controlplane" | "cluster") {
        errors.push(FieldError::invalid(
            &path.child("egressSelectorType"),
            egress,
            "egress selector must be either controlplane or cluster",
        ));
    }
}

fn validate_url(url: &str, reserved: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    let mut refuse = |detail: &str| errors.push(FieldError::invalid(path, url, detail));
    if reserved.iter().any(|own| own == url) {
        let own: BTreeSet<_> = reserved.iter().map(String::as_str).collect();
        let own = own.into_iter().collect::<Vec<_>>().join(" ");
        refuse(&format!(
            "URL must not overlap with disallowed issuers: [{own}]"
        ));
    }
    if url.chars().any(char::is_control) {
        return refuse("net/url: invalid control character in URL");
    }
    let (rest, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", rest));
    let authority = rest.split('/').next().unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("https") {
        refuse("URL scheme must be https");
    }
    if !scheme.is_empty() && authority.contains('@') {
        refuse("URL must not contain a username or password");
    }
    if !query.is_empty() {
        refuse("URL must not contain a query");
    }
    if !fragment.is_empty() {
        refuse("URL must not contain a fragment");
    }
}

fn validate_audiences(issuer: &IssuerConfiguration, path: &Path, errors: &mut Vec<FieldError>) {
    let at = path.child("audiences");
    if issuer.audiences.is_empty() {
        let detail = format!("at least one {at} is required");
        return errors.push(FieldError::required(&at, detail));
    }
    let mut seen = BTreeSet::new();
    for (index, audience) in issuer.audiences.iter().enumerate() {
        let at = at.index(index);
        if audience.is_empty() {
            errors.push(FieldError::required(&at, ""));
        }
        if !seen.insert(audience) {
            errors.push(FieldError::duplicate(&at, audience.as_str()));
        }
    }
    let policy = issuer.audience_match_policy.as_str();
    let detail = match (issuer.audiences.len(), policy) {
        (_, "MatchAny") | (1, "") => return,
        (1, _) => "audienceMatchPolicy must be empty or MatchAny for single audience",
        _ => "audienceMatchPolicy must be MatchAny for multiple audiences",
    };
    let at = path.child("audienceMatchPolicy");
    errors.push(FieldError::invalid(&at, policy, detail));
}

fn claim_rules(jwt: &Jwt, path: &Path, out: &mut Expressions, errors: &mut Vec<FieldError>) {
    let (mut claims, mut expressions) = (BTreeSet::new(), BTreeSet::new());
    for (index, rule) in jwt.claim_validation_rules.iter().enumerate() {
        let at = path.index(index);
        match (rule.claim.as_str(), rule.expression.as_str()) {
            ("", "") => errors.push(FieldError::required(&at, NEITHER)),
            (claim, "") => {
                if !rule.message.is_empty() {
                    let detail = "may not be specified when claim is set";
                    let at = at.child("message");
                    errors.push(FieldError::invalid(&at, rule.message.as_str(), detail));
                }
                if !claims.insert(claim) {
                    errors.push(FieldError::duplicate(&at.child("claim"), claim));
                }
            }
            ("", expression) => {
                if !rule.required_value.is_empty() {
                    let detail = "may not be specified when expression is set";
                    let at = at.child("requiredValue");
                    let value = rule.required_value.as_str();
                    errors.push(FieldError::invalid(&at, value, detail));
                }
                let at = at.child("expression");
                if !expressions.insert(expression) {
                    errors.push(FieldError::duplicate(&at, expression));
                    continue;
                }
                let rule = condition(Subject::Claims, expression, &rule.message, &at, errors);
                out.claim_rules.extend(rule);
            }
            (claim, _) => errors.push(FieldError::invalid(&at, claim, BOTH)),
        }
    }
}

fn user_rules(jwt: &Jwt, path: &Path, out: &mut Expressions, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, rule) in jwt.user_validation_rules.iter().enumerate() {
        let at = path.index(index).child("expression");
        let expression = rule.expression.as_str();
        if expression.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if !seen.insert(expression) {
            errors.push(FieldError::duplicate(&at, expression));
        } else {
            let rule = condition(Subject::User, expression, &rule.message, &at, errors);
            out.user_rules.extend(rule);
        }
    }
}

fn mappings(jwt: &Jwt, path: &Path, out: &mut Expressions, errors: &mut Vec<FieldError>) {
    let mappings = &jwt.claim_mappings;
    let username = path.child("username");
    out.username = prefixed(&mappings.username, &username, true, errors);
    out.groups = prefixed(&mappings.groups, &path.child("groups"), false, errors);
    let (uid, at) = (&mappings.uid, path.child("uid"));
    if !uid.claim.is_empty() && !uid.expression.is_empty() {
        errors.push(FieldError::invalid(&at, "", BOTH));
    } else if !uid.expression.is_empty() {
        out.uid = claims(&uid.expression, &at.child("expression"), errors);
    }
    extra(jwt, &path.child("extra"), out, errors);
    let uses = |e: &Expression, claim: &str| e.selects(Some("claims"), claim);
    let verified = out
        .username
        .iter()
        .chain(out.extra.iter().map(|(_, e)| e))
        .chain(out.claim_rules.iter().map(|r| &r.expression))
        .any(|e| uses(e, "email_verified"));
    if !verified && out.username.iter().any(|e| uses(e, "email")) {
        let expression = mappings.username.expression.as_str();
        let at = username.child("expression");
        errors.push(FieldError::invalid(&at, expression, UNVERIFIED_EMAIL));
    }
}

fn prefixed(
    mapping: &Mapping,
    path: &Path,
    required: bool,
    errors: &mut Vec<FieldError>,
) -> Option<Expression> {
    match (mapping.claim.as_str(), mapping.expression.as_str()) {
        ("", "") => {
            if required {
                errors.push(FieldError::required(path, NEITHER));
            }
            None
        }
        (_, "") => {
            if mapping.prefix.is_none() {
                errors.push(FieldError::required(
                    &path.child("prefix"),
                    "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                ));
            }
            None
        }
        ("", expression) => {
            if let Some(prefix) = &mapping.prefix {
                let detail = "may not be specified when expression is set";
                let at = path.child("prefix");
                errors.push(FieldError::invalid(&at, prefix.as_str(), detail));
            }
            claims(expression, &path.child("expression"), errors)
        }
        _ => {
            errors.push(FieldError::invalid(path, "", BOTH));
            None
        }
    }
}

fn extra(jwt: &Jwt, path: &Path, out: &mut Expressions, errors: &mut Vec<FieldError>) {
    let mut seen = BTreeSet::new();
    for (index, mapping) in jwt.claim_mappings.extra.iter().enumerate() {
        let (at, key) = (path.index(index), mapping.key.as_str());
        extra_key(key, &at.child("key"), errors);
        if !seen.insert(key) {
            errors.push(FieldError::duplicate(&at.child("key"), key));
            continue;
        }
        let at = at.child("valueExpression");
        if mapping.value_expression.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let compiled = claims(&mapping.value_expression, &at, errors);
        out.extra.extend(compiled.map(|e| (key.to_owned(), e)));
    }
}

/// A domain that is not Kubernetes' own, a slash and a path, all lower case.
fn extra_key(key: &str, path: &Path, errors: &mut Vec<FieldError>) {
    match key.split_once('/') {
        _ if key.is_empty() => errors.push(FieldError::required(path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            let problems = is_dns1123_subdomain(domain);
            errors.extend(
                problems
                    .into_iter()
                    .map(|detail| FieldError::invalid(path, domain, detail)),
            );
            let fine = |c: char| c.is_ascii_alphanumeric() || "/%-._~!$&'()*+,;=:".contains(c);
            if !rest.chars().all(fine) {
                errors.push(FieldError::invalid(path, rest, "Invalid path"));
            }
        }
        _ => errors.push(FieldError::invalid(
            path,
            key,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        )),
    }
    if key != key.to_lowercase() {
        errors.push(FieldError::invalid(path, key, "must be lowercase"));
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let reserved = ["kubernetes.io", "k8s.io"].iter().any(|own| {
        let below = domain.strip_suffix(own);
        below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    if reserved {
        let detail = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
        errors.push(FieldError::invalid(path, key, detail));
    }
}

fn claims(source: &str, path: &Path, errors: &mut Vec<FieldError>) -> Option<Expression> {
    taken(Subject::Claims.compile(source), source, path, errors)
}

fn condition(
    subject: Subject,
    source: &str,
    message: &str,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Option<Rule> {
    let expression = taken(subject.compile_condition(source), source, path, errors)?;
    Some(Rule {
        expression,
        message: message.to_owned(),
    })
}

fn taken(
    compiled: Result<Expression, Problem>,
    source: &str,
    path: &Path,
    errors: &mut Vec<FieldError>,
) -> Option<Expression> {
    compiled
        .map_err(|problem| {
            errors.push(match problem {
                Problem::Invalid(detail) => FieldError::invalid(path, source, detail),
                Problem::Internal(detail) => FieldError::internal(path, detail),
            });
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::parse;
    use super::*;

    fn problems(jwt: &str) -> Vec<String> {
        let configuration = parse(jwt).unwrap();
        let own = ["https://own".to_owned()];
        let errors = validate(&configuration, &own).err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    }

    const ISSUER: &str = "issuer: {url: 'https://i', audiences: [a]}";
    const NAME: &str = "username: {claim: sub, prefix: ''}";

    #[test]
    fn issuers_are_judged_in_upstreams_words() {
        let name = format!("claimMappings: {{{NAME}}}");
        assert_eq!(problems(&format!("{ISSUER}, {name}")), [""; 0]);
        for (issuer, expected) in [
            (
                "url: '', audiences: [a]",
                "jwt[0].issuer.url: Required value",
            ),
            (
                "url: 'http://i', audiences: [a]",
                "jwt[0].issuer.url: Invalid value: \"http://i\": URL scheme must be https",
            ),
            (
                "url: 'https://u:p@i', audiences: [a]",
                "jwt[0].issuer.url: Invalid value: \"https://u:p@i\": URL must not contain a username or password",
            ),
            (
                "url: 'https://i?q=1', audiences: [a]",
                "jwt[0].issuer.url: Invalid value: \"https://i?q=1\": URL must not contain a query",
            ),
            (
                "url: 'https://i#f', audiences: [a]",
                "jwt[0].issuer.url: Invalid value: \"https://i#f\": URL must not contain a fragment",
            ),
            (
                "url: 'https://own', audiences: [a]",
                "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: [https://own]",
            ),
            (
                "url: 'https://i', discoveryURL: 'https://i/', audiences: [a]",
                "jwt[0].issuer.discoveryURL: Invalid value: \"https://i/\": discoveryURL must be different from URL",
            ),
            (
                "url: 'https://i'",
                "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
            ),
            (
                "url: 'https://i', audiences: [a, a], audienceMatchPolicy: MatchAny",
                "jwt[0].issuer.audiences[1]: Duplicate value: \"a\"",
            ),
            (
                "url: 'https://i', audiences: [a, b]",
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            (
                "url: 'https://i', audiences: [a], certificateAuthority: x",
                "jwt[0].issuer.certificateAuthority: Invalid value: \"<omitted>\": data does not contain any valid RSA or ECDSA certificates",
            ),
            (
                "url: 'https://i', audiences: [a], egressSelectorType: x",
                "jwt[0].issuer.egressSelectorType: Invalid value: \"x\": egress selector must be either controlplane or cluster",
            ),
        ] {
            assert_eq!(
                problems(&format!("issuer: {{{issuer}}}, {name}")),
                [expected]
            );
        }
    }

    #[test]
    fn mappings_and_rules_are_judged_in_upstreams_words() {
        for (rest, expected) in [
            (
                "claimMappings: {username: {claim: sub}}",
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                "claimMappings: {username: {claim: sub, expression: claims.sub}}",
                "jwt[0].claimMappings.username: Invalid value: \"\": claim and expression can't both be set",
            ),
            (
                "claimMappings: {username: {}}",
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ),
            (
                "claimMappings: {username: {expression: claims.sub, prefix: p}}",
                "jwt[0].claimMappings.username.prefix: Invalid value: \"p\": may not be specified when expression is set",
            ),
            (
                "claimMappings: {username: {expression: claims.email}}",
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.email\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ),
            (
                "claimMappings: {username: {expression: 'claims.?email.orValue(string(1))'}}",
                "jwt[0].claimMappings.username.expression: Invalid value: \"claims.?email.orValue(string(1))\": claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}, extra: [{key: foo, valueExpression: claims.a}]}",
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"foo\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}, extra: [{key: a.k8s.io/x, valueExpression: claims.a}]}",
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"a.k8s.io/x\": k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}, extra: [{key: a.io/X, valueExpression: claims.a}]}",
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"a.io/X\": must be lowercase",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}}, claimValidationRules: [{expression: claims.x}]",
                "jwt[0].claimValidationRules[0].expression: Invalid value: \"claims.x\": must evaluate to bool",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}}, claimValidationRules: [{claim: x, message: m}]",
                "jwt[0].claimValidationRules[0].message: Invalid value: \"m\": may not be specified when claim is set",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}}, claimValidationRules: [{expression: 'claims.x == 1', requiredValue: m}]",
                "jwt[0].claimValidationRules[0].requiredValue: Invalid value: \"m\": may not be specified when expression is set",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}}, userValidationRules: [{expression: 'user.uid == string(1)'}, {expression: 'user.uid == string(1)'}]",
                "jwt[0].userValidationRules[1].expression: Duplicate value: \"user.uid == string(1)\"",
            ),
            (
                "claimMappings: {username: {claim: sub, prefix: ''}}, userValidationRules: [{message: x}]",
                "jwt[0].userValidationRules[0].expression: Required value",
            ),
        ] {
            assert_eq!(problems(&format!("{ISSUER}, {rest}")), [expected], "{rest}");
        }
        for fine in [
            "claimMappings: {username: {expression: 'claims.email_verified ? claims.email : claims.sub'}}",
            "claimMappings: {username: {expression: claims.email}}, claimValidationRules: [{expression: 'claims.?email_verified.orValue(true) == true'}]",
            "claimMappings: {username: {expression: claims.email}, extra: [{key: a.io/v, valueExpression: string(claims.email_verified)}]}",
        ] {
            assert_eq!(problems(&format!("{ISSUER}, {fine}")), [""; 0], "{fine}");
        }
    }
}

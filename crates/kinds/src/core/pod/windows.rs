//! Rules of `windowsOptions`.

use std::sync::LazyLock;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use regex::Regex;
use serde_json::Value;

use crate::check::At;
use crate::tree::Tree;

const MAX_SPEC_BYTES: usize = 64 * 1024;
const MAX_DOMAIN: usize = 256;
const MAX_USER: usize = 104;

static NET_BIOS: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"^[^\\/:\*\?"<>|\.][^\\/:\*\?"<>|]{0,14}$"#).ok());
static DOMAIN: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"^[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)*$",
    )
    .ok()
});

/// `windowsOptions` of a pod's or a container's security context.
pub(super) fn options(options: &At, e: &mut ErrorList) {
    let name = options.at("gmsaCredentialSpecName");
    if name.exists() {
        name.conforms(e, validation::is_dns1123_subdomain);
    }
    let spec = options.at("gmsaCredentialSpec");
    if spec.exists() {
        if spec.is_empty() {
            e.push(spec.invalid("gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > MAX_SPEC_BYTES {
            e.push(spec.invalid("gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    let user = options.at("runAsUserName");
    if user.exists() {
        user_name(&user, e);
    }
}

fn user_name(at: &At, e: &mut ErrorList) {
    let text = at.text();
    if text.is_empty() {
        return e.push(at.invalid("runAsUserName cannot be an empty string"));
    }
    if text.bytes().any(|b| b.is_ascii_control()) {
        return e.push(at.invalid("runAsUserName cannot contain control characters"));
    }
    if text.matches('\\').count() > 1 {
        return e.push(at.invalid("runAsUserName cannot contain more than one backslash"));
    }
    let (domain, user) = match text.split_once('\\') {
        Some((domain, user)) => (Some(domain), user),
        None => (None, text),
    };
    if let Some(domain) = domain {
        if domain.len() >= MAX_DOMAIN {
            let detail = "runAsUserName's Domain length must be under 256 characters";
            e.push(at.invalid(detail));
        }
        let matches = |r: &Option<Regex>| r.as_ref().is_some_and(|r| r.is_match(domain));
        if !matches(&NET_BIOS) && !matches(&DOMAIN) {
            let detail = "runAsUserName's Domain doesn't match the NetBios nor the DNS format";
            e.push(at.invalid(detail));
        }
    }
    if user.is_empty() {
        e.push(at.invalid("runAsUserName's User cannot be empty"));
    } else if user.len() > MAX_USER {
        let detail = "runAsUserName's User length must not be longer than 104 characters";
        e.push(at.invalid(detail));
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        e.push(at.invalid("runAsUserName's User cannot contain only periods or spaces"));
    }
    if user.chars().any(|c| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        e.push(at.invalid(
            "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]",
        ));
    }
}

/// Containers that are processes of the host: all of a pod or none, and in the host's network.
pub(super) fn host_process(spec: &At, e: &mut ErrorList) {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    let own = spec.value.at(FIELD).as_bool();
    let (mut all, mut host) = (0, 0);
    for container in super::each_container(spec) {
        all += 1;
        let here = container.value.at(FIELD).as_bool();
        if let (Some(own), Some(here)) = (own, here)
            && own != here
        {
            let at = container
                .at("securityContext")
                .at("windowsOptions")
                .at("hostProcess");
            e.push(at.invalid(format!(
                "pod hostProcess value must be identical if both are specified, was {own}"
            )));
        }
        host += usize::from(here.or(own) == Some(true));
    }
    if host == 0 {
        return;
    }
    if host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        e.push(FieldError::invalid(&spec.path, "", detail));
    }
    if !spec.value.flag("hostNetwork") {
        let path = spec.path.child("hostNetwork");
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        e.push(FieldError::invalid(&path, Value::Bool(false), detail));
    }
}

//! Endpoints.

use std::net::IpAddr;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::{self, NONE};
use crate::check::addresses::{legacy_ip, legacy_ip_warning, sloppy_ip};
use crate::check::{At, same};
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};

pub(crate) static ENDPOINTS: Kind = Kind {
    group: "",
    resource: "endpoints",
    default: |obj| {
        for subset in obj.list_mut("subsets") {
            for port in subset.list_mut("ports") {
                port.fill_text("protocol", "TCP");
            }
        }
    },
    validate,
    validate_update: |new, old, _| {
        if same(new.at("subsets"), old.at("subsets")) {
            ErrorList::new()
        } else {
            validate(new)
        }
    },
    warnings: |new, _| {
        let mut out = Vec::new();
        for subset in At::new(new, "subsets").each() {
            for list in ["addresses", "notReadyAddresses"] {
                for address in subset.at(list).each() {
                    legacy_ip_warning(&address.at("ip"), &mut out);
                }
            }
        }
        out
    },
    columns: &[Column::text("Endpoints"), Column::AGE],
    cells: |obj, now| vec![summary(obj).into(), cell::age(obj, now)],
    deprecation: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    allow_create_on_update: true,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    for subset in At::new(obj, "subsets").each() {
        let lists = [subset.at("addresses"), subset.at("notReadyAddresses")];
        if lists.iter().all(At::is_empty) {
            e.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for address in lists.iter().flat_map(|l| l.each()) {
            address
                .at("hostname")
                .optional_conforms(&mut e, validation::is_dns1123_label);
            if address.has("nodeName") {
                address
                    .at("nodeName")
                    .conforms(&mut e, validation::is_dns1123_subdomain);
            }
            let ip = address.at("ip");
            legacy_ip(&ip, &mut e);
            endpoint_ip(&ip, &mut e);
        }
        let ports = subset.at("ports");
        for port in ports.each() {
            self::port(&port, ports.len() > 1, &mut e);
        }
    }
    e
}

fn port(port: &At, named: bool, e: &mut ErrorList) {
    let name = port.at("name");
    if named {
        name.required_conforms(e, validation::is_dns1123_label);
    } else {
        name.optional_conforms(e, validation::is_dns1123_label);
    }
    port.at("port").port(e);
    port.at("protocol")
        .required_one_of(e, &["SCTP", "TCP", "UDP"]);
    port.at("appProtocol")
        .optional_conforms(e, validation::is_qualified_name);
}

/// An address that packets may be sent to by way of a service.
pub(crate) fn endpoint_ip(ip: &At, e: &mut ErrorList) {
    let text = ip.text();
    let Some(parsed) = sloppy_ip(text) else {
        return e.push(FieldError::invalid(
            &ip.path,
            text,
            "must be a valid IP address",
        ));
    };
    let (link_local, local_multicast) = match parsed {
        IpAddr::V4(v4) => (v4.is_link_local(), matches!(v4.octets(), [224, 0, 0, _])),
        IpAddr::V6(v6) => (
            v6.segments()[0] & 0xffc0 == 0xfe80,
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    for (wrong, detail) in [
        (
            parsed.is_unspecified(),
            format!("may not be unspecified ({text})"),
        ),
        (
            parsed.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        ),
        (
            local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ] {
        if wrong {
            e.push(ip.invalid(detail));
        }
    }
}

fn summary(obj: &Value) -> String {
    if obj.list("subsets").is_empty() {
        return NONE.to_owned();
    }
    let mut all = Vec::new();
    for subset in obj.list("subsets") {
        let addresses = subset.list("addresses").iter().map(|a| a.text("ip"));
        let ports = subset.list("ports");
        if ports.is_empty() {
            all.extend(addresses.map(str::to_owned));
            continue;
        }
        for port in ports {
            for ip in subset.list("addresses").iter().map(|a| a.text("ip")) {
                let ip = if ip.contains(':') {
                    format!("[{ip}]")
                } else {
                    ip.to_owned()
                };
                all.push(format!("{ip}:{}", port.num("port")));
            }
        }
    }
    let shown = all
        .iter()
        .take(3)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    if all.len() > 3 {
        format!("{shown} + {} more...", all.len() - 3)
    } else {
        shown
    }
}

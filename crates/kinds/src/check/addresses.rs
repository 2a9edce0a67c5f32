//! IP addresses as fields older than strict parsing take them.

use std::net::{IpAddr, Ipv4Addr};

use keelson_machinery::field::ErrorList;

use super::At;

/// An address, with leading zeros forgiven.
pub(crate) fn sloppy_ip(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let octets: Vec<u8> = text.split('.').map_while(octet).collect();
    let four: [u8; 4] = octets.try_into().ok()?;
    (text.split('.').count() == 4).then_some(IpAddr::V4(Ipv4Addr::from(four)))
}

fn octet(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let short = text.trim_start_matches('0');
    match short {
        _ if !digits => None,
        "" => Some(0),
        _ => short.parse().ok(),
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// An address of an older field: any form but leading zeros and IPv4 inside IPv6.
pub(crate) fn legacy_ip(ip: &At, e: &mut ErrorList) {
    let text = ip.text();
    match (text.parse::<IpAddr>(), sloppy_ip(text)) {
        (Ok(address), _) if is_mapped(address) => {
            e.push(ip.invalid_text("must not be an IPv4-mapped IPv6 address"));
        }
        (Ok(_), _) => {}
        (Err(_), Some(_)) => e.push(ip.invalid_text("must not have leading 0s")),
        (Err(_), None) => {
            e.push(ip.invalid_text("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"))
        }
    }
}

/// A remark about an address in an older field that is not in its canonical form.
pub(crate) fn legacy_ip_warning(ip: &At, out: &mut Vec<String>) {
    let text = ip.text();
    let Some(sloppy) = sloppy_ip(text) else {
        return;
    };
    match text.parse::<IpAddr>() {
        Ok(address) if !is_mapped(address) => {
            if address.is_ipv6() && address.to_string() != text {
                out.push(format!(
                    "{}: IPv6 address {text:?} should be in RFC 5952 canonical format ({:?})",
                    ip.path,
                    address.to_string()
                ));
            }
        }
        _ => out.push(format!(
            "{}: non-standard IP address {text:?} is invalid: use {:?}",
            ip.path,
            sloppy.to_canonical().to_string()
        )),
    }
}

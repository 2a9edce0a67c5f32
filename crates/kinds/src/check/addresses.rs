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

/// Address and prefix length of a CIDR value, with leading zeros forgiven.
fn sloppy_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, length) = text.split_once('/')?;
    let ip = sloppy_ip(ip)?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| digits)?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    (length <= most).then_some((ip, length))
}

/// The address with every bit behind the prefix cleared.
fn network(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// Whether strict parsers take it: no leading zeros.
fn is_plain(text: &str) -> bool {
    text.split_once('/').is_some_and(|(ip, length)| {
        ip.parse::<IpAddr>().is_ok() && (length == "0" || !length.starts_with('0'))
    })
}

/// A CIDR value of an older field: a network, not an address within one.
pub(crate) fn legacy_cidr(cidr: &At, e: &mut ErrorList) {
    let text = cidr.text();
    let Some((ip, length)) = sloppy_cidr(text) else {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        return e.push(cidr.invalid_text(detail));
    };
    if !is_plain(text) {
        e.push(cidr.invalid_text("must not have leading 0s in IP or prefix length"));
    } else if is_mapped(ip) {
        e.push(cidr.invalid_text("must not have an IPv4-mapped IPv6 address"));
    } else if network(ip, length) != ip {
        e.push(cidr.invalid_text("must not have bits set beyond the prefix length"));
    }
}

/// A remark about a CIDR value in an older field that is not in its canonical form.
pub(crate) fn legacy_cidr_warning(cidr: &At, out: &mut Vec<String>) {
    let text = cidr.text();
    let Some((ip, length)) = sloppy_cidr(text) else {
        return;
    };
    let (path, canonical) = (&cidr.path, format!("{}/{length}", network(ip, length)));
    let before = out.len();
    if network(ip, length) != ip {
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        out.push(format!("{path}: CIDR value {text:?} is ambiguous in this context (should be {canonical:?} or \"{ip}/{bits}\"?)"));
    }
    if !is_plain(text) || is_mapped(ip) {
        out.push(format!(
            "{path}: non-standard CIDR value {text:?} is invalid: use {canonical:?}"
        ));
    }
    if out.len() == before && ip.is_ipv6() && canonical != text {
        out.push(format!("{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({canonical:?})"));
    }
}

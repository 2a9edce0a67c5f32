//! What an X.509 request asks for, and the rules of the cluster's signers about it. Pure.

use std::collections::BTreeSet;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// A request with its signature checked.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) common_name: String,
    pub(super) organizations: Vec<String>,
    pub(super) dns_names: usize,
    pub(super) ip_addresses: usize,
    pub(super) email_addresses: usize,
    pub(super) uris: usize,
    /// DER of the subject, of the public key, and of the alternative names as they were sent.
    pub(super) subject: Vec<u8>,
    pub(super) public_key: Vec<u8>,
    pub(super) alternative_names: Option<Vec<u8>>,
}

const ALTERNATIVE_NAMES: &str = "2.5.29.17";

impl Request {
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let (_, block) = x509_parser::pem::parse_x509_pem(pem).map_err(|e| e.to_string())?;
        if block.label != "CERTIFICATE REQUEST" {
            return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
        }
        let (_, parsed) =
            X509CertificationRequest::from_der(&block.contents).map_err(|e| e.to_string())?;
        parsed
            .verify_signature()
            .map_err(|e| format!("unable to verify certificate request signature: {e}"))?;
        let info = &parsed.certification_request_info;
        let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            name.as_str().unwrap_or_default().to_owned()
        };
        let mut request = Self {
            common_name: info
                .subject
                .iter_common_name()
                .next()
                .map(text)
                .unwrap_or_default(),
            organizations: info.subject.iter_organization().map(text).collect(),
            subject: info.subject.as_raw().to_vec(),
            public_key: info.subject_pki.raw.to_vec(),
            ..Self::default()
        };
        for attribute in info.iter_attributes() {
            let parsed = attribute.parsed_attribute();
            let x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(wanted) = parsed
            else {
                continue;
            };
            for extension in &wanted.extensions {
                if extension.oid.to_id_string() != ALTERNATIVE_NAMES {
                    continue;
                }
                request.alternative_names = Some(extension.value.to_vec());
                if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension()
                {
                    names
                        .general_names
                        .iter()
                        .for_each(|name| request.count(name));
                }
            }
        }
        Ok(request)
    }

    fn count(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(_) => self.dns_names += 1,
            GeneralName::IPAddress(_) => self.ip_addresses += 1,
            GeneralName::RFC822Name(_) => self.email_addresses += 1,
            GeneralName::URI(_) => self.uris += 1,
            _ => {}
        }
    }
}

/// Whether a signer of this cluster takes the request: nothing when the signer is none of them.
pub(super) fn validate(
    signer: &str,
    request: &Request,
    usages: &[String],
) -> Option<Result<(), String>> {
    match signer {
        "kubernetes.io/kube-apiserver-client" => Some(client(usages)),
        super::KUBELET_CLIENT => Some(kubelet_client(request, usages)),
        "kubernetes.io/kubelet-serving" => Some(kubelet_serving(request, usages)),
        "kubernetes.io/legacy-unknown" => Some(Ok(())),
        _ => None,
    }
}

fn client(usages: &[String]) -> Result<(), String> {
    let optional = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|u| !optional.contains(&u.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|u| u == "client auth") {
        Ok(())
    } else {
        Err("missing required usage for client certificate: client auth".to_owned())
    }
}

pub(super) fn kubelet_client(request: &Request, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    for (count, what) in [
        (request.dns_names, "DNS"),
        (request.email_addresses, "Email"),
        (request.ip_addresses, "IP"),
        (request.uris, "URI"),
    ] {
        if count > 0 {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    named_node(request)?;
    exactly(usages, "client auth")
}

fn kubelet_serving(request: &Request, usages: &[String]) -> Result<(), String> {
    of_nodes(request)?;
    if request.dns_names == 0 && request.ip_addresses == 0 {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    for (count, what) in [(request.email_addresses, "Email"), (request.uris, "URI")] {
        if count > 0 {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    exactly(usages, "server auth")?;
    named_node(request)
}

fn of_nodes(request: &Request) -> Result<(), String> {
    if request.organizations == ["system:nodes"] {
        Ok(())
    } else {
        Err("subject organization is not system:nodes".to_owned())
    }
}

fn named_node(request: &Request) -> Result<(), String> {
    if request.common_name.starts_with("system:node:") {
        Ok(())
    } else {
        Err("subject common name does not begin with system:node:".to_owned())
    }
}

/// The purpose and a signature; encipherment too for keys that can.
fn exactly(usages: &[String], purpose: &str) -> Result<(), String> {
    let given: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let without = BTreeSet::from(["digital signature", purpose]);
    let with = BTreeSet::from(["digital signature", "key encipherment", purpose]);
    if given == with || given == without {
        return Ok(());
    }
    let wanted: Vec<&str> = with.into_iter().collect();
    Err(format!("usages did not match [{}]", wanted.join(" ")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// PEM of a request by a new key.
    pub(crate) fn request(name: &str, organizations: &[&str], alternatives: &[&str]) -> String {
        let names: Vec<String> = alternatives.iter().map(|n| (*n).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for organization in organizations {
            params
                .distinguished_name
                .push(rcgen::DnType::OrganizationName, *organization);
        }
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        params.serialize_request(&key).unwrap().pem().unwrap()
    }

    fn usages(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn signers_take_what_is_theirs() {
        let node =
            Request::parse(request("system:node:a", &["system:nodes"], &[]).as_bytes()).unwrap();
        let serving = Request::parse(
            request("system:node:a", &["system:nodes"], &["a", "10.0.0.1"]).as_bytes(),
        )
        .unwrap();
        let person = Request::parse(request("jane", &["dev"], &[]).as_bytes()).unwrap();
        assert_eq!((serving.dns_names, serving.ip_addresses), (1, 1));
        let (client, server) = (
            usages(&["client auth", "digital signature"]),
            usages(&["server auth", "digital signature", "key encipherment"]),
        );
        let table = [
            (super::super::KUBELET_CLIENT, &node, &client, Ok(())),
            (
                super::super::KUBELET_CLIENT,
                &serving,
                &client,
                Err("DNS subjectAltNames are not allowed"),
            ),
            (
                super::super::KUBELET_CLIENT,
                &person,
                &client,
                Err("subject organization is not system:nodes"),
            ),
            (
                super::super::KUBELET_CLIENT,
                &node,
                &server,
                Err("usages did not match [client auth digital signature key encipherment]"),
            ),
            ("kubernetes.io/kubelet-serving", &serving, &server, Ok(())),
            (
                "kubernetes.io/kubelet-serving",
                &node,
                &server,
                Err("DNS or IP subjectAltName is required"),
            ),
            (
                "kubernetes.io/kube-apiserver-client",
                &person,
                &client,
                Ok(()),
            ),
            (
                "kubernetes.io/kube-apiserver-client",
                &person,
                &server,
                Err("invalid usage for client certificate: server auth"),
            ),
        ];
        for (signer, request, usages, expected) in table {
            let got = validate(signer, request, usages).unwrap();
            assert_eq!(
                got,
                expected.map_err(ToOwned::to_owned),
                "{signer} {usages:?}"
            );
        }
        assert!(validate("example.com/own", &person, &client).is_none());
    }

    #[test]
    fn a_request_with_another_keys_signature_is_refused() {
        let pem = request("jane", &[], &[]);
        let body: String = pem.lines().filter(|l| !l.starts_with('-')).collect();
        let mut der = data(&body);
        let last = der.len() - 1;
        der[last] ^= 1;
        let broken = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            text(&der)
        );
        assert!(Request::parse(broken.as_bytes()).is_err());
        assert!(Request::parse(b"no request").is_err());
    }

    fn data(base64: &str) -> Vec<u8> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD
            .decode(base64)
            .unwrap()
    }

    fn text(der: &[u8]) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(der)
    }
}

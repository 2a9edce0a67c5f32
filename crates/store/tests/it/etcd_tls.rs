//! etcd that speaks TLS and wants to see a certificate.

use keelson_store::{Error, Expect, etcd};
use keelson_testkit_etcd::EtcdServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{Directory, value};

struct Pem {
    certificate: String,
    key: String,
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), Issuer::new(params, key))
}

fn leaf(issuer: &Issuer<'_, KeyPair>) -> Pem {
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    Pem {
        certificate: params.signed_by(&key, issuer).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_shown_and_checked() {
    let dir = Directory::new("etcd-tls");
    std::fs::create_dir_all(&dir.0).unwrap();
    let (ca, issuer) = authority();
    let (stranger, _) = authority();
    let (server, client) = (leaf(&issuer), leaf(&issuer));
    let file = |name: &str, text: &str| {
        let path = dir.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let flags = [
        format!("--cert-file={}", file("server.crt", &server.certificate)),
        format!("--key-file={}", file("server.key", &server.key)),
        format!("--trusted-ca-file={}", file("ca.crt", &ca)),
        "--client-cert-auth".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let Some(etcd) = EtcdServer::start_with(&flags) else {
        return;
    };
    let options = |ca: &str, client: Option<&Pem>| etcd::Options {
        ca_pem: Some(ca.as_bytes().to_vec()),
        client_pem: client.map(|pem| (pem.certificate.clone().into(), pem.key.clone().into())),
        ..etcd::Options::new(vec![etcd.url().to_owned()])
    };
    let store = etcd::connect(options(&ca, Some(&client))).await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    store.put("/a", value("1"), Expect::Absent).await.unwrap();
    assert!(watch.recv().await.is_some());
    let (nobody, misled) = tokio::join!(
        etcd::connect(options(&ca, None)),
        etcd::connect(options(&stranger, Some(&client)))
    );
    // Who shows nothing is cut off after the handshake, without a word.
    assert!(matches!(nobody, Err(Error::Open { .. })));
    let Err(Error::Open { reason, .. }) = misled else {
        panic!("connected")
    };
    assert!(reason.contains("invalid peer certificate"), "{reason}");
}

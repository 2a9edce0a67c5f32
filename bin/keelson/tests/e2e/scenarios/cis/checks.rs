//! How each finding is looked for on a running cluster.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;

use super::API;
use crate::lab::Namespace;

pub(super) fn data(ns: &Namespace<'_>, name: &str) -> PathBuf {
    ns.lab.data_dir().join(name)
}

pub(super) fn run_dir(ns: &Namespace<'_>) -> PathBuf {
    Path::new("/run/keelson").join(ns.lab.id())
}

pub(super) fn equal(found: &str, wanted: &str) -> Result<(), String> {
    (found == wanted)
        .then_some(())
        .ok_or_else(|| format!("{found:?} is not {wanted:?}"))
}

pub(super) fn mode(path: &Path, wanted: u32) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    equal(
        &format!("{:o}", found.mode() & 0o7777),
        &format!("{wanted:o}"),
    )
}

pub(super) fn closed(directory: &Path) -> Result<(), String> {
    mode(directory, 0o700).and_then(|()| owned(directory))
}

pub(super) fn owned(path: &Path) -> Result<(), String> {
    let found = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    equal(&format!("{}:{}", found.uid(), found.gid()), "0:0")
}

pub(super) fn authorities(ns: &Namespace<'_>, extension: &str) -> Result<(), String> {
    let files = std::fs::read_dir(data(ns, "pki")).map_err(|e| e.to_string())?;
    let files = files.flatten().map(|entry| entry.path());
    let chosen: Vec<PathBuf> = files
        .filter(|f| f.extension().is_some_and(|e| e == extension))
        .collect();
    if chosen.len() < 3 {
        return Err(format!("only {chosen:?}"));
    }
    chosen.iter().try_for_each(|file| mode(file, 0o600))
}

/// The running server was not given the flag.
pub(super) fn unset(ns: &Namespace<'_>, flag: &str) -> Result<(), String> {
    let record = std::fs::read(run_dir(ns).join("instance.json")).map_err(|e| e.to_string())?;
    let record: Value = serde_json::from_slice(&record).map_err(|e| e.to_string())?;
    let line =
        std::fs::read(format!("/proc/{}/cmdline", record["pid"])).map_err(|e| e.to_string())?;
    let line = String::from_utf8_lossy(&line).into_owned();
    if line.contains("--data-dir") && !line.contains(flag) {
        return Ok(());
    }
    Err(line)
}

pub(super) fn default_of(ns: &Namespace<'_>, flag: &str, wanted: &str) -> Result<(), String> {
    let help = ns.lab.keelson(&["server", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let after = help
        .split_once(flag)
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let found = after
        .split_once("[default: ")
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    equal(found.split(']').next().unwrap_or_default(), wanted)
}

pub(super) fn bearer(token: &str) -> [String; 2] {
    ["-H".to_owned(), format!("Authorization: Bearer {token}")]
}

fn curl(ns: &Namespace<'_>, extra: &[String], url: &str) -> Output {
    ns.lab
        .inside("curl")
        .args([
            "-s",
            "--max-time",
            "30",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
        ])
        .args(extra)
        .arg(url)
        .output()
        .unwrap()
}

pub(super) fn code(
    ns: &Namespace<'_>,
    extra: &[String],
    at: &str,
    path: &str,
    wanted: &str,
) -> Result<(), String> {
    let output = curl(
        ns,
        &[extra, &["-k".to_owned()]].concat(),
        &format!("https://{at}{path}"),
    );
    equal(&String::from_utf8_lossy(&output.stdout), wanted)
}

/// The certificate is signed by the cluster's authority, for this address.
pub(super) fn authentic(ns: &Namespace<'_>, at: &str) -> Result<(), String> {
    let authority = data(ns, "pki/ca.crt").display().to_string();
    let url = format!("https://{at}/healthz");
    let output = curl(ns, &["--cacert".to_owned(), authority], &url);
    let other = curl(ns, &[], &url);
    match (output.status.success(), other.status.success()) {
        (true, false) => Ok(()),
        outcome => Err(format!("with the authority and without: {outcome:?}")),
    }
}

pub(super) fn foreign_certificate(ns: &Namespace<'_>, at: &str) -> Result<(), String> {
    let name = |suffix: &str| {
        ns.lab
            .dir
            .join(format!("foreign-{}.{suffix}", at.replace(':', "-")))
    };
    let (certificate, key) = (
        name("crt").display().to_string(),
        name("key").display().to_string(),
    );
    let made = ns
        .lab
        .inside("openssl")
        .args([
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args([
            "-subj",
            "/O=system:masters/CN=admin",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ])
        .output()
        .unwrap();
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into_owned());
    }
    // Refused in the handshake, or by the answer.
    const HANDSHAKE: [Option<i32>; 2] = [Some(35), Some(56)];
    let extra = ["-k", "--cert", &certificate, "--key", &key].map(str::to_owned);
    let output = curl(ns, &extra, &format!("https://{at}/api/v1/secrets"));
    match HANDSHAKE.contains(&output.status.code()) {
        true => code(ns, &[], at, "/healthz", "200").or_else(|_| code(ns, &[], at, "/pods", "401")),
        false => equal(&String::from_utf8_lossy(&output.stdout), "401"),
    }
}

/// TLS 1.2 with forward secrecy and authenticated encryption, or later.
pub(super) fn ciphers(ns: &Namespace<'_>, at: &str) -> Result<(), String> {
    let says = |extra: &[&str]| {
        let mut command = ns.lab.inside("openssl");
        command
            .args(["s_client", "-connect", at])
            .args(extra)
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    };
    let good = "ECDHE-ECDSA-AES128-GCM-SHA256";
    let said = says(&["-tls1_2", "-cipher", good]);
    if !said.contains(&format!("Cipher is {good}")) {
        return Err(said);
    }
    for extra in [
        [
            "-tls1_2",
            "-cipher",
            "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384@SECLEVEL=0",
        ],
        [
            "-tls1_2",
            "-cipher",
            "AES128-GCM-SHA256:AES128-SHA256:AES128-SHA@SECLEVEL=0",
        ],
        ["-tls1_1", "-cipher", "ALL@SECLEVEL=0"],
    ] {
        let said = says(&extra);
        // A client that cannot offer this itself writes nothing.
        if !said.contains("Cipher is (NONE)") || said.contains("written 0 bytes") {
            return Err(format!("{extra:?}: {said}"));
        }
    }
    Ok(())
}

/// Nothing listens on the port, whatever the address.
pub(super) fn unheard(ns: &Namespace<'_>, port: u16) -> Result<(), String> {
    const LISTENS: &str = "0A";
    let tables = ns
        .lab
        .inside("cat")
        .args(["/proc/net/tcp", "/proc/net/tcp6"])
        .output()
        .unwrap();
    let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
    let mut ports = Vec::new();
    for line in tables.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, local, _, LISTENS, ..] = fields.as_slice()
            && let Some((_, port)) = local.rsplit_once(':')
        {
            ports.extend(u16::from_str_radix(port, 16));
        }
    }
    if ports.contains(&6443) && !ports.contains(&port) {
        return Ok(());
    }
    Err(format!("{ports:?}"))
}

pub(super) fn can_i(
    ns: &Namespace<'_>,
    user: &str,
    verb: &str,
    what: &str,
    wanted: bool,
) -> Result<(), String> {
    let said = ns.raw(&["auth", "can-i", verb, what, "--as", user], "");
    // `no` is a failure of the command.
    let may = said.as_ref().is_ok_and(|said| said.trim() == "yes");
    (may == wanted)
        .then_some(())
        .ok_or_else(|| format!("{said:?}"))
}

pub(super) fn roles(ns: &Namespace<'_>) -> Result<(), String> {
    can_i(ns, "cis", "list", "pods", false)?;
    ns.raw(
        &[
            "create",
            "rolebinding",
            "cis",
            "--clusterrole=view",
            "--user=cis",
        ],
        "",
    )?;
    ns.until("the binding to be seen", || {
        can_i(ns, "cis", "list", "pods", true).ok()
    });
    can_i(ns, "cis", "list", "secrets", false)
}

/// The object is refused for the reason.
pub(super) fn refuses(
    ns: &Namespace<'_>,
    extra: &[&str],
    object: &Value,
    reason: &str,
) -> Result<(), String> {
    let mut command = ns.command(&["create", "--dry-run=server", "-f", "-"]);
    command
        .args(extra)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success() && said.contains(reason))
        .then_some(())
        .ok_or(said)
}

pub(super) fn gone_account(ns: &Namespace<'_>) -> Result<(), String> {
    ns.raw(&["create", "serviceaccount", "leaver"], "")?;
    let token = ns.raw(&["create", "token", "leaver"], "")?;
    code(ns, &bearer(token.trim()), API, "/api", "200")?;
    ns.raw(&["delete", "serviceaccount", "leaver"], "")?;
    code(ns, &bearer(token.trim()), API, "/api", "401")
}

/// A pod's own token says when it was to be renewed, and is good for longer.
pub(super) fn extended_token(ns: &Namespace<'_>) -> Result<(), String> {
    const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let token = ns.raw(&["exec", "plain", "--", "/hello", "cat", TOKEN], "")?;
    let middle = token.split('.').nth(1).unwrap_or_default();
    let claims: Value = serde_json::from_slice(&decoded(middle)).map_err(|e| e.to_string())?;
    let seconds = claims["exp"]
        .as_i64()
        .zip(claims["iat"].as_i64())
        .map(|(exp, iat)| exp - iat);
    equal(
        &format!("{seconds:?}"),
        &format!("{:?}", Some(365 * 86_400)),
    )?;
    equal(
        &claims["kubernetes.io"]["warnafter"].is_i64().to_string(),
        "true",
    )
}

/// Base64 as tokens have it.
fn decoded(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for digit in text.bytes() {
        let value = DIGITS.iter().position(|d| *d == digit).unwrap_or_default();
        bits = bits << 6 | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}

pub(super) fn seccomp(ns: &Namespace<'_>, wanted: &str) -> Result<(), String> {
    let status = ns.raw(
        &["exec", "plain", "--", "/hello", "cat", "/proc/1/status"],
        "",
    )?;
    let found = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    equal(found.unwrap_or_default().trim(), wanted)
}

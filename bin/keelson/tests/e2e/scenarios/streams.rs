//! Streams into containers: exec, logs, copy, forwarded ports.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::json;

use crate::lab::Namespace;

pub(super) fn streams(ns: &Namespace<'_>) {
    ns.apply(&ns.pod("web", &["serve"], json!({})));
    ns.wait_ready("web");
    assert_eq!(
        ns.kubectl(&["exec", "web", "--", "/hello", "echo", "hi"])
            .trim(),
        "hi"
    );
    let failed = ns
        .command(&["exec", "web", "--", "/hello", "exit", "7"])
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(7));
    let missing = ns.kubectl_fails(&["exec", "web", "--", "/nothing"]);
    assert!(
        missing.contains("no such file") || missing.contains("not found"),
        "{missing}"
    );
    assert_eq!(
        ns.raw(
            &["exec", "-i", "web", "--", "/hello", "cat", "-"],
            "through\n"
        )
        .unwrap(),
        "through\n"
    );
    copy(ns);
    follow(ns);
    forward(ns);
    let run = ns.kubectl(&[
        "run",
        "once",
        "--rm",
        "-i",
        "--restart=Never",
        "--image=localhost/keelson/hello",
        "--",
        "echo",
        "ran",
    ]);
    assert!(run.contains("ran"), "{run}");
}

fn copy(ns: &Namespace<'_>) {
    let (local, back) = (ns.lab.dir.join("copied"), ns.lab.dir.join("copied-back"));
    std::fs::write(&local, "a file\n").unwrap();
    ns.kubectl(&["cp", local.to_str().unwrap(), "web:/tmp/copied"]);
    ns.kubectl(&["cp", "web:/tmp/copied", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "a file\n");
}

fn follow(ns: &Namespace<'_>) {
    let mut logs = ns
        .command(&["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    ns.kubectl(&[
        "exec",
        "web",
        "--",
        "/hello",
        "get",
        "http://127.0.0.1:8080/echo?msg=followed",
    ]);
    let found = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("msg=followed"));
    let _ = logs.kill();
    let _ = logs.wait();
    assert!(found, "the log did not show the request");
}

fn forward(ns: &Namespace<'_>) {
    let mut forward = ns
        .command(&["port-forward", "pod/web", ":8080", "--address=127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // kubectl dies of a closed standard output, so the reader must live as long as it does.
    let mut output = BufReader::new(forward.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    let port: String = line
        .split("127.0.0.1:")
        .nth(1)
        .unwrap()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let answer = ns.lab.hello(&["get", &format!("http://127.0.0.1:{port}/")]);
    let _ = forward.kill();
    let _ = forward.wait();
    let text = String::from_utf8_lossy(&answer.stdout);
    assert!(
        answer.status.success() && text.contains("web"),
        "{text} {}",
        String::from_utf8_lossy(&answer.stderr)
    );
}

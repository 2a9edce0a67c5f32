use std::time::Duration;

use keelson_ports::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::machine::{log_text, script, with_machine};

fn shell(text: &str) -> Vec<String> {
    ["sh", "-c", text].map(str::to_owned).to_vec()
}

#[test]
fn commands_run_to_their_end() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("exec").await;
        let id = machine.start(&sandbox, script("main", "sleep 1000")).await;
        let output = machine.exec(&id, "echo out; echo err >&2; exit 4").await;
        assert_eq!(
            (
                output.exit_code,
                output.stdout.as_slice(),
                output.stderr.as_slice()
            ),
            (4, &b"out\n"[..], &b"err\n"[..])
        );
        let many = machine.exec(&id, "head -c 100000 /dev/zero").await;
        assert_eq!((many.exit_code, many.stdout.len()), (0, 16 << 10));
        let second = Duration::from_secs(1);
        let error = machine
            .runtime
            .exec_sync(&id, vec!["nope".to_owned()], second)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exec: \"nope\": executable file not found in $PATH"),
            "{error}"
        );
        let error = machine
            .runtime
            .exec_sync(&id, shell("sleep 1000"), Duration::from_millis(100))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout(_)), "{error:?}");
        // A child in the background must not keep the caller waiting.
        let begin = std::time::Instant::now();
        assert_eq!(
            machine.exec(&id, "sleep 1000 & echo yes").await.stdout,
            b"yes\n"
        );
        assert!(begin.elapsed() < Duration::from_secs(5));
        let runs = (0..40).map(|index| {
            let machine = &machine;
            let id = &id;
            async move {
                assert_eq!(
                    machine.exec(id, &format!("exit {index}")).await.exit_code,
                    index
                );
            }
        });
        futures::future::join_all(runs).await;
        machine
            .runtime
            .stop_container(&id, Duration::ZERO)
            .await
            .unwrap();
        assert!(matches!(
            machine.runtime.exec_sync(&id, shell("true"), second).await,
            Err(Error::Conflict(_))
        ));
        machine
    });
}

#[test]
fn a_command_gets_what_is_typed() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("stdin").await;
        let id = machine.start(&sandbox, script("main", "sleep 1000")).await;
        let request = ExecRequest {
            command: shell("cat; exit 9"),
            stdin: true,
            stdout: true,
            ..ExecRequest::default()
        };
        let mut session = machine.runtime.exec(&id, request).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        let text = vec![b'a'; 1 << 20];
        let write = async {
            stdin.write_all(&text).await.unwrap();
            drop(stdin);
        };
        let mut got = Vec::new();
        let mut stdout = session.stdout.take().unwrap();
        let (_, read) = futures::future::join(write, stdout.read_to_end(&mut got)).await;
        read.unwrap();
        assert_eq!(got.len(), text.len());
        assert_eq!(session.exit.await.unwrap(), 9);
        machine
    });
}

#[test]
fn a_terminal_has_a_size() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("tty").await;
        let id = machine.start(&sandbox, script("main", "sleep 1000")).await;
        let request = ExecRequest {
            command: vec!["sh".to_owned()],
            tty: true,
            stdin: true,
            stdout: true,
            ..ExecRequest::default()
        };
        let mut session = machine.runtime.exec(&id, request).await.unwrap();
        session
            .resize
            .as_ref()
            .unwrap()
            .send((101, 33))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"tty; stty size; exit 3\n").await.unwrap();
        let mut text = String::new();
        session
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert!(text.contains("33 101"), "{text}");
        assert!(text.contains("/dev/pts/"), "{text}");
        assert_eq!(session.exit.await.unwrap(), 3);
        machine
    });
}

#[test]
fn attaching_joins_the_streams() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("attach").await;
        let mut config = script(
            "main",
            "while read line; do echo \"got $line\"; done; exit 8",
        );
        (config.stdin, config.stdin_once) = (true, true);
        let id = machine.start(&sandbox, config).await;
        let request = AttachRequest {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let mut session = machine.runtime.attach(&id, request).await.unwrap();
        let watcher = AttachRequest {
            stdout: true,
            ..AttachRequest::default()
        };
        let mut other = machine.runtime.attach(&id, watcher).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\n").await.unwrap();
        drop(stdin);
        let (mut text, mut seen) = (String::new(), String::new());
        session
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        other
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut seen)
            .await
            .unwrap();
        assert_eq!(
            (text.as_str(), seen.as_str()),
            ("got one\ngot two\n", "got one\ngot two\n")
        );
        assert_eq!(session.exit.await.unwrap(), 8);
        assert_eq!(
            log_text(
                &machine
                    .runtime
                    .container_status(&id)
                    .await
                    .unwrap()
                    .log_path
            ),
            text
        );
        machine
    });
}

#[test]
fn a_container_can_have_a_terminal() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("console").await;
        let mut config = script("main", "");
        config.command = vec!["sh".to_owned()];
        (config.stdin, config.tty) = (true, true);
        let id = machine.start(&sandbox, config).await;
        let request = AttachRequest {
            stdin: true,
            stdout: true,
            stderr: true,
            tty: true,
        };
        let mut session = machine.runtime.attach(&id, request).await.unwrap();
        session
            .resize
            .as_ref()
            .unwrap()
            .send((90, 20))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut stdin = session.stdin.take().unwrap();
        stdin
            .write_all(b"stty size; stty size < /dev/console; echo $TERM; exit 2\n")
            .await
            .unwrap();
        let mut text = String::new();
        session
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!(text.matches("20 90").count(), 2, "{text}");
        assert!(text.contains("\nxterm"), "{text}");
        assert_eq!(session.exit.await.unwrap(), 2);
        machine
    });
}

#[test]
fn ports_are_reached_inside_the_pod() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("port").await;
        machine
            .start(
                &sandbox,
                script("main", "echo hello | nc -l -p 8080; sleep 1000"),
            )
            .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut stream = machine.runtime.port_forward(&sandbox, 8080).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello\n");
        let error = machine
            .runtime
            .port_forward(&sandbox, 8081)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("port 8081"), "{error}");
        machine
    });
}

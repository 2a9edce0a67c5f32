//! The ceiling: a server that answers the same bytes over TLS and HTTP/2 and does nothing else.
//! It runs as a process of its own, as the server it is compared with does.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use keelson_client::{Client, ClientConfig};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Holds the bytes of one object.
    #[arg(long, value_name = "FILE")]
    object: PathBuf,
    /// Holds the bytes of a list.
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
}

/// Serves on a free port of the loopback, which it prints, and after it its certificate, until
/// standard input ends.
pub(crate) fn serve(args: &Args) -> Result<(), String> {
    let read = |path: &PathBuf| {
        std::fs::read(path)
            .map(Bytes::from)
            .map_err(|error| format!("{}: {error}", path.display()))
    };
    let (object, list) = (read(&args.object)?, read(&args.list)?);
    let key = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])
        .map_err(|error| format!("making a certificate: {error}"))?;
    let private = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|tls| {
            tls.with_no_client_auth()
                .with_single_cert(vec![key.cert.der().clone()], private.into())
        })
        .map_err(|error| format!("configuring TLS: {error}"))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let listener = runtime
        .block_on(TcpListener::bind(("127.0.0.1", 0)))
        .map_err(|error| format!("listening: {error}"))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?;
    print!("{}\n{}", port.port(), key.cert.pem());
    let _ = std::io::stdout().flush();
    let answers = Arc::new(Answers::new(object, list));
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, acceptor.clone(), Arc::clone(&answers)));
        }
    });
    // Whoever started this process holds the other end.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    runtime.shutdown_background();
    Ok(())
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What is there to send: an object, a list, and for each write an event to every watch.
struct Answers {
    object: Bytes,
    list: Bytes,
    event: Bytes,
    writes: watch::Sender<usize>,
}

impl Answers {
    fn new(object: Bytes, list: Bytes) -> Self {
        let mut event = b"{\"type\":\"MODIFIED\",\"object\":".to_vec();
        event.extend_from_slice(object.trim_ascii_end());
        event.extend_from_slice(b"}\n");
        Self {
            object,
            list,
            event: event.into(),
            writes: watch::Sender::new(0),
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Body {
        if request.method() != Method::GET {
            self.writes.send_modify(|writes| *writes += 1);
            return Full::new(self.object.clone()).boxed_unsync();
        }
        if request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch="))
        {
            return self.watch();
        }
        Full::new(match request.uri().path().ends_with("/configmaps") {
            true => self.list.clone(),
            false => self.object.clone(),
        })
        .boxed_unsync()
    }

    /// The events of writes that came in between leave together.
    fn watch(&self) -> Body {
        let (event, mut writes) = (self.event.clone(), self.writes.subscribe());
        let sent = *writes.borrow_and_update();
        let events = futures::stream::unfold((writes, sent), move |(mut writes, sent)| {
            let event = event.clone();
            async move {
                writes.changed().await.ok()?;
                let now = *writes.borrow_and_update();
                let events = event.repeat(now - sent);
                Some((Ok(Frame::data(events.into())), (writes, now)))
            }
        });
        StreamBody::new(events).boxed_unsync()
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, answers: Arc<Answers>) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let answer = service_fn(move |request: Request<Incoming>| {
        let mut response = Response::new(answers.answer(&request));
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        async move { Ok::<_, Infallible>(response) }
    });
    // A client that goes away is no error here.
    let _ = auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// A running bare server; dropping it stops it.
pub(crate) struct Bare {
    process: Child,
    /// Closing it is what ends the process.
    input: Option<ChildStdin>,
    dir: PathBuf,
    config: ClientConfig,
}

impl Bare {
    pub(crate) fn start(object: &[u8], list: &[u8]) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("keelson-bench-bare-{}", std::process::id()));
        let (object_file, list_file) = (dir.join("object"), dir.join("list"));
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(&object_file, object))
            .and_then(|()| std::fs::write(&list_file, list))
            .map_err(|error| format!("{}: {error}", dir.display()))?;
        let binary = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut process = Command::new(binary)
            .arg("bare")
            .arg("--object")
            .arg(object_file)
            .arg("--list")
            .arg(list_file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("starting the bare server: {error}"))?;
        let mut bare = Self {
            input: process.stdin.take(),
            dir,
            config: ClientConfig::default(),
            process,
        };
        bare.config = bare.address()?;
        Ok(bare)
    }

    /// Reads where the process listens and which certificate it shows.
    fn address(&mut self) -> Result<ClientConfig, String> {
        let output = self.process.stdout.take();
        let mut output = BufReader::new(output.ok_or("the bare server has no output")?);
        let mut port = String::new();
        let mut certificate = String::new();
        output
            .read_line(&mut port)
            .map_err(|error| error.to_string())?;
        while !certificate.contains("-----END CERTIFICATE-----") {
            let read = output.read_line(&mut certificate);
            if read.map_err(|error| error.to_string())? == 0 {
                return Err("the bare server did not start".to_owned());
            }
        }
        Ok(ClientConfig {
            server: format!("https://127.0.0.1:{}", port.trim()),
            certificate_authority: certificate.into_bytes(),
            ..ClientConfig::default()
        })
    }

    pub(crate) fn client(&self) -> Result<Client, String> {
        Client::https(&self.config).map_err(|error| error.to_string())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("keelson-bench: {}: {error}", self.dir.display());
        }
    }
}

//! The webhooks of a corpus: one server over TLS that answers by path and notes what it was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::Error;

/// The names its certificate bears: of the address, and of Services in the corpus.
const NAMES: [&str; 3] = ["127.0.0.1", "localhost", "hook.differential.svc"];

pub(super) struct Webhooks {
    state: Arc<State>,
    port: u16,
    /// PEM in base64, as in `caBundle`.
    authority: String,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    answers: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<Vec<Value>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Webhooks {
    pub(super) async fn start() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Webhooks(error.to_string());
        // Somebody else may have chosen it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let own =
            rcgen::generate_simple_self_signed(NAMES.map(str::to_owned)).map_err(|e| failed(&e))?;
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .map_err(|e| failed(&e))?;
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .map_err(|e| failed(&e))?;
        let port = listener.local_addr().map_err(|e| failed(&e))?.port();
        let state = Arc::<State>::default();
        let task = tokio::spawn(listen(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&state),
        ));
        Ok(Self {
            state,
            port,
            authority: STANDARD.encode(own.cert.pem()),
            task,
        })
    }

    /// From now on paths are answered like this.
    pub(super) fn answer(&self, answers: BTreeMap<String, Value>) {
        *lock(&self.state.answers) = answers;
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut *lock(&self.state.asked))
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A body of the corpus with what it says of the server.
    pub(super) fn fill_in(&self, text: &str) -> String {
        text.replace("$webhook", &self.url())
            .replace("$ca", &self.authority)
            .replace("\"$port\"", &self.port.to_string())
    }

    /// The reverse of [`Webhooks::fill_in`] in an answer.
    pub(super) fn hide(&self, value: Value) -> Value {
        let text = value
            .to_string()
            .replace(&self.url(), "$webhook")
            .replace(&self.authority, "$ca")
            .replace(&format!(":{}", self.port), ":$port");
        serde_json::from_str(&text).unwrap_or(value)
    }
}

impl Drop for Webhooks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let serve = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(respond(request, &state).await) }
            });
            // Whoever hangs up has its reasons.
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), serve)
                .await;
        });
    }
}

async fn respond(request: Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    let body = body.unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let header = |name: &str| {
        let value = parts.headers.get(name).and_then(|v| v.to_str().ok());
        value.map(str::to_owned)
    };
    lock(&state.asked).push(json!({
        "method": parts.method.as_str(),
        "to": parts.uri.path_and_query().map(|p| p.as_str()),
        "accept": header("accept"),
        "contentType": header("content-type"),
        "review": review,
    }));
    let path = parts.uri.path().trim_start_matches('/');
    let answer = lock(&state.answers).get(path).cloned();
    let answer = answer.unwrap_or_else(|| json!({"code": 404, "body": "nothing is here"}));
    if let Some(seconds) = answer["delay"].as_f64() {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }
    let mut response = Response::builder().status(answer["code"].as_u64().unwrap_or(200) as u16);
    if let Some(location) = answer["location"].as_str() {
        response = response.header("location", location);
    }
    let (kind, text) = body_of(&answer, &review);
    let response = response
        .header("content-type", kind)
        .body(Full::new(Bytes::from(text)));
    response.unwrap_or_default()
}

/// With its content type.
fn body_of(answer: &Value, review: &Value) -> (&'static str, String) {
    let uid = &review["request"]["uid"];
    if let Value::String(text) = &answer["body"] {
        return ("text/plain", text.clone());
    }
    let mut document = answer["body"].clone();
    if document.is_null() {
        document = json!({
            "apiVersion": review["apiVersion"], "kind": "AdmissionReview",
            "response": answer["response"],
        });
        if document["response"].is_object() {
            document["response"]["uid"] = uid.clone();
        }
    }
    let uid = uid.as_str().unwrap_or_default();
    (
        "application/json",
        document.to_string().replace("$uid", uid),
    )
}

//! Runs cases against one server.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use jiff::Timestamp;
use keelson_client::Client;
use serde_json::{Value, json};

use super::corpus::{Setup, Step, User};
use super::edit::edit;
use super::webhooks::Webhooks;
use super::{Case, Corpus, Error, ages, normal};

/// Where namespaced objects of the corpus live.
pub const NAMESPACE: &str = "differential";

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
/// An answer takes no longer, unless the server hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server answered to one step, in normal form.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    pub code: u16,
    pub warnings: Vec<String>,
    /// What webhooks were asked meanwhile.
    pub asked: Vec<Value>,
    pub body: Value,
}

impl Observation {
    pub fn value(&self) -> Value {
        json!({"code": self.code, "warnings": self.warnings, "asked": self.asked, "body": self.body})
    }
}

/// One of the servers that are compared.
pub struct Side {
    client: Client,
    notices_late: bool,
    webhooks: tokio::sync::OnceCell<Webhooks>,
}

/// Runs a corpus on one side.
pub struct Runner<'a> {
    side: &'a Side,
    corpus: &'a Corpus,
}

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Side {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            notices_late: false,
            webhooks: tokio::sync::OnceCell::new(),
        }
    }

    /// It is given the time that the corpus says to notice what was written.
    pub fn noticing_late(mut self) -> Self {
        self.notices_late = true;
        self
    }

    async fn wait(&self, wait_ms: u64) {
        if self.notices_late && wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// Makes the namespace and its service account.
    pub async fn prepare(&self) -> Result<(), Error> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.make("/api/v1/namespaces", &namespace).await?;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"},
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
        self.make(&path, &account).await
    }

    /// Creates an object unless it is there.
    async fn make(&self, collection: &str, object: &Value) -> Result<(), Error> {
        let body = Some(object.to_string());
        let mut answer = self.send(Method::POST, collection, body, "", "").await?;
        if let (Some(status), 201) = (object.get("status"), answer.code) {
            let path = format!("{collection}/{}/status", name(object));
            let patch = Some(json!({"status": status}).to_string());
            let kind = "application/merge-patch+json";
            answer = self.send(Method::PATCH, &path, patch, kind, "").await?;
        }
        if answer.code < 300 || answer.code == 409 {
            return Ok(());
        }
        Err(Error::Setup {
            what: format!("creating {object} at {collection}"),
            answer: answer.body.to_string(),
        })
    }

    /// Deletes an object, with its finalizers.
    async fn remove(&self, path: &str) -> Result<(), Error> {
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        let answer = self
            .send(Method::DELETE, path, Some(options.to_string()), "", "")
            .await?;
        if answer.body.pointer("/metadata/finalizers").is_some() {
            let patch = json!({"metadata": {"finalizers": null}}).to_string();
            let kind = "application/merge-patch+json";
            self.send(Method::PATCH, path, Some(patch), kind, "")
                .await?;
        }
        if answer.body.get("kind").and_then(Value::as_str) == Some("Namespace") {
            let mut namespace = self.send(Method::GET, path, None, "", "").await?.body;
            namespace["spec"] = json!({"finalizers": []});
            let path = format!("{path}/finalize");
            self.send(Method::PUT, &path, Some(namespace.to_string()), "", "")
                .await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        content_type: &str,
        accept: &str,
    ) -> Result<Answer, Error> {
        self.send_as(None, method, path, body, (content_type, accept))
            .await
    }

    async fn send_as(
        &self,
        user: Option<&User>,
        method: Method,
        path: &str,
        body: Option<String>,
        (content_type, accept): (&str, &str),
    ) -> Result<Answer, Error> {
        let body = match self.webhooks.get() {
            Some(webhooks) => body.map(|text| webhooks.fill_in(&text)),
            None => body,
        };
        let what = format!("{method} {path}");
        let failed = |source| Error::Request {
            what: what.clone(),
            source,
        };
        let transport = |reason: String| failed(keelson_client::Error::Transport(reason));
        let or =
            |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("accept", or(accept, "application/json"))
            .header("user-agent", "differential");
        if body.is_some() {
            request = request.header("content-type", or(content_type, "application/json"));
        }
        if let Some(user) = user {
            request = request.header("impersonate-user", &user.user);
            for group in &user.groups {
                request = request.header("impersonate-group", group);
            }
        }
        let request = request
            .body(body.map(Bytes::from).unwrap_or_default())
            .map_err(|e| transport(e.to_string()))?;
        let answer = async {
            let response = self.client.call(request).await.map_err(failed)?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| transport(e.to_string()))?;
            Ok((parts, body.to_bytes()))
        };
        let (parts, body) = tokio::time::timeout(PATIENCE, answer)
            .await
            .map_err(|_| transport("no answer".to_owned()))??;
        let warnings = parts.headers.get_all("warning").iter();
        Ok(Answer {
            code: parts.status.as_u16(),
            warnings: warnings
                .map(|w| String::from_utf8_lossy(w.as_bytes()).into_owned())
                .collect(),
            body: document(&body),
        })
    }
}

/// A JSON document, several of them as a list (a watch), or text.
fn document(body: &[u8]) -> Value {
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let mut documents = Vec::new();
    for value in &mut values {
        match value {
            Ok(value) => documents.push(value),
            Err(_) => return String::from_utf8_lossy(body).into_owned().into(),
        }
    }
    if documents.len() == 1 {
        documents.remove(0)
    } else {
        documents.into()
    }
}

impl<'a> Runner<'a> {
    pub fn new(side: &'a Side, corpus: &'a Corpus) -> Self {
        Self { side, corpus }
    }

    /// Makes what the corpus needs, afresh.
    pub async fn set_up(&self) -> Result<(), Error> {
        if !self.corpus.answers.is_empty() {
            let webhooks = self.side.webhooks.get_or_try_init(Webhooks::start).await?;
            webhooks.answer(self.corpus.answers.clone());
        }
        self.tear_down().await?;
        for setup in &self.corpus.setup {
            self.side.make(&setup.path, &setup.object).await?;
        }
        self.side.wait(self.corpus.wait_ms).await;
        self.served().await?;
        // Something an earlier, interrupted run may have left.
        for base in self.corpus.bases.values() {
            self.side.remove(&self.object_path(base)).await?;
        }
        Ok(())
    }

    /// What a definition of the setup defines is served a moment later.
    async fn served(&self) -> Result<(), Error> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self
                .side
                .send(Method::GET, &self.corpus.collection, None, "", "")
                .await?;
            if answer.code != 404 || tokio::time::Instant::now() > deadline {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes what [`Runner::set_up`] made.
    pub async fn tear_down(&self) -> Result<(), Error> {
        for setup in self.corpus.setup.iter().rev() {
            self.side.remove(&setup.made()).await?;
        }
        self.side.wait(self.corpus.wait_ms).await;
        Ok(())
    }

    /// The answers to every step of a case; what it created is deleted.
    pub async fn run(&self, case: &Case) -> Result<Vec<Observation>, Error> {
        self.run_waiting(case, self.side.notices_late).await
    }

    /// The same once more where the case allows time to notice what was written, and with that
    /// time: what the server does afterwards (a status, say) comes late on a busy machine.
    pub async fn run_again(&self, case: &Case) -> Result<Option<Vec<Observation>>, Error> {
        let waits = case.wait_ms > 0 || case.steps.iter().any(|step| step.wait_ms > 0);
        match waits {
            true => self.run_waiting(case, true).await.map(Some),
            false => Ok(None),
        }
    }

    async fn run_waiting(&self, case: &Case, wait: bool) -> Result<Vec<Observation>, Error> {
        let pause =
            |wait_ms| tokio::time::sleep(Duration::from_millis(if wait { wait_ms } else { 0 }));
        let base = &self.corpus.bases[&case.base];
        let mut object = self.object_path(base);
        let mut observations = Vec::new();
        let times = ages::times(self.corpus, case);
        let mut created: Vec<String> = case.before.iter().map(Setup::made).collect();
        for setup in &case.before {
            if let Err(error) = self.side.make(&setup.path, &setup.object).await {
                self.clean(case, created).await?;
                return Err(error);
            }
        }
        pause(case.wait_ms).await;
        for step in &case.steps {
            let answer = self.step(step, case, base, &object).await?;
            if let Some(made) = self.made(step, &answer) {
                if step.path.is_empty() {
                    object.clone_from(&made);
                }
                created.push(made);
            }
            pause(step.wait_ms).await;
            observations.push(self.observe(answer, &times));
        }
        self.clean(case, created).await?;
        Ok(observations)
    }

    /// The path of what a step made.
    fn made(&self, step: &Step, answer: &Answer) -> Option<String> {
        let makes = matches!(step.verb.as_str(), "create" | "update" | "apply");
        match step.path.as_str() {
            _ if answer.code >= 300 => None,
            "" => makes.then(|| self.object_path(&answer.body)),
            path => (step.verb == "post" && step.subresource.is_empty())
                .then(|| format!("{path}/{}", name(&answer.body))),
        }
    }

    fn observe(&self, mut answer: Answer, times: &BTreeSet<Timestamp>) -> Observation {
        ages::name(&mut answer.body, times, Timestamp::now());
        let normal = |value| normal(value, self.corpus.managed_fields);
        let webhooks = self.side.webhooks.get();
        let hidden = |value: Value| match webhooks {
            Some(webhooks) => webhooks.hide(value),
            None => value,
        };
        Observation {
            code: answer.code,
            warnings: answer.warnings,
            asked: webhooks
                .map(Webhooks::asked)
                .unwrap_or_default()
                .into_iter()
                .map(|asked| normal(hidden(asked)))
                .collect(),
            body: normal(hidden(answer.body)),
        }
    }

    /// What configures admission goes first, lest it keeps the rest from going.
    async fn clean(&self, case: &Case, created: Vec<String>) -> Result<(), Error> {
        let (first, rest): (Vec<_>, Vec<_>) = created
            .into_iter()
            .partition(|path| path.starts_with("/apis/admissionregistration"));
        for path in first {
            self.side.remove(&path).await?;
        }
        let waits = case.steps.iter().map(|step| step.wait_ms);
        self.side.wait(waits.fold(case.wait_ms, u64::max)).await;
        for path in rest {
            self.side.remove(&path).await?;
        }
        if let Some(webhooks) = self.side.webhooks.get() {
            webhooks.asked();
        }
        Ok(())
    }

    fn object_path(&self, object: &Value) -> String {
        format!("{}/{}", self.corpus.collection, name(object))
    }

    async fn step(
        &self,
        step: &Step,
        case: &Case,
        base: &Value,
        object: &str,
    ) -> Result<Answer, Error> {
        let collection = matches!(step.verb.as_str(), "create" | "list" | "deletecollection");
        let own = if collection {
            &self.corpus.collection
        } else {
            object
        };
        let mut path = if step.path.is_empty() {
            own
        } else {
            &step.path
        }
        .to_owned();
        let main = path.clone();
        if !step.subresource.is_empty() {
            path = format!("{path}/{}", step.subresource);
        }
        let target = if step.query.is_empty() {
            path.clone()
        } else {
            format!("{path}?{}", step.query)
        };
        let method = method(&step.verb);
        let body = match (step.verb.as_str(), &step.body) {
            ("get" | "list", _) => None,
            ("delete" | "deletecollection", Value::Null) => None,
            (_, Value::String(text)) => Some(text.clone()),
            ("create", edits) => Some(self.edited(base.clone(), edits, case)?),
            ("update", edits) => {
                let mut current = self.side.send(Method::GET, &path, None, "", "").await?;
                if current.code >= 400 {
                    current = self.side.send(Method::GET, &main, None, "", "").await?;
                }
                let from = if current.code < 300 {
                    current.body
                } else {
                    base.clone()
                };
                Some(self.edited(from, edits, case)?)
            }
            (_, document) => Some(document.to_string()),
        };
        let content_type = match (step.content_type.as_str(), step.verb.as_str()) {
            ("", "merge") => "application/merge-patch+json",
            ("", "strategic") => "application/strategic-merge-patch+json",
            ("", "json") => "application/json-patch+json",
            ("", "apply") => "application/apply-patch+yaml",
            (other, _) => other,
        };
        let accept = if step.accept == "table" {
            TABLE
        } else {
            &step.accept
        };
        let user = step.user.as_ref();
        self.side
            .send_as(user, method, &target, body, (content_type, accept))
            .await
    }

    fn edited(&self, mut document: Value, edits: &Value, case: &Case) -> Result<String, Error> {
        edit(&mut document, edits, &case.root).map_err(|reason| Error::Corpus {
            path: self.corpus.name.clone(),
            reason: format!("{}: {reason}", case.name),
        })?;
        Ok(document.to_string())
    }
}

impl Setup {
    /// The path of the object.
    fn made(&self) -> String {
        format!("{}/{}", self.path, name(&self.object))
    }
}

fn method(verb: &str) -> Method {
    match verb {
        "create" | "post" => Method::POST,
        "update" => Method::PUT,
        "get" | "list" => Method::GET,
        "delete" | "deletecollection" => Method::DELETE,
        _ => Method::PATCH,
    }
}

fn name(object: &Value) -> &str {
    let name = object.pointer("/metadata/name");
    name.and_then(Value::as_str).unwrap_or_default()
}

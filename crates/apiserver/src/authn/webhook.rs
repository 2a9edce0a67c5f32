//! Tokens that a service elsewhere knows, asked by TokenReview. Its answers are kept for a while.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Verified;
use crate::remote::{self, Remote};
use crate::request::UserInfo;

const TIMEOUT: Duration = Duration::from_secs(30);
const CACHED: usize = 4096;

#[derive(Debug, Clone)]
pub struct WebhookOptions {
    pub config_file: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    pub cache_ttl: Duration,
}

pub(crate) struct Webhook {
    remote: Remote,
    version: String,
    ttl: Duration,
    /// By digest of token and audiences, so that no token stays in memory.
    answers: Mutex<HashMap<[u8; 32], (Instant, Answer)>>,
}

type Answer = Result<(UserInfo, Vec<String>), String>;

impl Webhook {
    pub(crate) fn open(options: &WebhookOptions) -> Result<Self, remote::Error> {
        Ok(Self {
            remote: Remote::from_kubeconfig(&options.config_file)?,
            version: options.version.clone(),
            ttl: options.cache_ttl,
            answers: Mutex::default(),
        })
    }

    pub(crate) async fn verify(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Verified, String> {
        let key: [u8; 32] = Sha256::digest(format!("{token}\n{}", audiences.join("\n"))).into();
        let kept = {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let found = answers
                .get(&key)
                .filter(|(until, _)| Instant::now() < *until);
            found.map(|(_, answer)| answer.clone())
        };
        let answer = match kept {
            Some(answer) => answer,
            None => {
                let answer = self.ask(token, audiences).await?;
                self.keep(key, &answer);
                answer
            }
        };
        answer.map(|(user, audiences)| Verified { user, audiences })
    }

    /// The outer error is no answer and is not kept.
    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Answer, String> {
        let review = json!({
            "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "kind": "TokenReview",
            "metadata": {},
            "spec": {"token": token, "audiences": audiences},
        });
        let answer = self
            .remote
            .ask(&review, TIMEOUT)
            .await
            .map_err(|error| format!("webhook: {error}"))?;
        Ok(judged(&answer["status"], audiences))
    }

    fn keep(&self, key: [u8; 32], answer: &Answer) {
        if self.ttl.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CACHED {
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() >= CACHED {
            answers.clear();
        }
        answers.insert(key, (now + self.ttl, answer.clone()));
    }
}

fn judged(status: &Value, asked: &[String]) -> Answer {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|v| v.as_str().map(ToOwned::to_owned))
            .collect()
    };
    if status["authenticated"] != true {
        let reason = status["error"].as_str().unwrap_or_default();
        return Err(match reason {
            "" => "the webhook does not know the token".to_owned(),
            reason => reason.to_owned(),
        });
    }
    let given = texts(&status["audiences"]);
    // A service that knows nothing of audiences speaks for this server's own.
    let audiences: Vec<String> = match given.is_empty() {
        true => asked.to_vec(),
        false => asked
            .iter()
            .filter(|a| given.contains(a))
            .cloned()
            .collect(),
    };
    if audiences.is_empty() && !asked.is_empty() {
        return Err(format!("the token is for the audiences {given:?}"));
    }
    let user = &status["user"];
    let text = |key: &str| user[key].as_str().unwrap_or_default().to_owned();
    let extra = user["extra"].as_object().into_iter().flatten();
    let user = UserInfo {
        username: text("username"),
        uid: text("uid"),
        groups: texts(&user["groups"]),
        extra: extra
            .map(|(key, values)| (key.to_lowercase(), texts(values)))
            .collect(),
    };
    Ok((user, audiences))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_user_for_audiences_that_were_asked() {
        let asked = ["api".to_owned(), "x".to_owned()];
        let status = json!({"authenticated": true, "audiences": ["api", "y"],
            "user": {"username": "jane", "groups": ["dev"], "extra": {"Scopes": ["a"]}}});
        let (user, audiences) = judged(&status, &asked).unwrap();
        assert_eq!(
            (user.username.as_str(), audiences),
            ("jane", vec!["api".to_owned()])
        );
        assert_eq!(user.extra["scopes"], ["a"]);
        assert!(judged(&json!({"authenticated": true, "audiences": ["y"]}), &asked).is_err());
        assert_eq!(
            judged(&json!({"error": "no"}), &asked),
            Err("no".to_owned())
        );
    }
}

//! A way to the API server on which requests and answers get lost.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, header};
use keelson_client::{Body, Client, Error, Transport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Loses a share of the requests, half of them before the server sees them and half of them after:
/// then the change is made and nobody is told. The seed decides the sequence of losses; which
/// request meets which loss depends on the order in which they are sent.
#[derive(Clone)]
pub struct Faults {
    seed: u64,
    percent: u32,
    dice: Arc<Mutex<StdRng>>,
}

enum Fate {
    Kept,
    RequestLost,
    AnswerLost,
}

impl Faults {
    pub fn new(seed: u64, percent: u32) -> Self {
        assert!(percent < 100, "nothing would ever arrive");
        Self {
            seed,
            percent,
            dice: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        }
    }

    /// To be printed by a test that fails.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The same client over the bad way.
    pub fn over(&self, client: Client) -> Client {
        Client::new(Arc::new(BadWay {
            faults: self.clone(),
            client,
        }))
    }

    fn fate(&self) -> Fate {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        match dice.random_range(0..200) {
            roll if roll < self.percent => Fate::RequestLost,
            roll if roll < 2 * self.percent => Fate::AnswerLost,
            _ => Fate::Kept,
        }
    }
}

struct BadWay {
    faults: Faults,
    client: Client,
}

impl Transport for BadWay {
    fn call(
        &self,
        request: http::Request<Bytes>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Error>> {
        let fate = self.faults.fate();
        let client = self.client.clone();
        let lost = |what: &str| Error::Transport(format!("{what} was lost on purpose"));
        async move {
            if matches!(fate, Fate::RequestLost) {
                return Err(lost("the request"));
            }
            let (parts, body) = request.into_parts();
            let text = |name| {
                let value = parts.headers.get(name);
                value.and_then(|value: &http::HeaderValue| value.to_str().ok())
            };
            let body = match parts.method {
                Method::GET => None,
                _ => Some(body),
            };
            let answer = client
                .raw(
                    parts.method.clone(),
                    &parts.uri.to_string(),
                    body,
                    text(header::CONTENT_TYPE),
                    text(header::ACCEPT).unwrap_or("application/json"),
                )
                .await;
            match fate {
                Fate::AnswerLost => Err(lost("the answer")),
                _ => answer,
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(seed: u64) -> (usize, usize) {
        let faults = Faults::new(seed, 20);
        (0..1000).fold((0, 0), |(request, answer), _| match faults.fate() {
            Fate::RequestLost => (request + 1, answer),
            Fate::AnswerLost => (request, answer + 1),
            Fate::Kept => (request, answer),
        })
    }

    #[test]
    fn the_seed_decides_and_the_share_is_kept() {
        assert_eq!(losses(7), losses(7));
        let (request, answer) = losses(7);
        for lost in [request, answer] {
            assert!((60..140).contains(&lost), "{lost} of 1000, 100 expected");
        }
    }
}

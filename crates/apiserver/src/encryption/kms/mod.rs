//! Values guarded by a key management service, version 2 of its API.
//!
//! The service never sees a value: it seals and unseals seeds, of which the server needs one for
//! all that it writes until the service names another key. Seeds it has seen stay in memory, so
//! that reading calls the service once per seed and not once per value.

mod client;
mod envelope;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use client::{Client, DecryptRequest, EncryptRequest};
use envelope::{EncryptedObject, SEED, SEED_BYTES, Seed};

/// How long a seed may be written with after the service was last heard of.
const WRITABLE: Duration = Duration::from_secs(180);
/// How long a seed that was unsealed stays in memory.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Seeds remembered at once; there is one per start of a server and per key of the service.
const MAX_SEEDS: usize = 10_000;
/// A probe's outcome holds this long, when the service was well and when it was not.
const WELL: Duration = Duration::from_secs(20);
const UNWELL: Duration = Duration::from_secs(3);
/// How often the service is asked by the server itself, which is how a new key is noticed.
const INTERVAL: Duration = Duration::from_secs(60);
const INTERVAL_UNWELL: Duration = Duration::from_secs(10);

pub(crate) struct Plugin {
    name: String,
    prefix: String,
    client: Client,
    /// What is written with; nothing before the service has answered once.
    current: ArcSwapOption<Current>,
    seeds: Mutex<HashMap<[u8; 32], (Instant, Arc<Seed>)>>,
    probed: AsyncMutex<Probed>,
}

struct Current {
    seed: Arc<Seed>,
    /// All of a value but its data.
    object: EncryptedObject,
    until: Instant,
}

#[derive(Default)]
struct Probed {
    last: Option<(Instant, Result<(), String>)>,
    /// The version of the API that the service began with.
    version: String,
}

impl Plugin {
    pub(super) fn new(name: &str, endpoint: &str, timeout: Duration) -> Result<Self, String> {
        Ok(Self {
            name: name.to_owned(),
            prefix: format!("k8s:enc:kms:v2:{name}:"),
            client: Client::new(endpoint, timeout)?,
            current: ArcSwapOption::empty(),
            seeds: Mutex::default(),
            probed: AsyncMutex::default(),
        })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The value behind the prefix, sealed.
    pub(super) fn seal(&self, place: &str, plain: &[u8]) -> Result<Vec<u8>, String> {
        let current = self.current.load();
        let current = current
            .as_ref()
            .ok_or_else(|| format!("the KMS provider {} has not answered yet", self.name))?;
        if Instant::now() > current.until {
            return Err(format!(
                "encryptedDEKSource with keyID hash {:?} expired",
                hash(&current.object.key_id)
            ));
        }
        let mut object = current.object.clone();
        object.encrypted_data = current.seed.seal(place, plain)?;
        Ok(object.encode_to_vec())
    }

    /// The plain value of what is behind the prefix, and whether it would be written otherwise now.
    pub(super) async fn open(&self, place: &str, sealed: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let object = EncryptedObject::decode(sealed).map_err(|error| error.to_string())?;
        object.validate()?;
        let seed = self.seed(&object).await?;
        let plain = seed.open(place, &object.encrypted_data)?;
        let current = self.current.load();
        let stale = current.as_ref().is_some_and(|current| {
            current.object.key_id != object.key_id
                || current.object.encrypted_dek_source_type != object.encrypted_dek_source_type
        });
        Ok((plain, stale))
    }

    async fn seed(&self, object: &EncryptedObject) -> Result<Arc<Seed>, String> {
        let digest = object.seed_digest();
        let known = {
            let seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = seeds
                .get(&digest)
                .filter(|(at, _)| at.elapsed() < REMEMBERED);
            fresh.map(|(_, seed)| Arc::clone(seed))
        };
        if let Some(seed) = known {
            return Ok(seed);
        }
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer = self.client.decrypt(request).await;
        let answer = answer.map_err(|error| format!("failed to decrypt DEK, error: {error}"))?;
        let seed = Seed::new(object.encrypted_dek_source_type, answer.plaintext).map(Arc::new)?;
        self.remember(digest, Arc::clone(&seed));
        Ok(seed)
    }

    fn remember(&self, digest: [u8; 32], seed: Arc<Seed>) {
        let mut seeds = self.seeds.lock().unwrap_or_else(PoisonError::into_inner);
        if seeds.len() >= MAX_SEEDS {
            seeds.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        }
        if seeds.len() >= MAX_SEEDS {
            seeds.clear();
        }
        seeds.insert(digest, (Instant::now(), seed));
    }

    /// Asks the service how it is, unless that was done a moment ago, and takes a new seed when it
    /// names a new key.
    pub(super) async fn probe(&self) -> Result<(), String> {
        let mut probed = self.probed.lock().await;
        if let Some((at, outcome)) = &probed.last {
            let holds = if outcome.is_ok() { WELL } else { UNWELL };
            if at.elapsed() < holds {
                return outcome.clone();
            }
        }
        let outcome = self.ask(&mut probed.version).await;
        probed.last = Some((Instant::now(), outcome.clone()));
        outcome
    }

    async fn ask(&self, version: &mut String) -> Result<(), String> {
        let status = self.client.status().await.map_err(|error| {
            format!(
                "failed to perform status section of the healthz check for KMS Provider {}, error: {error}",
                self.name
            )
        })?;
        let mut problems = Vec::new();
        if status.healthz != "ok" {
            problems.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            problems.push(format!(
                "expected KMSv2 API version v2, got {}",
                status.version
            ));
        } else if version.is_empty() {
            version.clone_from(&status.version);
        } else if *version != status.version {
            problems.push(format!(
                "KMSv2 API version should not change after the initial status response version {version}, got {}",
                status.version
            ));
        }
        match envelope::validate_key_id(&status.key_id) {
            Ok(()) => problems.extend(self.rotate(&status.key_id).await.err()),
            Err(problem) => problems.push(format!(
                "got invalid KMSv2 KeyID hash {:?}: {problem}",
                hash(&status.key_id)
            )),
        }
        let problems = match problems.as_slice() {
            [] => return Ok(()),
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        Err(format!(
            "kmsv2 Provider {} is not healthy, error: {problems}",
            self.name
        ))
    }

    /// A seed under the key that the service uses now.
    async fn rotate(&self, key_id: &str) -> Result<(), String> {
        let until = Instant::now() + WRITABLE;
        if let Some(current) = &*self.current.load()
            && current.object.key_id == key_id
        {
            self.current.store(Some(Arc::new(Current {
                seed: Arc::clone(&current.seed),
                object: current.object.clone(),
                until,
            })));
            return Ok(());
        }
        let secret: [u8; SEED_BYTES] = rand::random();
        let request = EncryptRequest {
            plaintext: secret.to_vec(),
            uid: uuid::Uuid::new_v4().to_string(),
        };
        let failed = |error: String| {
            format!(
                "failed to rotate DEK, statusKeyIDHash={:?}: {error}",
                hash(key_id)
            )
        };
        let answer = self.client.encrypt(request).await;
        let answer =
            answer.map_err(|error| failed(format!("failed to encrypt DEK, error: {error}")))?;
        let mut object = EncryptedObject {
            // Anything, for the check of the rest.
            encrypted_data: vec![0],
            key_id: answer.key_id,
            encrypted_dek_source: answer.ciphertext,
            annotations: answer.annotations,
            encrypted_dek_source_type: SEED,
        };
        object.validate().map_err(failed)?;
        if object.key_id != key_id {
            let given = hash(&object.key_id);
            return Err(failed(format!("encryptKeyIDHash={given:?}")));
        }
        object.encrypted_data.clear();
        let seed = Seed::new(SEED, secret.to_vec()).map(Arc::new)?;
        self.remember(object.seed_digest(), Arc::clone(&seed));
        self.current.store(Some(Arc::new(Current {
            seed,
            object,
            until,
        })));
        tracing::info!(provider = self.name, "values are sealed with a new seed");
        Ok(())
    }

    /// Asks the service again and again, until `stop`.
    pub(super) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let pause = match self.probe().await {
                Ok(()) => INTERVAL,
                Err(error) => {
                    tracing::error!(provider = self.name, error, "a KMS provider is not well");
                    INTERVAL_UNWELL
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Key ids may be secrets of the service's owner and do not stand in messages.
fn hash(id: &str) -> String {
    if id.is_empty() {
        return String::new();
    }
    let digest = Sha256::digest(id.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

//! Leader election over a Lease: of several servers, one runs the controllers.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Client, Result};

/// Upstream's defaults: 15 s lease, given up after 10 s without renewal, tried every 2 s.
#[derive(Debug, Clone)]
pub struct LeaderOptions {
    pub namespace: String,
    pub name: String,
    pub identity: String,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
}

impl LeaderOptions {
    pub fn new(name: &str, identity: &str) -> Self {
        Self {
            namespace: "kube-system".to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Waits for the lease, then runs `work` while renewing it. Returns when the lease is lost, the
/// work ends or `shutdown` is cancelled; on shutdown the lease is released for the next holder.
pub async fn lead<F: Future<Output = ()>>(
    client: &Client,
    options: &LeaderOptions,
    shutdown: &CancellationToken,
    work: impl FnOnce() -> F,
) {
    let mut seen = Seen::default();
    loop {
        match acquire(client, options, &mut seen).await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(lease = options.name, %error, "the leader lease could not be read")
            }
        }
        if shutdown
            .run_until_cancelled(tokio::time::sleep(options.retry_period))
            .await
            .is_none()
        {
            return;
        }
    }
    tracing::info!(lease = options.name, identity = options.identity, "leading");
    tokio::select! {
        () = work() => {}
        () = renew(client, options, &mut seen) => tracing::warn!(lease = options.name, "the leader lease was lost"),
        () = shutdown.cancelled() => {}
    }
    if shutdown.is_cancelled()
        && let Err(error) = release(client, options).await
    {
        tracing::debug!(lease = options.name, %error, "the leader lease was not released");
    }
}

/// Another holder's clock is not ours: a lease is stale when it has not changed for its duration
/// by our own clock.
#[derive(Default)]
struct Seen {
    version: String,
    at: Option<Instant>,
}

async fn acquire(client: &Client, options: &LeaderOptions, seen: &mut Seen) -> Result<bool> {
    let now = MicroTime(Timestamp::now());
    let seconds = i32::try_from(options.lease_duration.as_secs()).unwrap_or(i32::MAX);
    let Some(mut lease) = client
        .try_get::<Lease>(&options.namespace, &options.name)
        .await?
    else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(options.name.clone()),
                namespace: Some(options.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(options.identity.clone()),
                lease_duration_seconds: Some(seconds),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            }),
        };
        return match client.create(&lease).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        };
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    if seen.version != version || seen.at.is_none() {
        *seen = Seen {
            version,
            at: Some(Instant::now()),
        };
    }
    let mut spec = lease.spec.take().unwrap_or_default();
    let holder = spec.holder_identity.clone().unwrap_or_default();
    let fresh = seen
        .at
        .is_some_and(|at| at.elapsed() < options.lease_duration);
    if !holder.is_empty() && holder != options.identity && fresh {
        return Ok(false);
    }
    if holder != options.identity {
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
    }
    spec.holder_identity = Some(options.identity.clone());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(now);
    lease.spec = Some(spec);
    match client.update(&lease).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_conflict() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn renew(client: &Client, options: &LeaderOptions, seen: &mut Seen) {
    let mut renewed = Instant::now();
    while renewed.elapsed() < options.renew_deadline {
        // A renewal is due every few seconds by the protocol, hence a timer under ten seconds.
        tokio::time::sleep(options.retry_period).await;
        let left = options.renew_deadline.saturating_sub(renewed.elapsed());
        match tokio::time::timeout(left, acquire(client, options, seen)).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                tracing::debug!(lease = options.name, %error, "the leader lease was not renewed")
            }
            Err(_) => return,
        }
    }
}

async fn release(client: &Client, options: &LeaderOptions) -> Result<()> {
    let mut lease = client
        .get::<Lease>(&options.namespace, &options.name)
        .await?;
    if let Some(spec) = &mut lease.spec
        && spec.holder_identity.as_deref() == Some(&options.identity)
    {
        spec.holder_identity = Some(String::new());
        client.update(&lease).await?;
    }
    Ok(())
}

//! Compaction by whichever server is first, as upstream's API servers do it and under the same
//! key, so that any number of them share one schedule.
//!
//! Every server wakes once an interval and writes the key if its version is still the one it saw
//! last. Whoever succeeds compacts to the revision that was current an interval ago; the others
//! learn the version and wait again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::client::{Client, Failure};
use super::format::{revision, signed};
use super::messages::{
    CompactionRequest, CompactionResponse, Compare, PutRequest, RangeRequest, Request, Response,
    Target, TxnRequest, TxnResponse,
};
use super::{COMPACT, TXN, is_compacted, op};
use crate::{Error, Revision};

const KEY: &[u8] = b"compact_rev_key";

/// What a server knows between two rounds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Round {
    /// The key's version; 0 while it does not exist.
    version: i64,
    /// The revision that was current at the end of the last round.
    revision: Revision,
}

pub(super) async fn run(client: Arc<Client>, interval: Duration, compacted: Arc<AtomicU64>) {
    let mut round = Round::default();
    loop {
        tokio::time::sleep(interval).await;
        match turn(&client, round, &compacted).await {
            Ok(next) => round = next,
            Err(failure) => {
                tracing::warn!(error = %Error::from(failure), "compacting etcd");
            }
        }
    }
}

async fn turn(client: &Client, round: Round, compacted: &AtomicU64) -> Result<Round, Failure> {
    let key = Bytes::from_static(KEY);
    let put = PutRequest {
        key: key.clone(),
        value: round.revision.to_string().into(),
    };
    let get = RangeRequest {
        key: key.clone(),
        ..RangeRequest::default()
    };
    let request = TxnRequest {
        compare: vec![Compare::equal(key, Target::Version(round.version))],
        success: vec![op(Request::Put(put))],
        failure: vec![op(Request::Range(get))],
    };
    let answer: TxnResponse = client.call(TXN, request).await?;
    let now = answer
        .header
        .as_ref()
        .map_or(0, |header| revision(header.revision));
    if !answer.succeeded {
        let found = answer
            .responses
            .into_iter()
            .find_map(|op| match op.response? {
                Response::Range(range) => range.kvs.into_iter().next(),
                _ => None,
            });
        if let Some(done) = found
            .as_ref()
            .and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse().ok())
        {
            compacted.fetch_max(done, Ordering::AcqRel);
        }
        return Ok(Round {
            version: found.map_or(0, |kv| kv.version),
            revision: now,
        });
    }
    let next = Round {
        version: round.version + 1,
        revision: now,
    };
    if round.revision == 0 {
        return Ok(next);
    }
    let request = CompactionRequest {
        revision: signed(round.revision),
    };
    match client.call::<_, CompactionResponse>(COMPACT, request).await {
        Ok(_) => tracing::debug!(revision = round.revision, "compacted etcd"),
        Err(Failure::Refused(status)) if is_compacted(&status) => {}
        Err(failure) => return Err(failure),
    }
    compacted.fetch_max(round.revision, Ordering::AcqRel);
    Ok(next)
}

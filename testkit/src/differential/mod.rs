//! The same requests to two API servers, and what they answer differently.
//!
//! A *corpus* (`testkit/corpus/<group>/<kind>.yaml`) holds rich valid objects and, one line each,
//! cases that edit them. Every case is run against the reference (any API server, by kubeconfig)
//! and against this one; codes, warnings, `Status` bodies and resulting objects must be the same
//! once [`normal`] forms are taken (what a server draws by itself is replaced by its name: `<uid>`,
//! `<now>`, …; an age by the time that it counts from). What the reference said is recorded beside the corpus (`<kind>.expected.jsonl`),
//! so that the test needs no reference.
//!
//! ```text
//! cargo run -p keelson-testkit --example differential -- --reference KUBECONFIG [--record] [FILTER…]
//! cargo run -p keelson-testkit --example differential -- [FILTER…]     # against what is recorded
//! cargo test -p keelson-testkit corpus                                 # the same, all of it
//! ```
//! A filter is a part of `group/kind: case`. `--server KUBECONFIG` puts another server in the place
//! of the one that is started in process; `--verbose` prints the answers in whole.
//! `<kind>.differs.txt` beside the corpus lists the cases that still differ; the test fails when one
//! of them does not differ any more.
//!
//! # The corpus
//! ```yaml
//! collection: /api/v1/namespaces/$ns/pods   # $ns is a namespace with a default service account
//! setup:                                    # made before the cases, removed after them
//!   - {path: /api/v1/namespaces/$ns/configmaps, object: {…}}
//! bases:
//!   base: {apiVersion: v1, kind: Pod, …}    # every base is a case of its own (`bases/base`)
//! groups:
//!   - verb: create                          # one line = one case: edits of the base, then a POST
//!     root: /spec/containers/0              # where edits without a leading slash start
//!     from: base                            # the default
//!     cases:
//!       no image: {image: null}             # null removes; `-` appends to a list
//!       bad port: {ports/0/hostPort: 70000, /spec/hostNetwork: true}
//!   - verb: update                          # creates the base, reads it, edits, PUTs; also update/status …
//!     cases:
//!       new image: {/spec/containers/0/image: other}
//!   - cases:                                # without a verb: steps of any kind
//!       twice: [{create: {}}, {merge: {metadata: {labels: {a: b}}}, query: dryRun=All}]
//! ```
//! Steps: `create`, `update`, `update/SUB` take edits; `merge`, `strategic`, `json`, `apply` (and
//! `…/SUB`) take the patch; `post/SUB` a document; `delete` DeleteOptions (or null);
//! `deletecollection` the same; `get`, `get/SUB`, `list` null. Instead of edits `create`, `update`
//! and patches take a text, which is sent as it is. Beside the verb: `query` (without `?`), `from`
//! (of the base), `path` (instead of the object's or the collection's), `accept` (`table` for a
//! Table), `type` (of the body). If the first step is no `create` the base is created before it.
//! `managedFields: true` at the top compares those too. What a case creates is deleted after it.
//! `as: {user: jane, groups: [g]}` beside the verb or for a group impersonates. `before` of a group is
//! like `setup`, made for each of its cases. `wait: MS` (at the top, of a group, beside a verb) gives
//! the reference time to notice policies, quotas and the like; this server needs none.
//!
//! `answers` at the top is what webhooks answer, by path: `response` (an AdmissionResponse, given the
//! uid of the request), or `body` (a document, or text), with `code`, `location` and `delay` in
//! seconds. In objects `$webhook` is the URL of their server, `$ca` its certificate for `caBundle`,
//! `"$port"` its port; what they were asked is compared, too.

mod ages;
mod corpus;
mod difference;
mod edit;
mod expected;
mod normal;
mod run;
mod webhooks;

use std::path::{Path, PathBuf};

pub use corpus::{Case, Corpus};
pub use difference::{Difference, differences};
pub use expected::{Expected, known_differences};
pub use normal::normal;
pub use run::{NAMESPACE, Observation, Runner, Side};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {reason}")]
    Corpus { path: String, reason: String },
    #[error("{what}")]
    Request {
        what: String,
        #[source]
        source: keelson_client::Error,
    },
    #[error("starting the webhooks' server: {0}")]
    Webhooks(String),
    #[error("{what}: {answer}")]
    Setup { what: String, answer: String },
}

/// Where the corpus of this repository is.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The cases for a server with Services of both families: `--service-cluster-ip-range
/// 10.96.0.0/16,fd00:10::/108` where the reference is upstream's.
pub fn dual_stack_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus-dual-stack")
}

/// The cases for a server that serves every version there is: `--runtime-config=api/all=true
/// --feature-gates=ClusterTrustBundle=true,GenericWorkload=true,PodCertificateRequest=true,\
/// StorageVersionMigrator=true` where the reference is upstream's.
pub fn all_versions_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus-all-versions")
}

/// Every corpus below `directory`, by name (`group/kind`).
pub fn corpora(directory: &Path) -> Result<Vec<Corpus>, Error> {
    let mut files = Vec::new();
    walk(directory, &mut files);
    files.sort();
    files.iter().map(|f| Corpus::read(directory, f)).collect()
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "yaml") {
            files.push(path);
        }
    }
}

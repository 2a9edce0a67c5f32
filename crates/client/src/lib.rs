//! A Kubernetes client for everything that is not the API server: typed requests, shared
//! informers, the work queue and the driver that all controllers run on.
//!
//! It speaks only the Kubernetes API, over a [`Transport`]: HTTPS, or in process. Nothing here
//! knows which.

mod client;
mod config;
mod controller;
mod error;
mod events;
mod https;
mod informer;
mod kubeconfig;
mod leader;
mod ledger;
mod queue;
mod reflector;
mod replacement;
mod transport;
mod types;

pub use client::Client;
pub use config::ClientConfig;
pub use controller::{
    Controller, ControllerContext, Key, Outcome, ReconcileError, Watches, run as run_controller,
};
pub use error::{Error, Result, causes};
pub use events::EventRecorder;
pub use https::HttpsTransport;
pub use informer::{Change, Informer, InformerOptions, Informers};
pub use kubeconfig::{Kubeconfig, NamedCluster, NamedContext, NamedUser};
pub use leader::{LeaderOptions, lead};
pub use queue::Queue;
pub use replacement::Replacement;
pub use transport::{Body, BoxError, Transport, empty, full};
pub use types::{
    DeleteOptions, ListOptions, Meta, Object, ObjectList, PartialObjectMetadata, Patch,
    Propagation, ResourceType, escape, object_key,
};

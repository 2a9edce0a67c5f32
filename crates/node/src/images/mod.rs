//! Getting a container's image onto the node: policy, credentials, back-off, garbage collection.

pub(crate) mod credentials;
pub(crate) mod gc;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod};
use keelson_ports::{Clock, ImageInfo, Images, RegistryAuth};
use regex::Regex;

use crate::events::Events;
use crate::plan::{Backoff, StartError};
use crate::pod::{self, ContainerKind};

/// How long `ErrImagePull` is shown before it turns into `ImagePullBackOff`.
const ERROR_SHOWN: Duration = Duration::from_secs(2);
const NEVER_RETRY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Failed {
    backoff: Backoff,
    /// `ErrImagePull: …`.
    message: String,
}

pub(crate) struct ImagePuller {
    images: Arc<dyn Images>,
    clock: Arc<dyn Clock>,
    events: Events,
    failed: Mutex<HashMap<(String, String), Failed>>,
}

impl ImagePuller {
    pub(crate) fn new(images: Arc<dyn Images>, clock: Arc<dyn Clock>, events: Events) -> Self {
        Self {
            images,
            clock,
            events,
            failed: Mutex::default(),
        }
    }

    /// The image of a container, pulled when its policy asks for that.
    pub(crate) async fn ensure(
        &self,
        pod: &Pod,
        kind: ContainerKind,
        container: &Container,
        auth: &[RegistryAuth],
    ) -> Result<ImageInfo, StartError> {
        let reference = container.image.as_deref().unwrap_or_default();
        let now = self.clock.now();
        let error = |reason: &str, message: String, retry_at: SystemTime| StartError {
            reason: reason.to_owned(),
            message,
            retry_at,
        };
        if !is_reference(reference) {
            let message = format!(
                "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": invalid reference format"
            );
            self.events.container(
                pod,
                kind,
                &container.name,
                "Warning",
                "InspectFailed",
                message.clone(),
            );
            self.events.container(
                pod,
                kind,
                &container.name,
                "Warning",
                "Failed",
                "Error: InvalidImageName",
            );
            return Err(error("InvalidImageName", message, now + NEVER_RETRY));
        }
        let policy = container
            .image_pull_policy
            .as_deref()
            .unwrap_or_else(|| default_pull_policy(reference));
        let present = self.images.resolve(reference).await.map_err(|cause| {
            let message = format!("Failed to inspect image \"{reference}\": {cause}");
            self.events.container(
                pod,
                kind,
                &container.name,
                "Warning",
                "InspectFailed",
                message.clone(),
            );
            error("ImageInspectError", message, now + NEVER_RETRY)
        })?;
        match (policy, present) {
            ("Never", None) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never"
                );
                self.events.container(
                    pod,
                    kind,
                    &container.name,
                    "Warning",
                    "ErrImageNeverPull",
                    message.clone(),
                );
                self.events.container(
                    pod,
                    kind,
                    &container.name,
                    "Warning",
                    "Failed",
                    "Error: ErrImageNeverPull",
                );
                Err(error("ErrImageNeverPull", message, now + NEVER_RETRY))
            }
            // What was made on this machine exists in no registry: it counts as present for `Always`.
            (policy, Some(image)) if policy != "Always" || is_built_in(reference, &image) => {
                let message = format!(
                    "Container image \"{reference}\" already present on machine and can be accessed by the pod"
                );
                self.events
                    .container(pod, kind, &container.name, "Normal", "Pulled", message);
                Ok(image)
            }
            _ => self.pull(pod, kind, container, reference, auth).await,
        }
    }

    async fn pull(
        &self,
        pod: &Pod,
        kind: ContainerKind,
        container: &Container,
        reference: &str,
        auth: &[RegistryAuth],
    ) -> Result<ImageInfo, StartError> {
        let key = (pod::uid(pod).to_owned(), reference.to_owned());
        let started = self.clock.now();
        if let Some(failed) = self.lock().get(&key)
            && !failed.backoff.is_forgotten(started)
            && failed.backoff.updated_at + failed.backoff.delay > started
        {
            let message = format!("Back-off pulling image \"{reference}\"");
            self.events.container(
                pod,
                kind,
                &container.name,
                "Normal",
                "BackOff",
                message.clone(),
            );
            self.events.container(
                pod,
                kind,
                &container.name,
                "Warning",
                "Failed",
                "Error: ImagePullBackOff",
            );
            return Err(StartError {
                reason: "ImagePullBackOff".to_owned(),
                message: format!("{message}: {}", failed.message),
                retry_at: failed.backoff.updated_at + failed.backoff.delay,
            });
        }
        let message = format!("Pulling image \"{reference}\"");
        self.events
            .container(pod, kind, &container.name, "Normal", "Pulling", message);
        match self.images.pull(reference, auth, None).await {
            Ok(image) => {
                self.lock().remove(&key);
                let took = self.clock.now().duration_since(started).unwrap_or_default();
                let took = if took < Duration::from_secs(1) {
                    format!("{}ms", took.as_millis())
                } else {
                    format!("{:.3}s", took.as_secs_f64())
                };
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size_bytes
                );
                self.events
                    .container(pod, kind, &container.name, "Normal", "Pulled", message);
                Ok(image)
            }
            Err(cause) => {
                let now = self.clock.now();
                let mut failed = self.lock();
                let backoff = Backoff::next(failed.get(&key).map(|failed| failed.backoff), now);
                let text = format!("failed to pull and unpack image \"{reference}\": {cause}");
                failed.insert(
                    key,
                    Failed {
                        backoff,
                        message: format!("ErrImagePull: {text}"),
                    },
                );
                drop(failed);
                let message = format!("Failed to pull image \"{reference}\": {text}");
                self.events
                    .container(pod, kind, &container.name, "Warning", "Failed", message);
                self.events.container(
                    pod,
                    kind,
                    &container.name,
                    "Warning",
                    "Failed",
                    "Error: ErrImagePull",
                );
                Err(StartError {
                    reason: "ErrImagePull".to_owned(),
                    message: text,
                    retry_at: now + ERROR_SHOWN,
                })
            }
        }
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.lock().retain(|(pod, _), _| pod != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Failed>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image that the node made itself: the registry `localhost` has no port to ask at.
fn is_built_in(reference: &str, image: &ImageInfo) -> bool {
    image.pinned && reference.starts_with("localhost/")
}

/// `Always` for the tag `latest` (also when left out), else `IfNotPresent`.
pub(crate) fn default_pull_policy(reference: &str) -> &'static str {
    if reference.contains('@') {
        return "IfNotPresent";
    }
    let last = reference.rsplit('/').next().unwrap_or(reference);
    match last.split_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let part = "[a-z0-9]+(?:(?:[.]|_|__|-+)[a-z0-9]+)*";
    let label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
    let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    Regex::new(&format!(
        r"^(?:{host}/)?{part}(?:/{part})*(?::[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,127}})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{{32,}})?$"
    ))
    .ok()
});

/// Whether the text can name an image.
pub(crate) fn is_reference(text: &str) -> bool {
    text.len() <= 1024 && REFERENCE.as_ref().is_some_and(|regex| regex.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for good in [
            "nginx",
            "nginx:1.27",
            "library/nginx",
            "localhost/keelson/hello",
            "localhost:5000/a/b_c:v1.2-x",
            "reg.example.com:5000/a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "[::1]:5000/x",
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "",
            "Nginx",
            "nginx:",
            "nginx::1",
            "a//b",
            "INVALID@",
            "-a",
            "a/b:c:d",
            "http://x/y",
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn policies() {
        assert_eq!(default_pull_policy("nginx"), "Always");
        assert_eq!(default_pull_policy("localhost:5000/nginx"), "Always");
        assert_eq!(default_pull_policy("nginx:latest"), "Always");
        assert_eq!(default_pull_policy("nginx:1"), "IfNotPresent");
        assert_eq!(default_pull_policy("nginx@sha256:00"), "IfNotPresent");
    }
}

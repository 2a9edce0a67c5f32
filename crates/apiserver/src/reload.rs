//! Configuration files that may change while the server runs.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Upstream looks as often; files tell nobody when they change.
const INTERVAL: Duration = Duration::from_secs(60);

/// A file whose changes are looked for.
pub(crate) struct Changes {
    path: PathBuf,
    current: String,
    stop: CancellationToken,
}

impl Changes {
    /// Ends with `stop`.
    pub(crate) fn of(path: PathBuf, stop: CancellationToken) -> Self {
        Self {
            current: std::fs::read_to_string(&path).unwrap_or_default(),
            path,
            stop,
        }
    }

    /// The file's text when it is another than before; nothing at the end. A file that cannot be
    /// read leaves everything as it is.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            match tokio::fs::read_to_string(&self.path).await {
                Ok(text) if text == self.current => {}
                Ok(text) => {
                    self.current.clone_from(&text);
                    return Some(text);
                }
                Err(error) => {
                    let file = self.path.display();
                    tracing::warn!(%file, %error, "a configuration file cannot be read");
                }
            }
        }
    }

    /// Tells what became of the text; one that is not understood leaves everything as it is.
    pub(crate) fn settle(&self, outcome: Result<(), String>) {
        let file = self.path.display();
        match outcome {
            Ok(()) => tracing::info!(%file, "a configuration file was read again"),
            Err(reason) => {
                tracing::error!(%file, reason, "a changed configuration file is not used");
            }
        }
    }
}

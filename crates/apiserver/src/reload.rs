//! Configuration files that may change while the server runs.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Upstream looks as often; files tell nobody when they change.
const INTERVAL: Duration = Duration::from_secs(60);

/// Calls `changed` with the file's text whenever it is another than `current`, until `stop`. A
/// file that cannot be read, or is not understood, leaves everything as it is.
pub(crate) async fn follow(
    path: PathBuf,
    mut current: String,
    stop: CancellationToken,
    changed: impl Fn(&str) -> Result<(), String>,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let file = path.display();
        match tokio::fs::read_to_string(&path).await {
            Ok(text) if text == current => {}
            Ok(text) => {
                match changed(&text) {
                    Ok(()) => tracing::info!(%file, "a configuration file was read again"),
                    Err(reason) => {
                        tracing::error!(%file, reason, "a changed configuration file is not used");
                    }
                }
                current = text;
            }
            Err(error) => tracing::warn!(%file, %error, "a configuration file cannot be read"),
        }
    }
}

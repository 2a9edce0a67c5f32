//! `version`: of this client and of the server.

use async_trait::async_trait;
use clap::{ArgMatches, Command};
use http::Method;

use super::Verb;
use crate::Error;
use crate::resources::text;
use crate::session::Session;

pub(crate) struct Version;

#[async_trait]
impl Verb for Version {
    fn name(&self) -> &'static str {
        "version"
    }

    fn command(&self) -> Command {
        Command::new("version").about("Print the versions of client and server")
    }

    async fn run(&self, session: &Session, _arguments: &ArgMatches) -> Result<(), Error> {
        println!("Client Version: keelson {}", env!("CARGO_PKG_VERSION"));
        if !session.config.server.is_empty() {
            let version = session
                .client
                .request(Method::GET, "/version", None)
                .await?;
            println!("Server Version: {}", text(&version, "gitVersion"));
        }
        Ok(())
    }
}

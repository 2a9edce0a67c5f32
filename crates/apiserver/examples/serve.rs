//! The API server alone: `serve DIR PORT [RUNTIME_CONFIG…|FEATURE_GATE…]` writes `DIR/admin.conf` and
//! serves until it is interrupted.

use std::path::PathBuf;

use keelson_apiserver::{ApiServer, Config};

// What the shipped binary runs on, so that figures taken here mean something there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: serve DIR PORT")?);
    let port: u16 = arguments.next().ok_or("usage: serve DIR PORT")?.parse()?;
    // Keys of versions have a slash, names of gates have none.
    let (runtime_config, feature_gates) = arguments.partition(|pair| pair.contains('/'));
    let began = std::time::Instant::now();
    let config = Config {
        port,
        runtime_config,
        feature_gates,
        ..Config::new(&dir)
    };
    let server =
        ApiServer::start(config, keelson_store::embedded::open(&dir.join("store"))?).await?;
    let listener = tokio::net::TcpListener::bind(("0.0.0.0", port)).await?;
    server.serve(listener)?;
    let admin = server.pki().admin()?;
    let config = server
        .pki()
        .kubeconfig("keelson", &format!("https://127.0.0.1:{port}"), &admin);
    std::fs::write(dir.join("admin.conf"), config)?;
    println!("serving on {port} after {} ms", began.elapsed().as_millis());
    tokio::signal::ctrl_c().await?;
    server.shutdown().await;
    Ok(())
}

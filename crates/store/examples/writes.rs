//! Durable writes a second with one and with many writers, on the embedded engine and on etcd:
//! `cargo run --release -p keelson-store --example writes -- DIR [ETCD_URL]`.

use std::time::{Duration, Instant};

use keelson_store::{Expect, SharedStore, Value, embedded, etcd};

const TIME: Duration = Duration::from_secs(3);
const SIZE_BYTES: usize = 1000;

async fn measure(engine: &str, store: &SharedStore, writers: u32) {
    let end = Instant::now() + TIME;
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = 0u32;
                while Instant::now() < end {
                    let value = Value {
                        bytes: vec![b'x'; SIZE_BYTES].into(),
                        stamp_at: Some(9),
                    };
                    let key = format!("/bench/{writer}/{}", written % 100);
                    store.put(&key, value, Expect::Any).await?;
                    written += 1;
                }
                Ok::<_, keelson_store::Error>(written)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        match task.await {
            Ok(Ok(written)) => total += written,
            Ok(Err(error)) => eprintln!("{engine}: {error}"),
            Err(error) => eprintln!("{engine}: {error}"),
        }
    }
    let rate = f64::from(total) / TIME.as_secs_f64();
    println!("{engine:<9} {writers:>3} writers  {rate:>9.0} writes/s");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let dir = arguments.first().ok_or("which directory?")?;
    let store = embedded::open(std::path::Path::new(dir))?;
    for writers in [1, 32] {
        measure("embedded", &store, writers).await;
    }
    if let Some(url) = arguments.get(1) {
        let store = etcd::connect(etcd::Options::new(vec![url.clone()])).await?;
        for writers in [1, 32] {
            measure("etcd", &store, writers).await;
        }
    }
    Ok(())
}

//! `keelson image`: the node's image store, with or without a running server.

use keelson_linux::{ImageStore, RegistryConfig};
use keelson_ports::{ImageInfo, Images, RegistryAuth};

use crate::args::{ImageAction, ImageArgs, Output};
use crate::instance::Instance;
use crate::server;

pub(crate) fn run(args: ImageArgs) -> Result<(), String> {
    let instance = Instance::new(&args.on.data_dir)?;
    let reads = matches!(args.action, ImageAction::List | ImageAction::Remove { .. });
    if reads && !instance.data_dir.exists() {
        return Err(format!(
            "there is no data directory {}: name the server's with --data-dir",
            instance.data_dir.display()
        ));
    }
    let store = open(&instance)?;
    server::runtime()?.block_on(async {
        match args.action {
            ImageAction::Pull { reference, creds } => {
                let auth: Vec<RegistryAuth> = match creds {
                    None => Vec::new(),
                    Some(creds) => {
                        let (username, password) = creds
                            .split_once(':')
                            .ok_or("--creds must be USER:PASSWORD".to_owned())?;
                        let (username, password) = (username.to_owned(), password.to_owned());
                        vec![RegistryAuth {
                            username,
                            password,
                            ..RegistryAuth::default()
                        }]
                    }
                };
                let image = store
                    .pull(&reference, &auth, None)
                    .await
                    .map_err(|error| error.to_string())?;
                print(&[image], args.on.output)
            }
            ImageAction::Import { file } => print(
                &store
                    .import(&file)
                    .await
                    .map_err(|error| error.to_string())?,
                args.on.output,
            ),
            ImageAction::List => print(
                &store.list().await.map_err(|error| error.to_string())?,
                args.on.output,
            ),
            ImageAction::Remove { references } => {
                for reference in references {
                    store
                        .remove(&reference)
                        .await
                        .map_err(|error| error.to_string())?;
                }
                Ok(())
            }
        }
    })
}

/// The store, with `registries.yaml` of the data directory if there is one.
pub(crate) fn open(instance: &Instance) -> Result<ImageStore, String> {
    let file = instance.data_dir.join("registries.yaml");
    let registries: RegistryConfig = match std::fs::read_to_string(&file) {
        Ok(text) => {
            serde_saphyr::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => RegistryConfig::default(),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    ImageStore::open(&instance.data_dir, registries).map_err(|error| error.to_string())
}

fn print(images: &[ImageInfo], output: Output) -> Result<(), String> {
    if output == Output::Json {
        println!(
            "{}",
            serde_json::to_string_pretty(images).map_err(|error| error.to_string())?
        );
        return Ok(());
    }
    let rows: Vec<(&str, &ImageInfo)> = images
        .iter()
        .flat_map(|image| names(image).into_iter().map(move |name| (name, image)))
        .collect();
    let width = rows.iter().map(|(name, _)| name.len()).max();
    let width = width.unwrap_or(0).max(4) + 3;
    println!("{:<width$}{:<15}SIZE", "NAME", "ID");
    for (name, image) in rows {
        let id = image.id.trim_start_matches("sha256:");
        let size = image.size_bytes as f64 / f64::from(1 << 20);
        println!(
            "{name:<width$}{:<15}{size:.1} MiB",
            id.get(..12).unwrap_or(id)
        );
    }
    Ok(())
}

/// Every tag of an image; one without tags has its digests.
fn names(image: &ImageInfo) -> Vec<&str> {
    let all = if image.repo_tags.is_empty() {
        &image.repo_digests
    } else {
        &image.repo_tags
    };
    match all.as_slice() {
        [] => vec!["<none>"],
        all => all.iter().map(String::as_str).collect(),
    }
}

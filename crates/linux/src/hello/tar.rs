//! As much of `tar` as `kubectl cp` asks for.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Outcome;

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    create: bool,
    extract: bool,
    list: bool,
    verbose: bool,
    gzip: bool,
    keep_time: bool,
    file: String,
    directory: Option<PathBuf>,
    paths: Vec<PathBuf>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Options {
            keep_time: true,
            file: "-".into(),
            ..Options::default()
        };
        let mut rest = arguments.iter();
        let mut first = true;
        while let Some(argument) = rest.next() {
            let mut value = || {
                rest.next()
                    .cloned()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--" => {
                    options.paths.extend(rest.map(PathBuf::from));
                    break;
                }
                "--directory" => options.directory = Some(value()?.into()),
                "--file" => options.file = value()?,
                // Whether the owner is kept depends on who runs this, as with every tar.
                long if long.starts_with("--") => {}
                flags if first || flags.starts_with('-') && flags.len() > 1 => {
                    for flag in flags.trim_start_matches('-').chars() {
                        match flag {
                            'c' => options.create = true,
                            'x' => options.extract = true,
                            't' => options.list = true,
                            'v' => options.verbose = true,
                            'z' => options.gzip = true,
                            'm' => options.keep_time = false,
                            'p' | 'o' | 'h' => {}
                            'f' => options.file = value()?,
                            'C' => options.directory = Some(value()?.into()),
                            other => return Err(format!("the option {other} is unknown")),
                        }
                    }
                }
                path => options.paths.push(path.into()),
            }
            first = false;
        }
        match (options.create, options.extract, options.list) {
            (true, false, false) | (false, true, false) | (false, false, true) => Ok(options),
            _ => Err("say one of c, x and t".into()),
        }
    }
}

pub(super) fn command(arguments: &[String]) -> Outcome {
    let options = Options::parse(arguments)?;
    let done = if options.create {
        create(&options)
    } else {
        extract(&options)
    };
    done.map(|()| 0).map_err(|e| e.to_string())
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn create(options: &Options) -> io::Result<()> {
    let out: Box<dyn Write> = match options.file.as_str() {
        "-" => Box::new(io::stdout().lock()),
        path => Box::new(File::create(path).map_err(|e| named(Path::new(path), &e))?),
    };
    let out: Box<dyn Write> = if options.gzip {
        Box::new(flate2::write::GzEncoder::new(
            out,
            flate2::Compression::fast(),
        ))
    } else {
        Box::new(io::BufWriter::with_capacity(64 << 10, out))
    };
    let mut builder = tar::Builder::new(out);
    builder.follow_symlinks(false);
    for path in &options.paths {
        let full = options
            .directory
            .as_deref()
            .unwrap_or(Path::new(""))
            .join(path);
        // Members of an archive have no root, whoever made it.
        let name = path.strip_prefix("/").unwrap_or(path);
        let name = if name.as_os_str().is_empty() {
            Path::new(".")
        } else {
            name
        };
        let meta = full.symlink_metadata().map_err(|e| named(&full, &e))?;
        if meta.is_dir() {
            builder.append_dir_all(name, &full)
        } else {
            builder.append_path_with_name(&full, name)
        }
        .map_err(|e| named(&full, &e))?;
    }
    builder.into_inner()?.flush()
}

fn extract(options: &Options) -> io::Result<()> {
    let input: Box<dyn Read> = match options.file.as_str() {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).map_err(|e| named(Path::new(path), &e))?),
    };
    let input: Box<dyn Read> = if options.gzip {
        Box::new(flate2::read::MultiGzDecoder::new(input))
    } else {
        input
    };
    let mut archive = tar::Archive::new(input);
    archive.set_preserve_mtime(options.keep_time);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    let target = options
        .directory
        .clone()
        .unwrap_or_else(|| PathBuf::from("."));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if !options.paths.is_empty() && !options.paths.iter().any(|wanted| path.starts_with(wanted))
        {
            continue;
        }
        if options.list || options.verbose {
            println!("{}", path.display());
        }
        if !options.list {
            entry.unpack_in(&target).map_err(|e| named(&path, &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_kubectl_says_is_understood() {
        let create = Options::parse(&words("cf - -C /var log/a")).unwrap();
        assert!(create.create && create.file == "-" && create.paths == [PathBuf::from("log/a")]);
        let extract = Options::parse(&words(
            "--no-same-permissions --no-same-owner -xmf - -C /tmp",
        ))
        .unwrap();
        assert!(extract.extract && !extract.keep_time && extract.directory == Some("/tmp".into()));
        assert!(Options::parse(&words("-f -")).is_err());
    }

    #[test]
    fn files_survive_the_way_there_and_back() {
        let dir =
            std::env::temp_dir().join(format!("keelson-tar-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(dir.join("from/sub")).unwrap();
        std::fs::create_dir(dir.join("to")).unwrap();
        std::fs::write(dir.join("from/sub/file"), "text").unwrap();
        let archive = dir.join("a.tar").display().to_string();
        let (from, to) = (
            dir.join("from").display().to_string(),
            dir.join("to").display().to_string(),
        );
        assert_eq!(
            command(&words(&format!("czf {archive} -C {from} sub"))),
            Ok(0)
        );
        assert_eq!(command(&words(&format!("-xzmf {archive} -C {to}"))), Ok(0));
        assert_eq!(
            std::fs::read_to_string(dir.join("to/sub/file")).unwrap(),
            "text"
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}

//! The small commands: files, environment, time, memory.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use super::{Outcome, want};

fn at(path: &str) -> impl Fn(io::Error) -> String + '_ {
    move |e| format!("{path}: {e}")
}

pub(super) fn echo(arguments: &[String]) -> Outcome {
    let (words, end) = match arguments.split_first() {
        Some((flag, rest)) if flag == "-n" => (rest, ""),
        _ => (arguments, "\n"),
    };
    print_all(format!("{}{end}", words.join(" ")).as_bytes())
}

pub(super) fn print_all(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(0),
        Err(e) => Err(e.to_string()),
    }
}

pub(super) fn cat(arguments: &[String]) -> Outcome {
    let copy =
        |mut from: Box<dyn io::Read>| io::copy(&mut from, &mut io::stdout().lock()).map(|_| ());
    if arguments.is_empty() {
        copy(Box::new(io::stdin())).map_err(|e| e.to_string())?;
    }
    for path in arguments {
        let file: Box<dyn io::Read> = if path == "-" {
            Box::new(io::stdin())
        } else {
            Box::new(fs::File::open(path).map_err(at(path))?)
        };
        copy(file).map_err(at(path))?;
    }
    Ok(0)
}

pub(super) fn ls(arguments: &[String]) -> Outcome {
    let (flags, paths): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|a| a.starts_with('-'));
    let long = flags.iter().any(|f| f.contains('l'));
    let here = ".".to_owned();
    let paths = if paths.is_empty() { vec![&here] } else { paths };
    for path in paths {
        let meta = fs::symlink_metadata(path).map_err(at(path))?;
        let mut names = Vec::new();
        if meta.is_dir() {
            for entry in fs::read_dir(path).map_err(at(path))? {
                names.push(
                    entry
                        .map_err(at(path))?
                        .file_name()
                        .to_string_lossy()
                        .into_owned(),
                );
            }
            names.sort();
        } else {
            names.push(path.clone());
        }
        for name in names {
            let full = if meta.is_dir() {
                Path::new(path).join(&name)
            } else {
                path.into()
            };
            match fs::symlink_metadata(&full) {
                Ok(m) if long => {
                    println!(
                        "{:06o} {:>5} {:>5} {:>10} {name}",
                        m.mode(),
                        m.uid(),
                        m.gid(),
                        m.len()
                    );
                }
                _ => println!("{name}"),
            }
        }
    }
    Ok(0)
}

pub(super) fn mkdir(arguments: &[String]) -> Outcome {
    let parents = arguments.iter().any(|a| a == "-p");
    for path in arguments.iter().filter(|a| !a.starts_with('-')) {
        let made = if parents {
            fs::create_dir_all(path)
        } else {
            fs::create_dir(path)
        };
        made.map_err(at(path))?;
    }
    Ok(0)
}

pub(super) fn rm(arguments: &[String]) -> Outcome {
    let flag = |c: char| {
        arguments
            .iter()
            .any(|a| a.starts_with('-') && a.contains(c))
    };
    for path in arguments.iter().filter(|a| !a.starts_with('-')) {
        let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        let removed = if is_dir && flag('r') {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        match removed {
            Err(e) if flag('f') && e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(at(path))?,
        }
    }
    Ok(0)
}

pub(super) fn touch(arguments: &[String]) -> Outcome {
    for path in arguments {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(at(path))?;
        file.set_modified(std::time::SystemTime::now())
            .map_err(at(path))?;
    }
    Ok(0)
}

pub(super) fn test(arguments: &[String]) -> Outcome {
    let [flag, path] = want(arguments, "test -d|-e|-f PATH")?;
    let found = match flag.as_str() {
        "-d" => fs::metadata(&path).is_ok_and(|m| m.is_dir()),
        "-f" => fs::metadata(&path).is_ok_and(|m| m.is_file()),
        "-e" | "-r" => fs::metadata(&path).is_ok(),
        "-s" => fs::metadata(&path).is_ok_and(|m| m.len() > 0),
        "-n" => !path.is_empty(),
        "-z" => path.is_empty(),
        other => return Err(format!("{other} is unknown")),
    };
    Ok(i32::from(!found))
}

pub(super) fn env(_: &[String]) -> Outcome {
    let mut lines = String::new();
    for (name, value) in std::env::vars_os() {
        lines.push_str(&format!(
            "{}={}\n",
            name.to_string_lossy(),
            value.to_string_lossy()
        ));
    }
    print_all(lines.as_bytes())
}

pub(super) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

pub(super) fn hostname(_: &[String]) -> Outcome {
    print_all(format!("{}\n", host_name()).as_bytes())
}

pub(super) fn id(_: &[String]) -> Outcome {
    let groups = rustix::process::getgroups().map_err(|e| e.to_string())?;
    let groups: Vec<String> = groups.iter().map(|g| g.as_raw().to_string()).collect();
    let (uid, gid) = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    print_all(format!("uid={uid} gid={gid} groups={}\n", groups.join(",")).as_bytes())
}

pub(super) fn sleep(arguments: &[String]) -> Outcome {
    let [time] = want(arguments, "sleep SECONDS")?;
    if time == "infinity" || time == "inf" {
        loop {
            std::thread::park();
        }
    }
    let (number, unit) = match time.strip_suffix(['s', 'm', 'h', 'd']) {
        Some(number) => (number, &time[number.len()..]),
        None => (time.as_str(), "s"),
    };
    let seconds: f64 = number
        .parse()
        .map_err(|_| format!("{time:?} is no number"))?;
    let factor = match unit {
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => 1.0,
    };
    let duration = Duration::try_from_secs_f64(seconds * factor).map_err(|e| e.to_string())?;
    std::thread::sleep(duration);
    Ok(0)
}

pub(super) fn exit_with(arguments: &[String]) -> Outcome {
    let [code] = want(arguments, "exit CODE")?;
    code.parse()
        .map_err(|_| format!("{code:?} is no exit code"))
}

/// Touches every page, so that the memory is really taken, then keeps it.
pub(super) fn eat_memory(arguments: &[String]) -> Outcome {
    let [megabytes] = want(arguments, "eat-memory MB")?;
    let megabytes: usize = megabytes
        .parse()
        .map_err(|_| format!("{megabytes:?} is no number"))?;
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for taken in 1..=megabytes {
        eaten.push(vec![u8::try_from(taken % 255).unwrap_or(0) + 1; 1 << 20]);
    }
    print_all(format!("took {} MB\n", eaten.len()).as_bytes())?;
    let mut nothing = [0; 1];
    // With an input that ends this ends; without, it stays until it is stopped.
    if arguments.get(1).is_some_and(|a| a == "--until-eof") {
        let _ = io::stdin().read(&mut nothing);
        return Ok(0);
    }
    loop {
        std::thread::park();
        std::hint::black_box(&eaten);
    }
}

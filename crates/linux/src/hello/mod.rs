//! `localhost/keelson/hello`: an image that needs no registry, made of this very binary.
//!
//! It serves a small web page, and it has the few commands that trying out a cluster asks for:
//! names, connections, files, environment, memory; and `tar`, without which `kubectl cp` cannot
//! work. Runs before anything of the server is set up, so a container of it stays small.

mod commands;
mod dns;
mod image;
mod net;
mod shell;
#[allow(unsafe_code)]
mod signals;
mod tar;

use std::ffi::OsString;
use std::path::Path;
use std::process::exit;

pub use image::{HELLO_IMAGE, ensure_hello_image};

/// The first argument that makes any copy of the binary behave as the image's `/hello`.
pub const HELLO_ARGUMENT: &str = "__hello";

type Outcome = Result<i32, String>;

struct Command {
    name: &'static str,
    /// What follows the name, and what it does.
    help: &'static str,
    run: fn(&[String]) -> Outcome,
}

/// Also the names under which the binary stands in the image's `/bin`.
static COMMANDS: &[Command] = &[
    Command {
        name: "serve",
        help: "[--port 8080]: a web server (the default)",
        run: net::serve,
    },
    Command {
        name: "get",
        help: "URL: prints what a plain HTTP server answers",
        run: net::get,
    },
    Command {
        name: "tcp",
        help: "HOST PORT [TEXT]: connects, sends, prints the answer",
        run: net::tcp,
    },
    Command {
        name: "udp",
        help: "HOST PORT TEXT: sends a datagram, prints the answer",
        run: net::udp,
    },
    Command {
        name: "tcp-serve",
        help: "PORT: answers each connection with its peer and echoes",
        run: net::tcp_serve,
    },
    Command {
        name: "udp-serve",
        help: "PORT: echoes datagrams behind the host's name",
        run: net::udp_serve,
    },
    Command {
        name: "lookup",
        help: "NAME [TYPE]: resolves as /etc/resolv.conf says",
        run: dns::lookup_command,
    },
    Command {
        name: "nslookup",
        help: "NAME: as lookup",
        run: dns::lookup_command,
    },
    Command {
        name: "echo",
        help: "[-n] WORD…",
        run: commands::echo,
    },
    Command {
        name: "cat",
        help: "[FILE…]",
        run: commands::cat,
    },
    Command {
        name: "ls",
        help: "[PATH…]",
        run: commands::ls,
    },
    Command {
        name: "mkdir",
        help: "[-p] DIR…",
        run: commands::mkdir,
    },
    Command {
        name: "rm",
        help: "[-r] [-f] PATH…",
        run: commands::rm,
    },
    Command {
        name: "touch",
        help: "FILE…",
        run: commands::touch,
    },
    Command {
        name: "test",
        help: "-d|-e|-f PATH",
        run: commands::test,
    },
    Command {
        name: "env",
        help: "prints the environment",
        run: commands::env,
    },
    Command {
        name: "hostname",
        help: "prints the host's name",
        run: commands::hostname,
    },
    Command {
        name: "id",
        help: "prints user and group ids",
        run: commands::id,
    },
    Command {
        name: "sleep",
        help: "SECONDS (or infinity)",
        run: commands::sleep,
    },
    Command {
        name: "exit",
        help: "CODE",
        run: commands::exit_with,
    },
    Command {
        name: "true",
        help: "",
        run: |_| Ok(0),
    },
    Command {
        name: "false",
        help: "",
        run: |_| Ok(1),
    },
    Command {
        name: "eat-memory",
        help: "MB: takes memory and keeps it",
        run: commands::eat_memory,
    },
    Command {
        name: "tar",
        help: "c|x f FILE [-C DIR] [PATH…]: enough for kubectl cp",
        run: tar::command,
    },
    Command {
        name: "sh",
        help: "-c SCRIPT: simple commands, ; && || > >> < and $NAME",
        run: shell::command,
    },
];

/// The arguments for [`hello_main`] when this process is to be the image's program: started as
/// `/hello`, as one of its commands in the image, or with [`HELLO_ARGUMENT`].
pub fn hello_arguments(argv: &[OsString]) -> Option<Vec<String>> {
    let text: Vec<String> = argv
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    let program = Path::new(text.first()?).file_name()?.to_str()?;
    if text.get(1).is_some_and(|a| a == HELLO_ARGUMENT) {
        return Some(text[2..].to_vec());
    }
    if program == "hello" {
        return Some(text[1..].to_vec());
    }
    // A command's name alone says little outside the image: the file itself is `hello` there.
    let inside =
        std::env::current_exe().is_ok_and(|exe| exe.file_name().is_some_and(|n| n == "hello"));
    (inside && COMMANDS.iter().any(|c| c.name == program)).then(|| {
        let mut arguments = vec![program.to_owned()];
        arguments.extend_from_slice(&text[1..]);
        arguments
    })
}

/// Runs one command and ends the process with its exit code.
pub fn hello_main(arguments: Vec<String>) -> ! {
    signals::end_on_sigterm();
    exit(run(&arguments))
}

fn run(arguments: &[String]) -> i32 {
    let (name, rest) = match arguments.split_first() {
        None => ("serve", &[][..]),
        Some((flag, _)) if flag.starts_with("--port") => ("serve", arguments),
        Some((name, rest)) => (name.as_str(), rest),
    };
    if matches!(name, "help" | "--help" | "-h") {
        for command in COMMANDS {
            println!("hello {} {}", command.name, command.help);
        }
        return 0;
    }
    let Some(command) = COMMANDS.iter().find(|c| c.name == name) else {
        eprintln!("hello: there is no command {name:?}; see `hello help`");
        return 127;
    };
    match (command.run)(rest) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("{name}: {why}");
            1
        }
    }
}

/// The command's arguments, or how to use it.
fn want<const N: usize>(arguments: &[String], usage: &str) -> Result<[String; N], String> {
    match arguments.get(..N) {
        Some(slice) => slice.to_vec().try_into().map_err(|_| usage.to_owned()),
        None => Err(format!("usage: {usage}")),
    }
}

//! `sh -c` for one-liners: simple commands joined by `;`, `&&` and `||`, with quotes, `$NAME`
//! and redirections. No loops, no pipes, no functions: it says so when it meets one.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use super::{COMMANDS, Outcome};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `;`, a line's end, `&&`, `||`, `>`, `>>`, `<`, `2>&1`, and what is not supported.
    Operator(&'static str),
}

const OPERATORS: [&str; 14] = [
    "2>&1", "2>>", "2>", "&&", "||", ">>", ">", "<", ";", "\n", "|", "&", "(", ")",
];

pub(super) fn command(arguments: &[String]) -> Outcome {
    let [flag, script] = super::want(arguments, "sh -c SCRIPT")?;
    if !(flag.starts_with('-') && flag.ends_with('c')) {
        return Err("only `sh -c SCRIPT` is supported".into());
    }
    run_script(&script)
}

fn run_script(script: &str) -> Outcome {
    let mut tokens: VecDeque<Token> = tokenize(script)?.into();
    let mut code = 0;
    let mut go = true;
    while !tokens.is_empty() {
        let mut simple = Simple::default();
        let mut joint = ";";
        while let Some(token) = tokens.pop_front() {
            match token {
                Token::Word(word) => simple.words.push(word),
                Token::Operator(op @ (";" | "\n" | "&&" | "||")) => {
                    joint = op;
                    break;
                }
                Token::Operator("2>&1") => simple.join_errors = true,
                Token::Operator(op @ (">" | ">>" | "<" | "2>" | "2>>")) => match tokens.pop_front()
                {
                    Some(Token::Word(path)) => simple.redirects.push((op, path)),
                    _ => return Err(format!("{op} needs a file")),
                },
                Token::Operator(other) => return Err(format!("{other:?} is not supported")),
            }
        }
        if go && !simple.words.is_empty() {
            code = simple.run(code)?;
        }
        go = match joint {
            "&&" => code == 0,
            "||" => code != 0,
            _ => true,
        };
    }
    Ok(code)
}

#[derive(Default)]
struct Simple {
    words: Vec<String>,
    redirects: Vec<(&'static str, String)>,
    join_errors: bool,
}

impl Simple {
    fn run(&self, last: i32) -> Outcome {
        let words: Vec<String> = self
            .words
            .iter()
            .map(|w| w.replace("\u{0}?", &last.to_string()))
            .collect();
        let (name, arguments) = words.split_first().ok_or("nothing to run")?;
        match name.as_str() {
            "exit" => std::process::exit(
                arguments
                    .first()
                    .and_then(|c| c.parse().ok())
                    .unwrap_or(last),
            ),
            "cd" => {
                let to = arguments.first().map_or("/", String::as_str);
                return std::env::set_current_dir(to)
                    .map(|()| 0)
                    .map_err(|e| format!("cd: {to}: {e}"));
            }
            ":" => return Ok(0),
            "while" | "for" | "if" | "until" | "case" | "function" => {
                return Err(format!("`{name}` is not supported by this small shell"));
            }
            _ => {}
        }
        let (exec, name, arguments) = match arguments.split_first() {
            Some((program, rest)) if name == "exec" => (true, program, rest),
            _ => (false, name, arguments),
        };
        let mut command = match COMMANDS.iter().any(|c| c.name == *name) {
            true => {
                let own = std::env::current_exe().map_err(|e| e.to_string())?;
                let mut command = Command::new(own);
                command.arg(super::HELLO_ARGUMENT).arg(name);
                command
            }
            false => Command::new(name),
        };
        command.args(arguments);
        self.redirect(&mut command)?;
        if exec {
            return Err(format!(
                "{name}: {}",
                std::os::unix::process::CommandExt::exec(&mut command)
            ));
        }
        match command.status() {
            Ok(status) => Ok(status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                eprintln!("sh: {name}: not found");
                Ok(127)
            }
            Err(e) => {
                eprintln!("sh: {name}: {e}");
                Ok(126)
            }
        }
    }

    fn redirect(&self, command: &mut Command) -> Result<(), String> {
        let mut out: Option<File> = None;
        for (op, path) in &self.redirects {
            let opened = match *op {
                "<" => File::open(path),
                op => OpenOptions::new()
                    .create(true)
                    .write(true)
                    .append(op.ends_with(">>"))
                    .truncate(!op.ends_with(">>"))
                    .open(path),
            };
            let file = opened.map_err(|e| format!("{path}: {e}"))?;
            match *op {
                "<" => drop(command.stdin(file)),
                "2>" | "2>>" => drop(command.stderr(file)),
                _ => {
                    out = file.try_clone().ok();
                    command.stdout(file);
                }
            }
        }
        if self.join_errors {
            command.stderr(match out {
                Some(file) => Stdio::from(file),
                None => Stdio::from(rustix::io::dup(std::io::stdout()).map_err(|e| e.to_string())?),
            });
        }
        Ok(())
    }
}

fn tokenize(script: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = script;
    while let Some(c) = rest.chars().next() {
        let operator = OPERATORS.iter().find(|op| {
            // `2>` is a redirection only where a word begins.
            rest.starts_with(**op) && !(op.starts_with('2') && word.is_some())
        });
        if let Some(op) = operator {
            tokens.extend(word.take().map(Token::Word));
            tokens.push(Token::Operator(op));
            rest = &rest[op.len()..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            ' ' | '\t' => tokens.extend(word.take().map(Token::Word)),
            '#' if word.is_none() => rest = rest.find('\n').map_or("", |at| &rest[at..]),
            '\'' => {
                let end = rest.find('\'').ok_or("a quote is not closed")?;
                word.get_or_insert_default().push_str(&rest[..end]);
                rest = &rest[end + 1..];
            }
            '"' => rest = quoted(rest, word.get_or_insert_default())?,
            '\\' => {
                let mut chars = rest.chars();
                word.get_or_insert_default().extend(chars.next());
                rest = chars.as_str();
            }
            '$' => rest = variable(rest, word.get_or_insert_default())?,
            '`' => return Err("backquotes are not supported".into()),
            other => word.get_or_insert_default().push(other),
        }
    }
    tokens.extend(word.map(Token::Word));
    Ok(tokens)
}

fn quoted<'a>(mut rest: &'a str, word: &mut String) -> Result<&'a str, String> {
    loop {
        let mut chars = rest.chars();
        let c = chars.next().ok_or("a quote is not closed")?;
        rest = chars.as_str();
        match c {
            '"' => return Ok(rest),
            '\\' => {
                let mut chars = rest.chars();
                match chars.next() {
                    Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                    Some(c) => word.extend(['\\', c]),
                    None => return Err("a quote is not closed".into()),
                }
                rest = chars.as_str();
            }
            '$' => rest = variable(rest, word)?,
            other => word.push(other),
        }
    }
}

/// `$NAME` and `${NAME}`; a value is one word, whatever is in it. `$?` is filled in when it is run.
fn variable<'a>(rest: &'a str, word: &mut String) -> Result<&'a str, String> {
    if let Some(rest) = rest.strip_prefix('?') {
        word.push_str("\u{0}?");
        return Ok(rest);
    }
    if rest.starts_with('(') {
        return Err("$(…) is not supported".into());
    }
    let (name, after) = match rest.strip_prefix('{') {
        Some(inner) => inner.split_once('}').ok_or("a brace is not closed")?,
        None => rest.split_at(
            rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len()),
        ),
    };
    if name.is_empty() {
        word.push('$');
    } else {
        word.push_str(&std::env::var(name).unwrap_or_default());
    }
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_quotes_and_operators() {
        let word = |w: &str| Token::Word(w.to_owned());
        let tokens = tokenize("echo 'a b' \"c;d\"e && cat x2>y # done").unwrap();
        let want = [
            word("echo"),
            word("a b"),
            word("c;de"),
            Token::Operator("&&"),
            word("cat"),
            word("x2"),
            Token::Operator(">"),
            word("y"),
        ];
        assert_eq!(tokens, want);
        assert!(tokenize("echo 'open").is_err());
        assert!(run_script("while true").is_err());
    }
}

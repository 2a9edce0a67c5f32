//! The file of tokens that never expire: a line each, `token,user,uid,"group1,group2"`.

use std::path::Path;

use super::StaticToken;
use crate::request::UserInfo;

pub(super) fn read(file: &Path) -> Result<Vec<StaticToken>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<StaticToken>, String> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fields = fields(line).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        let [token, user, uid, rest @ ..] = fields.as_slice() else {
            return Err(format!(
                "line {}: expected at least 3 columns, found {}",
                number + 1,
                fields.len()
            ));
        };
        if token.is_empty() {
            // Upstream leaves such lines out, too.
            tracing::warn!(
                line = number + 1,
                "a line without a token in the token file"
            );
            continue;
        }
        let groups = rest.first().map(String::as_str).unwrap_or_default();
        out.push(StaticToken {
            token: token.clone(),
            user: UserInfo {
                username: user.clone(),
                uid: uid.clone(),
                groups: groups
                    .split(',')
                    .map(str::trim)
                    .filter(|group| !group.is_empty())
                    .map(ToOwned::to_owned)
                    .collect(),
                ..UserInfo::default()
            },
        });
    }
    Ok(out)
}

/// Fields of a line; one in quotes may hold commas, and quotes doubled.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = rest
                .split_once(',')
                .map_or((rest, None), |(f, a)| (f, Some(a)));
            out.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(out),
            }
            continue;
        };
        let mut field = String::new();
        let mut left = quoted;
        loop {
            let end = left.find('"').ok_or("a quote is not closed")?;
            field.push_str(&left[..end]);
            left = &left[end + 1..];
            match left.strip_prefix('"') {
                Some(more) => {
                    field.push('"');
                    left = more;
                }
                None => break,
            }
        }
        out.push(field);
        match left.strip_prefix(',') {
            Some(after) => rest = after,
            None if left.is_empty() => return Ok(out),
            None => return Err("text after a closing quote".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_tokens_with_users_and_groups() {
        let all = parse("t1,jane,1,\"dev,ops\"\n\nt2,joe,2\n,none,3\n").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].user.groups, ["dev", "ops"]);
        assert_eq!(
            (all[1].token.as_str(), all[1].user.uid.as_str()),
            ("t2", "2")
        );
        assert!(parse("t1,jane\n").is_err() && parse("\"t1,jane,1\n").is_err());
        assert_eq!(fields("\"a\"\"b\",c").unwrap(), ["a\"b", "c"]);
    }
}

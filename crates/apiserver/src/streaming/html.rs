//! Links of proxied pages: those that lead to the proxied host come back through the proxy.

/// Attributes that hold one URL.
const ATTRIBUTES: [&str; 14] = [
    "action",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "src",
    "usemap",
];

/// A URL of the proxied host under the proxy's prefix; `None` leaves it as it is.
pub(super) fn rewrite_url(url: &str, prefix: &str, host: &str) -> Option<String> {
    let path = match url.split_once("://") {
        Some((_, rest)) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            if authority != host {
                return None;
            }
            path
        }
        None if url.starts_with("//") || !url.starts_with('/') => return None,
        None => url,
    };
    if path == prefix || path.starts_with(&format!("{prefix}/")) {
        return None;
    }
    Some(format!("{prefix}{path}"))
}

/// Rewrites attribute values inside tags and leaves every other byte alone.
pub(super) fn rewrite_page(page: &str, prefix: &str, host: &str) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        if let Some(comment) = tag.strip_prefix("<!--") {
            let end = comment.find("-->").map_or(tag.len(), |at| at + 7);
            out.push_str(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let end = tag_end(tag);
        rewrite_tag(&tag[..end], prefix, host, &mut out);
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

/// The index after the `>` that closes a tag; a `>` in quotes closes nothing.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (at, byte) in tag.bytes().enumerate().skip(1) {
        match (quote, byte) {
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'>') => return at + 1,
            (None, b'<') => return at,
            (None, _) => {}
        }
    }
    tag.len()
}

fn rewrite_tag(tag: &str, prefix: &str, host: &str, out: &mut String) {
    let mut rest = tag;
    while let Some(equals) = rest.find('=') {
        let (before, after) = rest.split_at(equals + 1);
        out.push_str(before);
        let name = before[..equals]
            .trim_end()
            .rsplit(|c: char| c.is_whitespace() || c == '/')
            .next()
            .unwrap_or_default();
        let spaces = after.len() - after.trim_start().len();
        out.push_str(&after[..spaces]);
        let after = &after[spaces..];
        let (open, length) = match after.as_bytes().first() {
            Some(quote @ (b'"' | b'\'')) => {
                let quote = *quote as char;
                (1, after[1..].find(quote).unwrap_or(after.len() - 1))
            }
            _ => (
                0,
                after
                    .find(|c: char| c.is_whitespace() || c == '>')
                    .unwrap_or(after.len()),
            ),
        };
        let value = &after[open..open + length];
        out.push_str(&after[..open]);
        let known = ATTRIBUTES.iter().any(|a| name.eq_ignore_ascii_case(a));
        match known.then(|| rewrite_url(value, prefix, host)).flatten() {
            Some(rewritten) => out.push_str(&rewritten),
            None => out.push_str(value),
        }
        rest = &after[open + length..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_host_go_through_the_proxy_and_others_stay() {
        let cases = [
            (
                r#"<a href="/rewriteme">test</a>"#,
                r#"<a href="/p/rewriteme">test</a>"#,
            ),
            (
                r#"<img alt='a > b' src='/x.png'>"#,
                r#"<img alt='a > b' src='/p/x.png'>"#,
            ),
            (r#"<a href="http://h:1/x?y=/z">"#, r#"<a href="/p/x?y=/z">"#),
            (
                r#"<a href="http://other/x">"#,
                r#"<a href="http://other/x">"#,
            ),
            (r#"<a href="relative">/text"#, r#"<a href="relative">/text"#),
            (r#"<a href="//cdn/x">"#, r#"<a href="//cdn/x">"#),
            (r#"<!-- <a href="/x"> -->"#, r#"<!-- <a href="/x"> -->"#),
            ("a < b = /c", "a < b = /c"),
            ("<a href=/x>ü", "<a href=/p/x>ü"),
        ];
        for (page, expected) in cases {
            assert_eq!(rewrite_page(page, "/p", "h:1"), expected);
        }
    }
}

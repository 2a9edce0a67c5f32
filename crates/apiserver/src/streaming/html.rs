//! Links of proxied pages: those that lead to the proxied host come back through the proxy.

/// Attributes that hold one URL, by their elements.
const ATTRIBUTES: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text up to their end, whatever it looks like.
const RAW: [&str; 10] = [
    "iframe",
    "noembed",
    "noframes",
    "noscript",
    "plaintext",
    "script",
    "style",
    "textarea",
    "title",
    "xmp",
];

/// A URL of the proxied host under the proxy's prefix; `None` leaves it as it is.
pub(super) fn rewrite_url(url: &str, prefix: &str, host: &str) -> Option<String> {
    let absolute = match url.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => Some(rest),
        _ => url.strip_prefix("//"),
    };
    let path = match absolute {
        Some(rest) => {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            if authority != host {
                return None;
            }
            path
        }
        None if !url.starts_with('/') => return None,
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
        let name = tag_name(&tag[..end]);
        rewrite_tag(&tag[..end], &name, prefix, host, &mut out);
        rest = &tag[end..];
        if RAW.contains(&name.as_str()) {
            let (text, after) = rest.split_at(raw_end(rest, &name));
            out.push_str(text);
            rest = after;
        }
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

/// In lower case; empty for what opens no element.
fn tag_name(tag: &str) -> String {
    let name = tag.strip_prefix('<').unwrap_or(tag);
    let end = name
        .find(|c: char| !c.is_ascii_alphanumeric())
        .unwrap_or(name.len());
    name[..end].to_ascii_lowercase()
}

/// Where the end tag of an element with raw text begins.
fn raw_end(text: &str, name: &str) -> usize {
    let mut ends = text.match_indices("</").filter(|(at, _)| {
        let after = text.as_bytes().get(at + 2..at + 2 + name.len());
        after.is_some_and(|after| after.eq_ignore_ascii_case(name.as_bytes()))
    });
    ends.next().map_or(text.len(), |(at, _)| at)
}

fn rewrite_tag(tag: &str, element: &str, prefix: &str, host: &str, out: &mut String) {
    let known = ATTRIBUTES.iter().find(|(name, _)| *name == element);
    let attributes = known.map_or(&[][..], |(_, attributes)| attributes);
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
        let known = attributes.iter().any(|a| name.eq_ignore_ascii_case(a));
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
            ("<A HREF='//h:1/x'>", "<A HREF='/p/x'>"),
            ("<form data=/x action=/y>", "<form data=/x action=/p/y>"),
            (
                "<script src=/s>'<a href=/js>'</SCRIPT ><a href=/x>",
                "<script src=/p/s>'<a href=/js>'</SCRIPT ><a href=/p/x>",
            ),
            ("<style><a href=/x>", "<style><a href=/x>"),
        ];
        for (page, expected) in cases {
            assert_eq!(rewrite_page(page, "/p", "h:1"), expected);
        }
    }
}

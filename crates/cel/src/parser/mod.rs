//! Tokens to a syntax tree.
//!
//! The grammar is the language's own; macros are expanded while the tree is built. The first
//! syntax error that cannot be mended by dropping or inventing one token ends the parse.

mod literal;
mod logic;
mod macros;

pub(crate) use macros::ACCUMULATOR;

use crate::ast::{Element, Entry, Expr, ExprKind, Field, Id, Literal};
use crate::escape::RESERVED;
use crate::issue::Issue;
use crate::lexer::{self, Kind, Token};
use crate::limits::{MAX_EXPRESSION_CODE_POINTS, MAX_NODES, MAX_RECURSION_DEPTH, deep};
use crate::source::Source;

/// A parsed expression with the place of every id.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    pub(crate) expr: Expr,
    pub(crate) offsets: Vec<usize>,
}

/// `bindings` says whether there is a macro `cel.bind`.
pub(crate) fn parse(source: &Source, bindings: bool) -> Result<Parsed, Vec<Issue>> {
    let size = source.chars().len();
    if size > MAX_EXPRESSION_CODE_POINTS {
        let message = format!(
            "expression code point size exceeds limit: size: {size}, limit {MAX_EXPRESSION_CODE_POINTS}"
        );
        return Err(vec![source.issue(None, message)]);
    }
    let (tokens, issues) = lexer::tokens(source);
    let mut parser = Parser {
        source,
        bindings,
        tokens,
        at: 0,
        issues,
        offsets: vec![0],
        depths: [0; RULES],
        around: Vec::new(),
        overgrown: false,
        expected: (usize::MAX, EXPRESSION),
    };
    match parser.whole() {
        Ok(expr) if parser.issues.is_empty() => Ok(Parsed {
            expr,
            offsets: parser.offsets,
        }),
        _ => Err(parser.issues),
    }
}

/// The parse cannot go on; the issue is noted.
struct Stop;

type Step<T> = Result<T, Stop>;

/// Rules of the grammar whose nesting is bounded.
#[derive(Clone, Copy)]
enum Rule {
    Expr,
    Relation,
    Calc,
    Member,
}

const RULES: usize = 4;

/// What ends a construct, and what separates its parts.
#[derive(Clone, Copy)]
struct End {
    close: &'static str,
    separators: &'static [&'static str],
}

/// A subtree with the depth of its operators, which is bounded apart from the nesting of rules.
struct Node {
    expr: Expr,
    depth: usize,
}

struct Parser<'s> {
    source: &'s Source,
    bindings: bool,
    tokens: Vec<Token>,
    at: usize,
    issues: Vec<Issue>,
    offsets: Vec<usize>,
    depths: [usize; RULES],
    /// What the constructs around this place end with, the innermost last.
    around: Vec<End>,
    /// Whether the tree outgrew its bound; that is said once.
    overgrown: bool,
    /// What may come at a token, where that is more than an expression.
    expected: (usize, &'static str),
}

/// What may come where an expression begins, and where an element, an entry, an argument or an
/// index may come.
const EXPRESSION: &str = "'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const ELEMENT: &str = "'[', ']', '{', '(', '.', ',', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const ENTRY: &str = "'[', '{', '}', '(', '.', ',', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const ARGUMENT: &str = "'[', '{', '(', ')', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const INDEX: &str = "'[', '{', '(', '.', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER";
const RELATIONS: &[(&str, &str)] = &[
    ("<", "_<_"),
    ("<=", "_<=_"),
    (">=", "_>=_"),
    (">", "_>_"),
    ("==", "_==_"),
    ("!=", "_!=_"),
    ("in", "@in"),
];
/// Operators with how tightly they bind.
const CALCULATIONS: &[(&str, &str, u8)] = &[
    ("*", "_*_", 2),
    ("/", "_/_", 2),
    ("%", "_%_", 2),
    ("+", "_+_", 1),
    ("-", "_-_", 1),
];

impl Parser<'_> {
    fn whole(&mut self) -> Step<Expr> {
        let node = self.expr()?;
        if self.token().kind != Kind::End {
            // One token too many is named so; more of them are a mismatch.
            let single = self.ahead(1).kind == Kind::End;
            let what = if single { "extraneous" } else { "mismatched" };
            let text = self.text(self.token());
            self.syntax(format!("{what} input '{text}' expecting <EOF>"));
            return Err(Stop);
        }
        Ok(node.expr)
    }

    // Tokens.

    fn token(&self) -> Token {
        self.tokens[self.at]
    }

    fn ahead(&self, n: usize) -> Token {
        self.tokens[(self.at + n).min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.token();
        if token.kind != Kind::End {
            self.at += 1;
        }
        token
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.token().kind, Kind::Symbol(s) if s == symbol)
    }

    fn accept(&mut self, symbol: &str) -> Option<Token> {
        self.is(symbol).then(|| self.next())
    }

    fn text(&self, token: Token) -> String {
        if token.kind == Kind::End {
            return "<EOF>".to_owned();
        }
        self.source.chars()[token.start..token.end].iter().collect()
    }

    /// A symbol that must come. A token too many before it, or its absence where what follows can
    /// come, is noted and passed over.
    fn expect(&mut self, symbol: &'static str, others: &str) -> Step<Token> {
        if let Some(token) = self.accept(symbol) {
            return Ok(token);
        }
        let here = self.token();
        let text = self.text(here);
        let expected = if others.is_empty() {
            format!("'{symbol}'")
        } else {
            format!("{{{others}}}")
        };
        if matches!(self.ahead(1).kind, Kind::Symbol(s) if s == symbol) {
            self.syntax(format!("extraneous input '{text}' expecting {expected}"));
            self.next();
            return Ok(self.next());
        }
        let insertable = match symbol {
            ":" => begins(here.kind),
            _ => others.is_empty() && self.follows(here.kind),
        };
        if insertable {
            self.syntax(format!("missing '{symbol}' at '{text}'"));
            return Ok(here);
        }
        self.syntax(format!("mismatched input '{text}' expecting {expected}"));
        Err(Stop)
    }

    /// Whether a token may come behind a finished operand, given what is around it.
    fn follows(&self, kind: Kind) -> bool {
        match (kind, self.around.last()) {
            (Kind::End, outer) => outer.is_none(),
            (Kind::Symbol(s @ (")" | "]" | "}")), outer) => outer.is_some_and(|o| o.close == s),
            (Kind::Symbol(s @ ("," | ":")), outer) => {
                outer.is_some_and(|o| o.separators.contains(&s))
            }
            (Kind::Symbol(s), _) => !matches!(s, "(" | "{" | "!" | "true" | "false" | "null"),
            _ => false,
        }
    }

    /// Reads the inside of a construct.
    fn inside<T>(
        &mut self,
        close: &'static str,
        separators: &'static [&'static str],
        read: impl FnOnce(&mut Self) -> Step<T>,
    ) -> Step<T> {
        self.around.push(End { close, separators });
        let out = read(self);
        self.around.pop();
        out
    }

    /// Says what may come at this token.
    fn expecting(&mut self, what: &'static str) {
        self.expected = (self.at, what);
    }

    // Issues and ids.

    fn syntax(&mut self, message: String) {
        let at = self.token().start;
        self.issue(at, format!("Syntax error: {message}"));
    }

    fn issue(&mut self, offset: usize, message: impl Into<String>) {
        self.issues.push(self.source.issue(Some(offset), message));
    }

    /// Notes an issue and gives what stands in for the expression.
    fn failed(&mut self, offset: usize, message: impl Into<String>) -> Expr {
        self.issue(offset, message);
        let id = self.id(offset);
        Expr::new(id, ExprKind::Unspecified)
    }

    fn id(&mut self, offset: usize) -> Id {
        if self.offsets.len() > MAX_NODES && !self.overgrown {
            self.overgrown = true;
            let issue = self.source.issue(None, "expression is too complex");
            self.issues.push(issue);
        }
        self.offsets.push(offset);
        Id::try_from(self.offsets.len() - 1).unwrap_or(Id::MAX)
    }

    fn node(&mut self, offset: usize, kind: ExprKind, depth: usize) -> Node {
        let id = self.id(offset);
        Node {
            expr: Expr::new(id, kind),
            depth,
        }
    }

    fn enter(&mut self, rule: Rule) -> Step<()> {
        let depth = &mut self.depths[rule as usize];
        *depth += 1;
        if *depth > MAX_RECURSION_DEPTH {
            let message = format!("expression recursion limit exceeded: {MAX_RECURSION_DEPTH}");
            self.issues.push(self.source.issue(None, message));
            return Err(Stop);
        }
        Ok(())
    }

    fn leave(&mut self, rule: Rule, times: usize) {
        self.depths[rule as usize] -= times;
    }

    /// One operator above a subtree.
    fn deeper(&mut self, depth: usize) -> Step<usize> {
        if depth + 1 > MAX_RECURSION_DEPTH {
            let issue = self.source.issue(None, "max recursion depth exceeded");
            self.issues.push(issue);
            return Err(Stop);
        }
        Ok(depth + 1)
    }

    // The grammar.

    /// `or ? or : expr`.
    fn expr(&mut self) -> Step<Node> {
        deep(|| self.ternary())
    }

    fn ternary(&mut self) -> Step<Node> {
        self.enter(Rule::Expr)?;
        let mut node = self.or()?;
        if let Some(op) = self.accept("?") {
            let yes = self.inside(":", &[":"], Self::or)?;
            self.expect(":", "")?;
            let no = self.expr()?;
            let depth = self.deeper(node.depth.max(yes.depth).max(no.depth))?;
            let args = vec![node.expr, yes.expr, no.expr];
            node = self.call(op.start, "_?_:_", None, args, depth);
        }
        self.leave(Rule::Expr, 1);
        Ok(node)
    }

    /// `relation && relation || …`. Long chains become balanced trees.
    fn or(&mut self) -> Step<Node> {
        let mut alternatives = Vec::new();
        let mut alternative_ops = Vec::new();
        let mut depth = 0;
        loop {
            let mut terms = Vec::new();
            let mut ops = Vec::new();
            loop {
                let node = self.relation(0)?;
                depth = depth.max(node.depth);
                terms.push(node.expr);
                match self.accept("&&") {
                    Some(op) => ops.push(self.id(op.start)),
                    None => break,
                }
            }
            alternatives.push(logic::balance("_&&_", terms, &ops));
            match self.accept("||") {
                Some(op) => alternative_ops.push(self.id(op.start)),
                None => break,
            }
        }
        Ok(Node {
            expr: logic::balance("_||_", alternatives, &alternative_ops),
            depth,
        })
    }

    /// `calc < calc …`, bound from the left. Above 0 only one operand is read.
    fn relation(&mut self, level: u8) -> Step<Node> {
        self.enter(Rule::Relation)?;
        let mut node = self.calc(0)?;
        let mut pushed = 1;
        while let Kind::Symbol(symbol) = self.token().kind {
            if level > 0 {
                break;
            }
            let Some((_, function)) = RELATIONS.iter().find(|(s, _)| *s == symbol) else {
                break;
            };
            self.enter(Rule::Relation)?;
            pushed += 1;
            let op = self.next();
            let right = self.relation(1)?;
            let depth = self.deeper(node.depth.max(right.depth))?;
            let args = vec![node.expr, right.expr];
            node = self.call(op.start, function, None, args, depth);
        }
        self.leave(Rule::Relation, pushed);
        Ok(node)
    }

    /// `unary + unary * unary …`, of operators that bind tighter than a level.
    fn calc(&mut self, level: u8) -> Step<Node> {
        self.enter(Rule::Calc)?;
        let mut node = self.unary()?;
        let mut pushed = 1;
        while let Kind::Symbol(symbol) = self.token().kind {
            let found = CALCULATIONS
                .iter()
                .find(|(s, _, binds)| *s == symbol && *binds > level);
            let Some((_, function, binds)) = found else {
                break;
            };
            self.enter(Rule::Calc)?;
            pushed += 1;
            let op = self.next();
            let right = self.calc(*binds)?;
            let depth = self.deeper(node.depth.max(right.depth))?;
            let args = vec![node.expr, right.expr];
            node = self.call(op.start, function, None, args, depth);
        }
        self.leave(Rule::Calc, pushed);
        Ok(node)
    }

    /// Runs of `!` or `-` before a member. A `-` directly before a number is the number's sign.
    fn unary(&mut self) -> Step<Node> {
        let first = self.token();
        let (symbol, function) = match first.kind {
            Kind::Symbol("!") => ("!", "!_"),
            Kind::Symbol("-") if !matches!(self.ahead(1).kind, Kind::Int | Kind::Float) => {
                ("-", "-_")
            }
            _ => return self.member(),
        };
        let mut count = 0;
        while self.accept(symbol).is_some() {
            count += 1;
        }
        let node = self.member()?;
        if count % 2 == 0 {
            return Ok(node);
        }
        Ok(self.call(first.start, function, None, vec![node.expr], node.depth))
    }

    /// A primary with selections, calls and indices behind it.
    fn member(&mut self) -> Step<Node> {
        self.enter(Rule::Member)?;
        let mut node = self.primary()?;
        let mut pushed = 1;
        loop {
            if self.is(".") {
                self.enter(Rule::Member)?;
                node = self.dot(node)?;
            } else if let Some(op) = self.accept("[") {
                self.enter(Rule::Member)?;
                self.expecting(INDEX);
                let optional = self.accept("?").is_some();
                let index = self.inside("]", &[], Self::expr)?;
                self.expect("]", "")?;
                let depth = self.deeper(node.depth.max(index.depth))?;
                let function = if optional { "_[?_]" } else { "_[_]" };
                node = self.call(op.start, function, None, vec![node.expr, index.expr], depth);
            } else {
                break;
            }
            pushed += 1;
        }
        self.leave(Rule::Member, pushed);
        Ok(node)
    }

    /// `.field`, `.?field` or `.method(…)`.
    fn dot(&mut self, node: Node) -> Step<Node> {
        let op = self.next();
        let optional = self.accept("?").is_some();
        let name = self.next();
        match name.kind {
            Kind::Ident => {}
            Kind::EscapedIdent => {
                let expr = self.failed(name.start, "unsupported syntax: '`'");
                return Ok(Node { expr, depth: 0 });
            }
            _ => {
                self.at -= usize::from(name.kind != Kind::End);
                let text = self.text(name);
                let message = if matches!(name.kind, Kind::Symbol("true" | "false" | "null")) {
                    format!("mismatched input '{text}' expecting IDENTIFIER")
                } else if optional {
                    let extra = matches!(self.ahead(1).kind, Kind::Ident | Kind::EscapedIdent);
                    let what = if extra { "extraneous" } else { "mismatched" };
                    format!("{what} input '{text}' expecting {{IDENTIFIER, ESC_IDENTIFIER}}")
                } else {
                    let end = if name.kind == Kind::End {
                        op.end
                    } else {
                        name.end
                    };
                    let read: String = self.source.chars()[op.start..end].iter().collect();
                    format!("no viable alternative at input '{read}'")
                };
                self.syntax(message);
                return Err(Stop);
            }
        }
        let field = self.text(name);
        if !optional && let Some(open) = self.accept("(") {
            let (args, depth) = self.arguments()?;
            let depth = self.deeper(depth.max(node.depth))?;
            return Ok(self.call(open.start, &field, Some(node.expr), args, depth));
        }
        let depth = self.deeper(node.depth)?;
        if optional {
            let id = self.id(name.start);
            let literal = ExprKind::Literal(Literal::String(field.into()));
            let args = vec![node.expr, Expr::new(id, literal)];
            let kind = ExprKind::Call {
                target: None,
                function: "_?._".into(),
                args,
            };
            return Ok(self.node(op.start, kind, depth));
        }
        let kind = ExprKind::Select {
            operand: Box::new(node.expr),
            field: field.into(),
            test_only: false,
        };
        Ok(self.node(op.start, kind, depth))
    }

    fn primary(&mut self) -> Step<Node> {
        let token = self.token();
        match token.kind {
            Kind::Symbol("(") => {
                self.next();
                let node = self.inside(")", &[], Self::expr)?;
                self.expect(")", "")?;
                Ok(node)
            }
            Kind::Symbol("[") => self.list(),
            Kind::Symbol("{") => self.map(),
            Kind::Symbol(".") | Kind::Ident => self.name(),
            _ => self.literal(token),
        }
    }

    /// A variable, a function call or a message, with an optional leading dot.
    fn name(&mut self) -> Step<Node> {
        let dot = self.accept(".");
        let first = self.token();
        if first.kind != Kind::Ident {
            let text = self.text(first);
            let message = if first.kind == Kind::End {
                "no viable alternative at input '.'".to_owned()
            } else {
                format!("no viable alternative at input '.{text}'")
            };
            self.syntax(message);
            return Err(Stop);
        }
        let mut name = self.text(first);
        if dot.is_some() {
            name.insert(0, '.');
        }
        if let Some((last, message)) = self.message_name(&name) {
            self.at = last;
            return self.message(message);
        }
        self.next();
        let start = dot.map_or(first.start, |d| d.start);
        if RESERVED.contains(&name.trim_start_matches('.')) {
            let name = name.trim_start_matches('.').to_owned();
            if self.accept("(").is_some() {
                self.arguments()?;
            }
            let expr = self.failed(start, format!("reserved identifier: {name}"));
            return Ok(Node { expr, depth: 0 });
        }
        if let Some(open) = self.accept("(") {
            let (args, depth) = self.arguments()?;
            return Ok(self.call(open.start, &name, None, args, depth));
        }
        Ok(self.node(first.start, ExprKind::Ident(name.into()), 0))
    }

    /// `a.b.C` when a `{` follows: the place of the brace, and the name.
    fn message_name(&self, first: &str) -> Option<(usize, String)> {
        let mut name = first.to_owned();
        let mut at = self.at + 1;
        loop {
            match self.tokens.get(at)?.kind {
                Kind::Symbol("{") => return Some((at, name)),
                Kind::Symbol(".") => {
                    let next = *self.tokens.get(at + 1)?;
                    if next.kind != Kind::Ident {
                        return None;
                    }
                    name = format!("{name}.{}", self.text(next));
                    at += 2;
                }
                _ => return None,
            }
        }
    }

    fn message(&mut self, name: String) -> Step<Node> {
        let open = self.next();
        let mut fields = Vec::new();
        let mut depth = 0;
        let begins = "'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER";
        while !self.is("}") && !self.is(",") {
            let optional = self.accept("?").is_some();
            let field = self.token();
            match field.kind {
                Kind::Ident => self.next(),
                Kind::EscapedIdent => {
                    self.issue(open.start, "unsupported syntax: '`'");
                    return Err(Stop);
                }
                _ => {
                    let text = self.text(field);
                    self.syntax(format!("mismatched input '{text}' expecting {{{begins}}}"));
                    return Err(Stop);
                }
            };
            let colon = self.expect(":", "")?;
            let id = self.id(colon.start);
            let value = self.inside("}", &[","], Self::expr)?;
            depth = depth.max(value.depth);
            fields.push(Field {
                id,
                name: self.text(field).into(),
                value: value.expr,
                optional,
            });
            if !self.more("}") {
                break;
            }
        }
        self.close("}", "'}', ','")?;
        let kind = ExprKind::Struct {
            name: name.into(),
            fields,
        };
        Ok(self.node(open.start, kind, depth))
    }

    /// Past a comma, when something other than the closing bracket follows it.
    fn more(&mut self, close: &str) -> bool {
        let next = self.ahead(1).kind;
        let closed = next == Kind::End || matches!(next, Kind::Symbol(s) if s == close);
        self.is(",") && !closed && self.accept(",").is_some()
    }

    /// The closing bracket after at most one more comma; `or` is what else could have stood there
    /// if there was none.
    fn close(&mut self, bracket: &'static str, or: &'static str) -> Step<()> {
        let or = if self.accept(",").is_some() { "" } else { or };
        self.expect(bracket, or)?;
        Ok(())
    }

    fn list(&mut self) -> Step<Node> {
        let open = self.next();
        let mut elements = Vec::new();
        let mut depth = 0;
        self.expecting(ELEMENT);
        while !self.is("]") && !self.is(",") {
            let optional = self.accept("?").is_some();
            let node = self.inside("]", &[","], Self::expr)?;
            depth = depth.max(node.depth);
            let value = node.expr;
            elements.push(Element { value, optional });
            if !self.more("]") {
                break;
            }
        }
        self.close("]", "']', ','")?;
        Ok(self.node(open.start, ExprKind::List(elements), depth))
    }

    fn map(&mut self) -> Step<Node> {
        let open = self.next();
        let mut entries = Vec::new();
        let mut depth = 0;
        self.expecting(ENTRY);
        while !self.is("}") && !self.is(",") {
            let optional = self.accept("?").is_some();
            let key = self.inside("}", &[":"], Self::expr)?;
            self.expect(":", "")?;
            let value = self.inside("}", &[","], Self::expr)?;
            depth = depth.max(key.depth).max(value.depth);
            entries.push(Entry {
                key: key.expr,
                value: value.expr,
                optional,
            });
            if !self.more("}") {
                break;
            }
        }
        self.close("}", "'}', ','")?;
        Ok(self.node(open.start, ExprKind::Map(entries), depth))
    }

    /// Arguments after `(`, and past the `)`.
    fn arguments(&mut self) -> Step<(Vec<Expr>, usize)> {
        let mut args = Vec::new();
        let mut depth = 0;
        self.expecting(ARGUMENT);
        if self.accept(")").is_some() {
            return Ok((args, depth));
        }
        loop {
            let node = self.inside(")", &[","], Self::expr)?;
            depth = depth.max(node.depth);
            args.push(node.expr);
            if self.accept(",").is_none() {
                break;
            }
        }
        self.expect(")", "")?;
        Ok((args, depth))
    }

    fn literal(&mut self, token: Token) -> Step<Node> {
        let sign = self.is("-") && matches!(self.ahead(1).kind, Kind::Int | Kind::Float);
        if sign {
            self.next();
        }
        let value = self.token();
        let text = self.text(value);
        let literal = match value.kind {
            Kind::Symbol("true") => Ok(Literal::Bool(true)),
            Kind::Symbol("false") => Ok(Literal::Bool(false)),
            Kind::Symbol("null") => Ok(Literal::Null),
            Kind::Int => literal::integer(&text, sign).ok_or("invalid int literal"),
            Kind::Uint => literal::unsigned(&text).ok_or("invalid uint literal"),
            Kind::Float => literal::float(&text, sign).ok_or("invalid double literal"),
            Kind::String => literal::unquote(&text, false)
                .map(|b| Literal::String(String::from_utf8_lossy(&b).into())),
            Kind::Bytes => literal::unquote(&text[1..], true).map(|b| Literal::Bytes(b.into())),
            _ => return self.unexpected(&text),
        };
        self.next();
        Ok(match literal {
            Ok(literal) => self.node(token.start, ExprKind::Literal(literal), 0),
            Err(message) => {
                let expr = self.failed(token.start, message);
                Node { expr, depth: 0 }
            }
        })
    }

    /// Notes a token that begins no expression, and goes on behind it when it is one too many.
    fn unexpected(&mut self, text: &str) -> Step<Node> {
        let expected = match self.expected {
            (at, what) if at == self.at => what,
            _ => EXPRESSION,
        };
        let next = self.ahead(1).kind;
        let closes = matches!(next, Kind::Symbol(s) if expected.contains(&format!("'{s}'")));
        let extra = self.token().kind != Kind::End && (begins(next) || closes);
        let what = if extra { "extraneous" } else { "mismatched" };
        self.syntax(format!("{what} input '{text}' expecting {{{expected}}}"));
        let token = self.next();
        if extra && !begins(next) {
            return Err(Stop);
        }
        if !extra {
            let closes = matches!(token.kind, Kind::Symbol(")" | "]" | "}" | "," | ":"));
            let named = matches!(token.kind, Kind::End | Kind::EscapedIdent);
            if !named && !closes && self.token().kind == Kind::End {
                self.syntax(format!(
                    "mismatched input '<EOF>' expecting {{{EXPRESSION}}}"
                ));
            }
            return Err(Stop);
        }
        self.unary()
    }

    fn macro_of(&self, name: &str, target: Option<&Expr>, args: usize) -> Option<macros::Expand> {
        let (bind, count, expand) = macros::BIND;
        let of_namespace = target.is_some_and(
            |target| matches!(&target.kind, ExprKind::Ident(name) if **name == *macros::NAMESPACE),
        );
        if self.bindings && of_namespace && name == bind && args == count {
            return Some(expand);
        }
        macros::find(name, args, target.is_some())
    }

    /// A call, or what the macro of that name makes of it.
    fn call(
        &mut self,
        offset: usize,
        function: &str,
        target: Option<Expr>,
        args: Vec<Expr>,
        depth: usize,
    ) -> Node {
        let expr = match self.macro_of(function, target.as_ref(), args.len()) {
            Some(expand) => self.expand(expand, offset, target, args),
            None => {
                let id = self.id(offset);
                let kind = ExprKind::Call {
                    target: target.map(Box::new),
                    function: function.into(),
                    args,
                };
                Expr::new(id, kind)
            }
        };
        Node { expr, depth }
    }
}

/// Whether an expression can begin with such a token.
fn begins(kind: Kind) -> bool {
    match kind {
        Kind::Symbol(s) => matches!(
            s,
            "[" | "{" | "(" | "." | "-" | "!" | "true" | "false" | "null"
        ),
        Kind::End | Kind::EscapedIdent => false,
        _ => true,
    }
}

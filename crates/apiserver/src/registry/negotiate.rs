//! Content negotiation: which form of the object the client wants, in which encoding, and which
//! encoding its body has.

use keelson_machinery::status::Status;
use keelson_machinery::{cbor, go};

use crate::request::RequestContext;

/// The bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

/// Which encodings an endpoint has besides JSON and YAML.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offered {
    /// Custom resources have no messages.
    protobuf: bool,
    /// Behind a feature gate.
    cbor: bool,
}

impl Offered {
    pub(crate) const ALL: Self = Self {
        protobuf: true,
        cbor: true,
    };

    fn at(ctx: &RequestContext, protobuf: bool) -> Self {
        Self {
            protobuf,
            cbor: ctx.features.cbor_serving_and_storage,
        }
    }

    /// As upstream lists them in its errors.
    fn objects(self) -> String {
        // Custom kinds have no messages, and say that they have.
        let mut out =
            "application/json, application/yaml, application/vnd.kubernetes.protobuf".to_owned();
        if self.cbor {
            out.push_str(", application/cbor");
        }
        out
    }

    fn streams(self) -> String {
        let mut out =
            "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch"
                .to_owned();
        if self.cbor {
            out.push_str(", application/cbor-seq");
        }
        out
    }
}

impl Encoding {
    pub(crate) fn of(media_type: &str, offered: Offered) -> Option<Self> {
        match media_type {
            "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" if offered.protobuf => Some(Self::Protobuf),
            cbor::CONTENT_TYPE if offered.cbor => Some(Self::Cbor),
            _ => None,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
            Self::Cbor => cbor::CONTENT_TYPE,
        }
    }
}

/// What of the object is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    /// `as=Table`, with what each row carries of its object.
    Table(IncludeObject),
    /// `as=PartialObjectMetadata` or `as=PartialObjectMetadataList`.
    Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IncludeObject {
    None,
    Metadata,
    Object,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) encoding: Encoding,
    pub(crate) form: Form,
    /// `meta.k8s.io` version of tables and partial objects.
    pub(crate) meta_version: String,
    pub(crate) pretty: bool,
}

impl Output {
    pub(crate) const JSON: Self = Self {
        encoding: Encoding::Json,
        form: Form::Object,
        meta_version: String::new(),
        pretty: false,
    };

    /// Whether stored bytes can be sent as they are, where versions agree.
    pub(crate) fn is_plain(&self) -> bool {
        self.encoding == Encoding::Json && self.form == Form::Object && !self.pretty
    }
}

struct Accept<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

/// The best of what the client accepts; 406 when there is nothing. `protobuf` says whether the
/// kind has a message: custom resources have none.
pub(crate) fn output(ctx: &RequestContext, list: bool, protobuf: bool) -> Result<Output, Status> {
    choose(ctx, list, protobuf, true)
}

/// The same for what is answered and never stored, which has no tables.
pub(crate) fn answer_output(ctx: &RequestContext) -> Result<Output, Status> {
    choose(ctx, false, true, false)
}

/// How a discovery document is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiscoveryOutput {
    pub(crate) output: Output,
    /// All groups in one document instead of one list per version.
    pub(crate) aggregated: bool,
}

/// What of discovery the client wants. `routed` says whether upstream's router looks at the types
/// first, which has other words for what it does not serve; `aggregates` whether there is an
/// aggregated form.
pub(crate) fn discovery_output(
    ctx: &RequestContext,
    routed: bool,
    aggregates: bool,
) -> Result<DiscoveryOutput, Status> {
    let offered = Offered::at(ctx, true);
    let plain = |encoding, aggregated| DiscoveryOutput {
        output: Output {
            encoding,
            pretty: encoding == Encoding::Json && pretty(ctx),
            ..Output::JSON
        },
        aggregated,
    };
    let header = ctx.header("accept").unwrap_or_default();
    if header.trim().is_empty() {
        return Ok(plain(Encoding::Json, false));
    }
    if routed {
        check_routed(header, offered, "")?;
    }
    for clause in clauses(header) {
        let Some(encoding) = clause.encoding(offered) else {
            continue;
        };
        let get = |name| clause.parameter(name);
        match get("as") {
            None => return Ok(plain(encoding, false)),
            // The table of messages has none for the aggregated form.
            Some("APIGroupDiscoveryList")
                if aggregates
                    && get("g") == Some("apidiscovery.k8s.io")
                    && get("v") == Some("v2")
                    && encoding != Encoding::Protobuf =>
            {
                return Ok(plain(encoding, true));
            }
            Some(_) => {}
        }
    }
    Err(not_acceptable(&offered.objects()))
}

/// What a log may be asked for as. It is plain text all the same.
pub(crate) fn log_output(ctx: &RequestContext) -> Result<(), Status> {
    let header = ctx.header("accept").unwrap_or_default();
    let offered = Offered::at(ctx, true);
    let is_known = |clause: &str| {
        let media_type = clause.split(';').next().unwrap_or_default().trim();
        matches!(media_type, "" | "text/plain") || is_routed(clause, offered)
    };
    if header.split(',').take(64).any(is_known) {
        return Ok(());
    }
    Err(not_routed(&format!("text/plain, {}", offered.objects())))
}

fn choose(
    ctx: &RequestContext,
    list: bool,
    protobuf: bool,
    tables: bool,
) -> Result<Output, Status> {
    let header = ctx.header("accept").unwrap_or_default();
    let pretty = pretty(ctx);
    if header.trim().is_empty() {
        return Ok(Output {
            pretty,
            ..Output::JSON
        });
    }
    let offered = Offered::at(ctx, protobuf);
    // Upstream's router comes first for what it serves, and knows no `application/*`.
    if protobuf {
        let streams = if list {
            format!(", {}", offered.streams())
        } else {
            String::new()
        };
        check_routed(header, offered, &streams)?;
    }
    let watch = list && ctx.info.verb == "watch";
    for clause in clauses(header) {
        let Some(encoding) = clause.encoding(offered) else {
            continue;
        };
        // YAML has no frames.
        if watch && encoding == Encoding::Yaml {
            continue;
        }
        if let Some((form, meta_version)) = form(ctx, &clause, list)? {
            // Tables have no message, and upstream does not send them as CBOR.
            let table = matches!(form, Form::Table(_));
            if table && (!tables || matches!(encoding, Encoding::Protobuf | Encoding::Cbor)) {
                continue;
            }
            return Ok(Output {
                encoding,
                form,
                meta_version,
                pretty: pretty && encoding == Encoding::Json,
            });
        }
    }
    Err(not_acceptable(&if watch {
        offered.streams()
    } else {
        offered.objects()
    }))
}

fn not_acceptable(accepted: &str) -> Status {
    Status::not_acceptable(format!(
        "only the following media types are accepted: {accepted}"
    ))
}

fn check_routed(header: &str, offered: Offered, streams: &str) -> Result<(), Status> {
    if header
        .split(',')
        .take(64)
        .any(|clause| is_routed(clause, offered))
    {
        return Ok(());
    }
    Err(not_routed(&format!("{}{streams}", offered.objects())))
}

/// As upstream's router says it.
fn not_routed(available: &str) -> Status {
    Status::not_acceptable(format!(
        "406: Not Acceptable\n\nAvailable representations: {available}"
    ))
    .with_details("", "", "")
}

/// What the client accepts, the best first.
fn clauses(header: &str) -> Vec<Accept<'_>> {
    let mut clauses: Vec<Accept<'_>> = header
        .split(',')
        .take(64)
        .filter_map(parse_clause)
        .collect();
    // Stable: among equals the client's order decides.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

impl Accept<'_> {
    fn encoding(&self, offered: Offered) -> Option<Encoding> {
        match self.media_type {
            "*/*" | "application/*" => Some(Encoding::Json),
            media_type => Encoding::of(media_type, offered),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(n, _)| *n == name);
        found.map(|(_, value)| *value)
    }
}

fn is_routed(clause: &str, offered: Offered) -> bool {
    let media_type = clause.split(';').next().unwrap_or_default().trim();
    media_type == "*/*" || Encoding::of(media_type, offered).is_some()
}

/// The body's encoding; 415 when it is unknown.
pub(crate) fn input(ctx: &RequestContext, protobuf: bool) -> Result<Encoding, Status> {
    let header = ctx.header("content-type").unwrap_or_default();
    let media_type = header
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if media_type.is_empty() {
        return Ok(Encoding::Json);
    }
    let offered = Offered::at(ctx, protobuf);
    Encoding::of(&media_type, offered).ok_or_else(|| {
        Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            offered.objects()
        ))
    })
}

fn parse_clause(clause: &str) -> Option<Accept<'_>> {
    let mut parts = clause.split(';').map(str::trim);
    let media_type = parts.next().filter(|media_type| !media_type.is_empty())?;
    let mut quality = 1.0;
    let mut parameters = Vec::new();
    for parameter in parts {
        let (name, value) = parameter.split_once('=')?;
        let (name, value) = (name.trim(), value.trim().trim_matches('"'));
        match name {
            "q" => quality = value.parse().unwrap_or(0.0),
            _ => parameters.push((name, value)),
        }
    }
    (quality > 0.0).then_some(Accept {
        media_type,
        parameters,
        quality,
    })
}

/// The form the parameters ask for; nothing when this endpoint does not have it.
fn form(
    ctx: &RequestContext,
    clause: &Accept<'_>,
    list: bool,
) -> Result<Option<(Form, String)>, Status> {
    let get = |name| clause.parameter(name);
    let Some(kind) = get("as") else {
        return Ok(Some((Form::Object, String::new())));
    };
    let version = get("v").unwrap_or_default();
    if get("g") != Some("meta.k8s.io") || !matches!(version, "v1" | "v1beta1") {
        return Ok(None);
    }
    let form = match kind {
        "Table" => Form::Table(match ctx.query().get("includeObject") {
            None | Some("" | "Metadata") => IncludeObject::Metadata,
            Some("None") => IncludeObject::None,
            Some("Object") => IncludeObject::Object,
            Some(other) => {
                return Err(Status::bad_request(format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
                    go::quote(other)
                )));
            }
        }),
        "PartialObjectMetadata" if !list => Form::Metadata,
        "PartialObjectMetadataList" if list => Form::Metadata,
        // A watch is asked for with either name.
        "PartialObjectMetadata" | "PartialObjectMetadataList" if ctx.info.verb == "watch" => {
            Form::Metadata
        }
        _ => return Ok(None),
    };
    Ok(Some((form, version.to_owned())))
}

fn pretty(ctx: &RequestContext) -> bool {
    match ctx.query().get("pretty") {
        Some(value) if !value.is_empty() => go::parse_bool(value) == Some(true),
        _ => ["curl", "Wget", "Mozilla/5.0"].iter().any(|agent| {
            ctx.header("user-agent")
                .is_some_and(|ua| ua.starts_with(agent))
        }),
    }
}

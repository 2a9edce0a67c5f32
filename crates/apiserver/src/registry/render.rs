//! From the stored form to what the client asked for: version, encoding, tables, metadata only.
//! Where nothing differs the stored bytes are sent as they are.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Value, json};

use super::negotiate::{Encoding, Form, Output};
use super::resources::ResourceEntry;
use super::{codec, table, watch};
use crate::cache::Object;
use crate::request::{Body, BoxError, Response, full};

/// Lists are written in chunks of this size, four frames of HTTP/2.
const CHUNK: usize = 64 << 10;
/// How far ahead a list looks at its objects, so that their bytes are on the way from memory when
/// it comes to them: they lie anywhere, and nobody looked at most of them for long.
const AHEAD: usize = 4;
/// A chunk and the end of an object of usual size beyond it.
const ROOM: usize = CHUNK + (8 << 10);

/// What a list says of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListMeta {
    pub revision: u64,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

impl ListMeta {
    /// Lists of custom kinds say that nothing follows, others leave it out.
    fn to_json(&self, custom: bool) -> Value {
        let mut out = json!({"resourceVersion": self.revision.to_string()});
        if custom || !self.continue_token.is_empty() {
            out["continue"] = self.continue_token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            out["remainingItemCount"] = remaining.into();
        }
        out
    }
}

/// Renders objects of one entry for one client.
pub(crate) struct Renderer {
    entry: Arc<ResourceEntry>,
    output: Output,
    /// Watches send the columns of a table with the first object only.
    headers_sent: std::sync::atomic::AtomicBool,
}

impl Renderer {
    pub(crate) fn new(entry: Arc<ResourceEntry>, output: Output) -> Self {
        Self {
            entry,
            output,
            headers_sent: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// One object in its stored form.
    pub(crate) fn object(&self, code: u16, stored: &Bytes) -> Result<Response, Status> {
        if self.output.is_plain() && self.entry.is_sent_as_stored() {
            return Ok(response(code, &self.output, ended(stored)));
        }
        let value = self.converted(codec::parse(stored)?)?;
        let value = match self.output.form {
            Form::Object => value,
            Form::Metadata => self.partial(value),
            Form::Table(include) => {
                let meta = json!({"resourceVersion": meta::resource_version(&value)});
                let rows = vec![table::row(
                    &self.entry,
                    value,
                    include,
                    &self.output.meta_version,
                    time::now_unix(),
                )];
                table::table(&self.entry, &self.output.meta_version, meta, rows, true)
            }
        };
        self.value(code, &value)
    }

    /// A value that is no object of the entry (Scale, Status, …).
    pub(crate) fn value(&self, code: u16, value: &Value) -> Result<Response, Status> {
        self::value(code, &self.output, value)
    }

    pub(crate) fn list(
        &self,
        objects: Vec<Arc<Object>>,
        list: &ListMeta,
    ) -> Result<Response, Status> {
        match self.output.form {
            Form::Table(include) => {
                let now = time::now_unix();
                let mut rows = Vec::with_capacity(objects.len());
                for object in &objects {
                    let value = self.converted((*object.decode()).clone())?;
                    rows.push(table::row(
                        &self.entry,
                        value,
                        include,
                        &self.output.meta_version,
                        now,
                    ));
                }
                let table = table::table(
                    &self.entry,
                    &self.output.meta_version,
                    list.to_json(false),
                    rows,
                    true,
                );
                self.value(200, &table)
            }
            Form::Object | Form::Metadata
                if self.output.encoding == Encoding::Json
                    && !self.output.pretty
                    // An error has to be known before the status line.
                    && !self.entry.rules.conversion_may_fail() =>
            {
                Ok(self.stream(objects, list))
            }
            Form::Object | Form::Metadata => {
                let mut items = Vec::with_capacity(objects.len());
                for object in &objects {
                    let mut item = self.item(object)?;
                    if !self.items_have_type() {
                        drop_type(&mut item);
                    }
                    items.push(item);
                }
                let (api_version, kind) = self.list_type();
                self.value(200, &json!({"kind": kind, "apiVersion": api_version, "metadata": self.list_meta(list), "items": items}))
            }
        }
    }

    fn list_meta(&self, list: &ListMeta) -> Value {
        list.to_json(self.entry.custom && self.output.form == Form::Object)
    }

    fn list_type(&self) -> (String, String) {
        match self.output.form {
            Form::Metadata => (
                format!("meta.k8s.io/{}", self.output.meta_version),
                "PartialObjectMetadataList".to_owned(),
            ),
            _ => (self.entry.api_version(), self.entry.list_kind.clone()),
        }
    }

    /// Items are rendered as they are sent, so that a large list is never in memory twice.
    fn stream(&self, objects: Vec<Arc<Object>>, list: &ListMeta) -> Response {
        let (api_version, kind) = self.list_type();
        let mut head = BytesMut::new();
        head.put_slice(
            format!(
                "{{\"kind\":{},\"apiVersion\":{},\"metadata\":",
                json!(kind),
                json!(api_version)
            )
            .as_bytes(),
        );
        head.put_slice(self.list_meta(list).to_string().as_bytes());
        head.put_slice(b",\"items\":[");
        let renderer = Self::new(Arc::clone(&self.entry), self.output.clone());
        let item_head = codec::head(&self.entry.api_version(), &self.entry.kind);
        let mut state = Some((renderer, objects.into_iter(), head, true));
        let mut next = move || -> Option<Result<Bytes, BoxError>> {
            let (renderer, mut objects, mut out, mut first) = state.take()?;
            loop {
                let Some(object) = objects.next() else {
                    out.put_slice(b"]}\n");
                    return Some(Ok(out.freeze()));
                };
                if !first {
                    out.put_u8(b',');
                }
                first = false;
                if let Some(later) = objects.as_slice().get(AHEAD) {
                    std::hint::black_box(later.bytes().first());
                }
                // The status line is sent: cutting the body is how an error reaches the client.
                if let Err(status) = renderer.put_item(&mut out, &object, &item_head) {
                    return Some(Err(Box::new(status)));
                }
                if out.len() >= CHUNK {
                    let mut rest = BytesMut::with_capacity(ROOM);
                    rest.put_slice(&out[CHUNK..]);
                    out.truncate(CHUNK);
                    state = Some((renderer, objects, rest, first));
                    return Some(Ok(out.freeze()));
                }
            }
        };
        // A list that fits into one chunk has a length.
        let body = match next() {
            Some(Ok(first)) if first.ends_with(b"]}\n") => full(first),
            first => {
                let frames =
                    futures::stream::iter(first.into_iter().chain(std::iter::from_fn(next)))
                        .map(|chunk| chunk.map(Frame::data));
                StreamBody::new(frames).boxed_unsync()
            }
        };
        response(200, &self.output, body)
    }

    /// One item of a list; `head` is the beginning of stored bytes that it may have to lose.
    fn put_item(&self, out: &mut BytesMut, object: &Object, head: &str) -> Result<(), Status> {
        let as_stored = self.output.form == Form::Object && self.entry.is_sent_as_stored();
        if as_stored && self.items_have_type() {
            out.put_slice(object.bytes());
            return Ok(());
        }
        if as_stored && let Some(fields) = object.bytes().strip_prefix(head.as_bytes()) {
            out.put_u8(b'{');
            out.put_slice(fields);
            return Ok(());
        }
        let mut item = self.item(object)?;
        if !self.items_have_type() {
            drop_type(&mut item);
        }
        serde_json::to_writer(out.writer(), &item).map_err(Status::internal)
    }

    /// Upstream's lists of built-in kinds are typed: their items do not say what they are.
    fn items_have_type(&self) -> bool {
        self.entry.custom || self.output.form == Form::Metadata
    }

    fn item(&self, object: &Object) -> Result<Value, Status> {
        let value = self.converted((*object.decode()).clone())?;
        Ok(if self.output.form == Form::Metadata {
            self.partial(value)
        } else {
            value
        })
    }

    /// What a watch sends for an object, without its envelope.
    pub(crate) fn watch_object(&self, object: &Object) -> Result<Bytes, Status> {
        if self.output.form == Form::Object
            && self.entry.is_sent_as_stored()
            && self.output.encoding == Encoding::Json
        {
            return Ok(object.bytes().clone());
        }
        let value = self.item(object)?;
        let value = match self.output.form {
            Form::Table(include) => {
                let meta = json!({"resourceVersion": meta::resource_version(&value)});
                let rows = vec![table::row(
                    &self.entry,
                    value,
                    include,
                    &self.output.meta_version,
                    time::now_unix(),
                )];
                let headers = !self
                    .headers_sent
                    .swap(true, std::sync::atomic::Ordering::Relaxed);
                table::table(&self.entry, &self.output.meta_version, meta, rows, headers)
            }
            _ => value,
        };
        self.watch_value(&value)
    }

    /// Frames of YAML carry JSON trees too.
    fn watch_value(&self, value: &Value) -> Result<Bytes, Status> {
        match self.output.encoding {
            Encoding::Protobuf => codec::to_protobuf(value),
            Encoding::Cbor => Ok(codec::to_cbor(value)),
            Encoding::Json | Encoding::Yaml => serde_json::to_vec(value)
                .map(Bytes::from)
                .map_err(Status::internal),
        }
    }

    pub(crate) fn watch_bookmark(&self, object: Value) -> Result<Bytes, Status> {
        let value = match self.output.form {
            Form::Object => object,
            Form::Metadata => self.partial(object),
            Form::Table(_) => {
                let meta = json!({"resourceVersion": meta::resource_version(&object)});
                let rows = vec![table::bookmark_row(object, &self.output.meta_version)];
                let headers = !self
                    .headers_sent
                    .swap(true, std::sync::atomic::Ordering::Relaxed);
                table::table(&self.entry, &self.output.meta_version, meta, rows, headers)
            }
        };
        self.watch_value(&value)
    }

    pub(crate) fn watch_frame(&self, out: &mut BytesMut, kind: &str, object: &[u8]) {
        match self.output.encoding {
            Encoding::Yaml => {
                let event = json!({"type": kind, "object": serde_json::from_slice::<Value>(object).unwrap_or_default()});
                out.put_slice(
                    serde_saphyr::to_string(&event)
                        .unwrap_or_default()
                        .as_bytes(),
                );
                out.put_slice(b"---\n");
            }
            Encoding::Protobuf => {
                out.put_slice(&keelson_machinery::protobuf::watch_frame(kind, object));
            }
            Encoding::Cbor => out.put_slice(&keelson_machinery::cbor::watch_frame(kind, object)),
            Encoding::Json => watch::json_frame(out, kind, object),
        }
    }

    pub(crate) fn status(&self, status: &Status) -> Bytes {
        self.watch_value(&status.to_value())
            .unwrap_or_else(|_| status.to_bytes().into())
    }

    fn converted(&self, mut value: Value) -> Result<Value, Status> {
        if self.entry.rules.updates_on_read() {
            self.entry.rules.refresh(&mut value);
        }
        self.entry.from_storage(&mut value)?;
        Ok(value)
    }

    fn partial(&self, value: Value) -> Value {
        table::partial(value, &self.output.meta_version)
    }
}

fn drop_type(item: &mut Value) {
    if let Some(fields) = item.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
}

/// Any value, in the encoding of the output.
pub(crate) fn value(code: u16, output: &Output, value: &Value) -> Result<Response, Status> {
    let bytes: Bytes = match output.encoding {
        Encoding::Json => {
            let mut out = match output.pretty {
                true => serde_json::to_vec_pretty(value),
                false => serde_json::to_vec(value),
            }
            .map_err(Status::internal)?;
            out.push(b'\n');
            out.into()
        }
        Encoding::Yaml => serde_saphyr::to_string(value)
            .map_err(Status::internal)?
            .into(),
        Encoding::Protobuf => codec::to_protobuf(value)?,
        Encoding::Cbor => codec::to_cbor(value),
    };
    Ok(response(code, output, full(bytes)))
}

/// Stored bytes and the newline that upstream's encoder ends every object with. A small object is
/// copied, which costs less than another frame; a large one is not.
fn ended(stored: &Bytes) -> Body {
    if stored.len() >= CHUNK {
        let frames = [stored.clone(), Bytes::from_static(b"\n")];
        let frames = futures::stream::iter(frames.map(|bytes| Ok(Frame::data(bytes))));
        return StreamBody::new(frames).boxed_unsync();
    }
    let mut out = BytesMut::with_capacity(stored.len() + 1);
    out.put_slice(stored);
    out.put_u8(b'\n');
    full(out)
}

pub(crate) fn response(code: u16, output: &Output, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    set_content_type(&mut response, output.encoding.content_type());
    response
}

pub(crate) fn set_content_type(response: &mut Response, content_type: &str) {
    if let Ok(value) = http::HeaderValue::from_str(content_type) {
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, value);
    }
    response.headers_mut().insert(
        http::header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-cache, private"),
    );
}

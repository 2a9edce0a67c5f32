//! Declarations that several environments share.

use std::sync::Arc;

use keelson_cel::{DeclField, DeclType, Type};

/// Who a request comes from.
pub fn user_info() -> DeclType {
    object(
        "kubernetes.UserInfo",
        [
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", map_of(texts())),
        ],
    )
}

pub(super) fn field(ty: DeclType) -> DeclField {
    DeclField {
        ty: Arc::new(ty),
        required: true,
    }
}

/// An object with fields of these types.
pub fn object<const N: usize>(name: &str, fields: [(&str, DeclType); N]) -> DeclType {
    let fields = fields
        .into_iter()
        .map(|(name, ty)| (name.to_owned(), field(ty)));
    DeclType::object(name, fields.collect())
}

pub fn text() -> DeclType {
    DeclType::scalar(Type::String)
}

pub fn texts() -> DeclType {
    DeclType::list(Arc::new(text()), -1)
}

/// A map from texts.
pub fn map_of(value: DeclType) -> DeclType {
    DeclType::map(Arc::new(text()), Arc::new(value), -1)
}

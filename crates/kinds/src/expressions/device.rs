//! Selectors of devices in DeviceClasses and ResourceClaims: conditions on one `device`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use keelson_cel::{
    DeclField, DeclKind, DeclType, Declarations, Environment, Expression, SizeEstimator, SizeRange,
    Type, Version, display_issues,
};

pub const DEVICE: &str = "device";

/// The most that a selector may cost, estimated and when it runs.
pub const MAX_COST: u64 = 1_000_000;

const MAX_DOMAIN_BYTES: i64 = 63;
const MAX_ID_BYTES: i64 = 32;
const MAX_DRIVER_BYTES: i64 = 63;
const MAX_VALUE_BYTES: i64 = 64;
const MAX_ATTRIBUTES: i64 = 32;

/// What is wrong with a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Invalid(String),
    TooComplex,
}

/// Compiles a selector, which gives a boolean or what turns out to be one.
pub fn compile(source: &str, version: Version) -> Result<Expression, Problem> {
    let expression = environment(version).compile(source).map_err(|issues| {
        Problem::Invalid(format!("compilation failed: {}", display_issues(&issues)))
    })?;
    let ty = expression.output_type();
    if !matches!(ty, Type::Bool | Type::Dyn) {
        let name = super::name_of(ty);
        return Err(Problem::Invalid(format!(
            "must evaluate to bool or the unknown type, not {name}"
        )));
    }
    if expression.estimate_cost(&Sizes).max > MAX_COST {
        return Err(Problem::TooComplex);
    }
    Ok(expression)
}

fn environment(version: Version) -> Environment {
    let types = Declarations::new([&*TYPE]).with_keywords_as_fields();
    Environment::builder(version)
        .bindings()
        .variable(DEVICE, TYPE.ty.clone())
        .provider(Arc::new(types))
        .build()
}

static TYPE: LazyLock<DeclType> = LazyLock::new(|| {
    let attribute = sized(Type::Dyn, MAX_VALUE_BYTES);
    let quantity = DeclType::scalar(Type::object("kubernetes.Quantity"));
    let fields = [
        ("driver", sized(Type::String, MAX_DRIVER_BYTES)),
        ("attributes", by_domain(attribute)),
        ("capacity", by_domain(quantity)),
        ("allowMultipleAllocations", sized(Type::Bool, 1)),
    ];
    let fields: BTreeMap<String, DeclField> = fields
        .into_iter()
        .map(|(name, ty)| {
            let ty = Arc::new(ty);
            (name.to_owned(), DeclField { ty, required: true })
        })
        .collect();
    DeclType::object("kubernetes.DRADevice", fields)
});

fn sized(ty: Type, max_elements: i64) -> DeclType {
    DeclType {
        max_elements,
        ..DeclType::scalar(ty)
    }
}

/// `domain → id → value`.
fn by_domain(value: DeclType) -> DeclType {
    let key = |bytes: i64| Arc::new(sized(Type::String, bytes));
    let inner = DeclType::map(key(MAX_ID_BYTES), Arc::new(value), MAX_ATTRIBUTES);
    DeclType::map(key(MAX_DOMAIN_BYTES), Arc::new(inner), MAX_ATTRIBUTES)
}

/// The sizes that the type declares; every attribute is as large as any other.
struct Sizes;

impl SizeEstimator for Sizes {
    fn estimate_size(&self, path: &[Arc<str>], _: &Type) -> Option<SizeRange> {
        let (root, inside) = path.split_first()?;
        if &**root != DEVICE {
            return None;
        }
        let mut at: &DeclType = &TYPE;
        for name in inside {
            at = match (&**name, &at.kind) {
                ("@items" | "@values", DeclKind::List(of) | DeclKind::Map(_, of)) => of,
                ("@keys", DeclKind::Map(key, _)) => key,
                (field, DeclKind::Object(fields)) => &fields.get(field)?.ty,
                (_, DeclKind::Map(_, value)) if value.ty == Type::Dyn => value,
                _ => return None,
            };
        }
        let max = u64::try_from(at.max_elements).unwrap_or(u64::MAX);
        Some(SizeRange { min: 0, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_speak_of_one_device() {
        for source in [
            r#"device.driver == "gpu.example.com""#,
            r#"cel.bind(gpu, device.attributes["gpu.example.com"], gpu.family == "a100" && gpu.big)"#,
            r#"device.attributes["gpu.example.com"].family == "a100""#,
            r#"device.capacity["gpu.example.com"].memory.isGreaterThan(quantity("1Gi"))"#,
            r#"device.attributes["gpu.example.com"].shared"#,
        ] {
            assert!(
                compile(source, Version::NEW_EXPRESSIONS).is_ok(),
                "{source}: {:?}",
                compile(source, Version::NEW_EXPRESSIONS).err()
            );
        }
        assert_eq!(
            compile("device.driver", Version::NEW_EXPRESSIONS).unwrap_err(),
            Problem::Invalid("must evaluate to bool or the unknown type, not string".to_owned())
        );
        let nested = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a != d))))";
        assert_eq!(
            compile(nested, Version::NEW_EXPRESSIONS).unwrap_err(),
            Problem::TooComplex
        );
    }
}

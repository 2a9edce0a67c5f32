//! Small languages: selectors, quantities, expressions.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use keelson_cel::limits::PER_CALL_LIMIT;
use keelson_cel::{Environment, Type, Value, Variables, Version};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::{fields, labels};
use serde_json::json;

pub(crate) const SELECTORS: &[&[u8]] = &[
    b"a=b,c!=d,e in (f,g),h notin (i),!j,k",
    b"metadata.name=x,spec.nodeName!=n,status.phase==Running",
    b"a\\,b=c\\=d,x=",
    b"app.kubernetes.io/name in (a, b ,c),n>5,n<6",
];

pub(crate) const QUANTITIES: &[&[u8]] = &[
    b"1.5Gi",
    b"100m",
    b"-0.000001",
    b"1e3",
    b"12E",
    b"999999999999999999999Ki",
    b".5",
    b"+1n",
    b"9999999999.01999999Ki",
];

pub(crate) const EXPRESSIONS: &[&[u8]] = &[
    b"self.spec.replicas <= 5 && self.items.all(i, i.name.startsWith('a'))",
    b"has(self.x) ? self.x.y[0] + 1 : size(self.list) * 2 - 3 / 1 % 4",
    b"[1, 2, 3].map(x, x * 2).filter(x, x > 2).exists_one(x, x == 4)",
    b"'abc'.matches('^a.*c$') && duration('1h') < duration('90m') || timestamp('2024-01-01T00:00:00Z').getFullYear() == 2024",
    b"quantity('1Gi').isGreaterThan(quantity('1M')) && ip('10.0.0.1').family() == 4 && url('https://a/b').getHost() == 'a'",
    b"{'a': {1: [b'x', 1u, 1.5, null, true]}}['a'][1].size() == optional.of(5).orValue(r'\\n'.size())",
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

pub(crate) fn selector(data: &[u8]) {
    let Some(text) = text(data) else {
        return;
    };
    if let Ok(selector) = labels::Selector::parse(text) {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let matches = selector.matches(&labels);
        let again = labels::Selector::parse(&selector.to_string());
        let again = again.map(|again| again.matches(&labels));
        assert_eq!(again.ok(), Some(matches), "what is printed means the same");
    }
    if let Ok(selector) = fields::Selector::parse(text) {
        let get = |field: &str| (field == "metadata.name").then_some("x");
        let _ = selector.matches(get);
        let _ = selector.requires_exact("metadata.name");
    }
}

pub(crate) fn quantity(data: &[u8]) {
    let Some(text) = text(data) else {
        return;
    };
    if let Ok(parsed) = Quantity::parse(text) {
        let _ = (parsed.value(), parsed.milli_value(), parsed.as_f64());
        if let Ok(canonical) = Quantity::canonical(text) {
            let again = Quantity::canonical(&canonical);
            assert_eq!(again.ok(), Some(canonical), "canonical is canonical");
        }
    }
}

pub(crate) fn cel(data: &[u8]) {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    let environment = ENVIRONMENT.get_or_init(|| {
        Environment::builder(Version::STORED_EXPRESSIONS)
            .variable("self", Type::Dyn)
            .build()
    });
    let Some(expression) = text(data).and_then(|text| environment.compile(text).ok()) else {
        return;
    };
    let object = json!({
        "spec": {"replicas": 3}, "items": [{"name": "ab"}, {"name": "b"}],
        "x": {"y": [1, 2.5, "z", null, true]}, "list": [[], {}],
    });
    if let Ok(value) = Value::from_json(&object, None) {
        let variables = Variables::new().with("self", value);
        let _ = expression.eval(&variables, PER_CALL_LIMIT);
    }
}

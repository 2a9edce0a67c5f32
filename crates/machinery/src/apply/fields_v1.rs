//! What one manager owns, in the form that stands in the object. Most writes touch a few fields of
//! objects with many, so the tree is changed in place and never read as a whole.

use super::field_set::{FieldSet, MAX_DEPTH, Node, has_known_kind};
use serde_json::{Map, Value};

const SELF: &str = ".";

/// FieldsV1 in its canonical form: `.` stands only where a member has others below it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldsV1(Map<String, Value>);

impl FieldsV1 {
    /// Fails in the words of [`FieldSet::from_value`].
    pub(super) fn read(v: Value) -> Result<FieldsV1, String> {
        match v {
            Value::Object(map) if is_canonical(&map, 0) => Ok(FieldsV1(map)),
            v => Ok(FieldSet::from_value(&v)?.into()),
        }
    }

    pub(super) fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    pub(super) fn set(&self) -> FieldSet {
        FieldSet::from_map(&self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes members. Costs what the other set is large.
    pub(super) fn subtract(&mut self, other: &FieldSet) {
        subtract(&mut self.0, other);
    }

    pub(super) fn absorb(&mut self, other: FieldSet) {
        absorb(&mut self.0, other);
    }
}

impl From<FieldSet> for FieldsV1 {
    fn from(set: FieldSet) -> FieldsV1 {
        let mut map = Map::new();
        absorb(&mut map, set);
        FieldsV1(map)
    }
}

fn is_canonical(map: &Map<String, Value>, depth: usize) -> bool {
    depth <= MAX_DEPTH
        && map.iter().all(|(k, v)| match v {
            Value::Object(below) if k == SELF => depth > 0 && map.len() > 1 && below.is_empty(),
            Value::Object(below) => has_known_kind(k) && is_canonical(below, depth + 1),
            _ => false,
        })
}

fn is_member(node: &Map<String, Value>) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

/// Writes whether the node is a member, once what is below it has changed; false when nothing is
/// left of it.
fn settle(node: &mut Map<String, Value>, member: bool) -> bool {
    node.remove(SELF);
    if node.is_empty() {
        return member;
    }
    if member {
        node.insert(SELF.to_owned(), Value::Object(Map::new()));
    }
    true
}

fn subtract(map: &mut Map<String, Value>, other: &FieldSet) {
    for (k, o) in &other.nodes {
        let Some(Value::Object(mine)) = map.get_mut(k) else {
            continue;
        };
        let member = is_member(mine) && !o.member;
        subtract(mine, &o.below);
        if !settle(mine, member) {
            map.remove(k);
        }
    }
}

fn absorb(map: &mut Map<String, Value>, other: FieldSet) {
    for (k, node) in other.nodes {
        let Node { member, below } = node;
        match map.get_mut(&k) {
            Some(Value::Object(mine)) => {
                let member = member || is_member(mine);
                absorb(mine, below);
                settle(mine, member);
            }
            _ => {
                let mut mine = Map::new();
                absorb(&mut mine, below);
                if settle(&mut mine, member) {
                    map.insert(k, Value::Object(mine));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(v: Value) -> FieldsV1 {
        FieldsV1::read(v).unwrap()
    }

    #[test]
    fn changing_in_place_is_changing_the_set() {
        let trees = [
            json!({}),
            json!({"f:a": {}}),
            json!({"f:a": {"f:b": {}}}),
            json!({"f:a": {".": {}, "f:b": {}}}),
            json!({"f:a": {"f:b": {"f:c": {}}, "f:d": {}}, "f:e": {}}),
            json!({"f:a": {".": {}, "f:d": {}}, "f:l": {"k:{\"n\":1}": {".": {}, "f:n": {}}}}),
            json!({"f:l": {"k:{\"n\":1}": {}}, "f:e": {"f:x": {}}}),
        ];
        for a in &trees {
            for b in &trees {
                let (set, other) = (fields(a.clone()).set(), fields(b.clone()).set());
                let mut less = set.clone();
                less.subtract(&other);
                let mut in_place = fields(a.clone());
                in_place.subtract(&other);
                assert_eq!(in_place.into_value(), less.to_value(), "{a} without {b}");
                let mut in_place = fields(a.clone());
                in_place.absorb(other.clone());
                assert_eq!(
                    in_place.into_value(),
                    set.union(&other).to_value(),
                    "{a} and {b}"
                );
            }
        }
    }

    #[test]
    fn other_forms_are_brought_into_the_canonical_one() {
        let given = json!({".": {}, "f:a": {".": {}}, "f:b": {".": {"f:x": {}}, "f:c": {}}});
        let want = json!({"f:a": {}, "f:b": {".": {}, "f:c": {}}});
        assert_eq!(fields(given).into_value(), want);
        for (bad, problem) in [
            (
                json!({"a": {}}),
                "missing colon or unknown kind in field \"a\"",
            ),
            (json!({"f:a": 1}), "fieldsV1 must hold objects"),
        ] {
            assert_eq!(FieldsV1::read(bad).unwrap_err(), problem);
        }
    }
}

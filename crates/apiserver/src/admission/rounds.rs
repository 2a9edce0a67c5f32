//! Webhooks and policies may be called a second time, when others changed the object after them.

use std::collections::BTreeSet;

use serde_json::Value;

/// The rounds of one write.
#[derive(Debug, Clone, Default)]
pub struct Rounds {
    /// This is the second round.
    pub(super) again: bool,
    /// Somebody changed the object, so that there will be a second one.
    pub(super) wanted: bool,
    pub(super) webhooks: Called,
    pub(super) policies: Called,
}

/// Which members of a plugin were called, and which of them want to see later changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Called {
    invoked: BTreeSet<String>,
    due: BTreeSet<String>,
    output: Option<Value>,
}

impl Called {
    /// Starts the plugin's part of a round.
    pub(super) fn begin(&mut self, again: bool, object: Option<&Value>) {
        // Plugins between the last member and the end of the first round changed it.
        if again && self.output.as_ref() != object {
            self.require();
        }
    }

    /// Ends it.
    pub(super) fn end(&mut self, object: Option<&Value>) {
        self.output = object.cloned();
    }

    /// This member wants to be called again when others change the object after it.
    pub(super) fn invoked(&mut self, key: &str) {
        self.invoked.insert(key.to_owned());
    }

    /// The object changed: who was called so far is called again.
    pub(super) fn require(&mut self) {
        self.due.append(&mut self.invoked);
    }

    pub(super) fn is_due(&self, key: &str) -> bool {
        self.due.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_was_called_before_a_change_is_called_again() {
        let mut called = Called::default();
        let (first, second) = (json!({"a": 1}), json!({"a": 2}));
        called.begin(false, Some(&first));
        called.invoked("early");
        called.require();
        called.invoked("late");
        called.end(Some(&second));
        assert!(called.is_due("early") && !called.is_due("late"));
        called.begin(true, Some(&second));
        assert!(!called.is_due("late"), "nothing changed after it");
        called.begin(true, Some(&first));
        assert!(called.is_due("late"), "a later plugin changed the object");
    }
}

//! What converters answered, so that many who read one object do not each have it converted.
//! Upstream keeps a cache of each version; here it is the answers that are kept, by what was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Of the text of all that is kept for one definition.
const MOST_BYTES: usize = 8 << 20;

/// An object as it was sent, and the version it was to be in.
pub(super) type Question = [u8; 32];

pub(super) fn question(to: &str, sent: &[u8]) -> Question {
    let mut hash = Sha256::new();
    hash.update(to);
    hash.update([0]);
    hash.update(sent);
    hash.finalize().into()
}

#[derive(Default)]
pub(super) struct Remembered(Mutex<Answers>);

#[derive(Default)]
struct Answers {
    by_question: HashMap<Question, (Value, usize)>,
    /// The oldest first.
    order: VecDeque<Question>,
    bytes: usize,
}

impl Remembered {
    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, question: &Question) -> Option<Value> {
        let answers = self.answers();
        answers
            .by_question
            .get(question)
            .map(|(answer, _)| answer.clone())
    }

    /// `size` is about that of the answer's text.
    pub(super) fn put(&self, question: Question, answer: Value, size: usize) {
        let mut answers = self.answers();
        if answers
            .by_question
            .insert(question, (answer, size))
            .is_some()
        {
            return;
        }
        answers.order.push_back(question);
        answers.bytes += size;
        while answers.bytes > MOST_BYTES {
            let Some(oldest) = answers.order.pop_front() else {
                break;
            };
            let gone = answers.by_question.remove(&oldest);
            answers.bytes -= gone.map_or(0, |(_, size)| size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_kept_by_version_and_content_until_there_are_too_many() {
        let remembered = Remembered::default();
        let first = question("v2", b"{}");
        assert_ne!(first, question("v1", b"{}"));
        assert_ne!(first, question("v2", b"[]"));
        remembered.put(first, json!(1), MOST_BYTES / 2);
        remembered.put(first, json!(2), MOST_BYTES / 2);
        let second = question("v2", b"[]");
        remembered.put(second, json!(3), MOST_BYTES / 2);
        assert_eq!(remembered.get(&first), Some(json!(2)));
        let third = question("v3", b"[]");
        remembered.put(third, json!(4), 1);
        assert_eq!(remembered.get(&first), None, "the oldest went");
        assert_eq!(remembered.get(&second), Some(json!(3)));
        assert_eq!(remembered.get(&third), Some(json!(4)));
    }
}

//! Answers from elsewhere, kept for a short while: above all that a name does not exist, which
//! every search path of a pod asks anew.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};

/// Half a minute, as long as cluster records.
const LONGEST: Duration = Duration::from_secs(30);
/// A resolver that fails on one name is asked again soon.
const FAILURE: Duration = Duration::from_secs(5);
const MAX_ENTRIES: usize = 4096;
/// Larger answers are rare and are asked for each time.
const MAX_RECORDS: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: String,
    query_type: RecordType,
    query_class: DNSClass,
    checking_disabled: bool,
}

struct Entry {
    answer: Message,
    stored: Instant,
    expires: Instant,
}

#[derive(Default)]
pub(crate) struct Cache {
    entries: BTreeMap<Key, Entry>,
    /// Oldest first; a key that was stored twice stands twice.
    order: VecDeque<Key>,
}

impl Cache {
    /// The answer as a reply to this very query, with what is left of its records' time.
    pub(crate) fn get(&self, query: &Message, now: Instant) -> Option<Message> {
        let entry = self.entries.get(&key(query)?)?;
        if entry.expires <= now {
            return None;
        }
        let age = now.saturating_duration_since(entry.stored).as_secs();
        let age = u32::try_from(age).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        answer.metadata.id = query.metadata.id;
        answer.queries.clone_from(&query.queries);
        if query.edns.is_none() {
            answer.edns = None;
        }
        let records = answer.answers.iter_mut().chain(&mut answer.authorities);
        for record in records.chain(&mut answer.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(answer)
    }

    pub(crate) fn put(&mut self, query: &Message, answer: &Message, now: Instant) {
        let (Some(key), Some(lifetime)) = (key(query), lifetime(answer)) else {
            return;
        };
        while self.order.len() >= MAX_ENTRIES {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
        self.order.push_back(key.clone());
        let entry = Entry {
            answer: answer.clone(),
            stored: now,
            expires: now + lifetime,
        };
        self.entries.insert(key, entry);
    }
}

/// `None` for queries whose answer depends on more than the question.
fn key(query: &Message) -> Option<Key> {
    let [question] = query.queries.as_slice() else {
        return None;
    };
    let special = query
        .edns
        .as_ref()
        .is_some_and(|edns| edns.flags().dnssec_ok || !edns.options().as_ref().is_empty());
    (!special && query.metadata.recursion_desired).then(|| Key {
        name: question.name.to_lowercase().to_ascii(),
        query_type: question.query_type,
        query_class: question.query_class,
        checking_disabled: query.metadata.checking_disabled,
    })
}

/// How long an answer may be kept; `None` when it must not be.
fn lifetime(answer: &Message) -> Option<Duration> {
    if answer.metadata.truncation || answer.all_sections().count() > MAX_RECORDS {
        return None;
    }
    let seconds = |ttl: u32| Duration::from_secs(u64::from(ttl)).min(LONGEST);
    let lifetime = match answer.metadata.response_code {
        ResponseCode::NoError if !answer.answers.is_empty() => {
            seconds(answer.answers.iter().map(|record| record.ttl).min()?)
        }
        // The zone says how long its gaps last (RFC 2308); without its word nothing is kept.
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer
                .authorities
                .iter()
                .find_map(|record| match &record.data {
                    RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                    _ => None,
                });
            seconds(soa?)
        }
        ResponseCode::ServFail => FAILURE,
        _ => return None,
    };
    (!lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, Record};

    fn query(id: u16, name: &str) -> Message {
        let mut query = Message::query();
        query.metadata.id = id;
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        query
    }

    fn answer(code: ResponseCode, ttl_s: Option<u32>, minimum_s: Option<u32>) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        answer.metadata.response_code = code;
        let name = Name::from_ascii("a.example.").unwrap();
        if let Some(ttl) = ttl_s {
            let data = RData::A(A([192, 0, 2, 1].into()));
            answer.add_answer(Record::from_rdata(name.clone(), ttl, data));
        }
        if let Some(minimum) = minimum_s {
            let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
            answer.add_authority(Record::from_rdata(name, 600, RData::SOA(soa)));
        }
        answer
    }

    #[test]
    fn answers_last_as_long_as_their_zone_says() {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        let cases = [
            (NoError, Some(10), None, 10),
            (NoError, Some(3600), None, 30),
            (NoError, Some(0), None, 0),
            (NXDomain, None, Some(7), 7),
            (NXDomain, None, Some(3600), 30),
            (NXDomain, None, None, 0),
            (NoError, None, Some(7), 7),
            (ServFail, None, None, 5),
            (Refused, None, None, 0),
        ];
        let now = Instant::now();
        for (code, ttl, minimum, kept_s) in cases {
            let mut cache = Cache::default();
            cache.put(&query(1, "a.example."), &answer(code, ttl, minimum), now);
            let known = |after: Duration| cache.get(&query(2, "A.Example."), now + after);
            let case = format!("{code:?} {ttl:?} {minimum:?}");
            let just_before =
                Duration::from_millis(kept_s * 1000).saturating_sub(Duration::from_millis(1));
            assert_eq!(known(just_before).is_some(), kept_s > 0, "{case}");
            assert!(known(Duration::from_secs(kept_s)).is_none(), "{case}");
        }
    }

    #[test]
    fn a_kept_answer_is_a_reply_to_the_new_query() {
        let mut cache = Cache::default();
        let now = Instant::now();
        let stored = answer(ResponseCode::NoError, Some(20), None);
        cache.put(&query(1, "a.example."), &stored, now);
        let again = query(77, "A.example.");
        let reply = cache.get(&again, now + Duration::from_secs(5)).unwrap();
        assert_eq!(reply.metadata.id, 77);
        assert_eq!(reply.queries, again.queries);
        assert_eq!(reply.answers[0].ttl, 15);
        assert!(cache.get(&query(1, "b.example."), now).is_none());
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let mut cache = Cache::default();
        let now = Instant::now();
        for n in 0..=MAX_ENTRIES {
            let answer = answer(ResponseCode::NXDomain, None, Some(20));
            cache.put(&query(1, &format!("n{n}.example.")), &answer, now);
        }
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert!(cache.get(&query(1, "n0.example."), now).is_none());
        assert!(cache.get(&query(1, "n1.example."), now).is_some());
    }
}

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record};

use super::*;

/// Nothing ends by itself in these: a reply, or a probe without one, must end it.
fn endless() -> Timing {
    Timing {
        patience: Duration::from_secs(3600),
        hedge: Duration::from_millis(20),
        probe: Duration::from_millis(500),
        idle: Duration::from_secs(3600),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers,
    /// Answers nothing but probes.
    IgnoresNames,
    Silent,
    Fails,
    NoSuchName,
}

/// A resolver on the loopback whose manner can change, and which counts the names asked.
struct Fake {
    address: SocketAddr,
    manner: watch::Sender<Manner>,
    names: Arc<AtomicUsize>,
}

async fn fake(manner: Manner) -> Fake {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (manner, now) = watch::channel(manner);
    let names = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&names);
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let is_probe = query.queries[0].query_type == RecordType::NS;
            if !is_probe {
                count.fetch_add(1, Ordering::SeqCst);
            }
            let manner = *now.borrow();
            if manner == Manner::Silent || (manner == Manner::IgnoresNames && !is_probe) {
                continue;
            }
            let reply = reply(&query, manner).to_vec().unwrap();
            socket.send_to(&reply, client).await.unwrap();
        }
    });
    Fake {
        address,
        manner,
        names,
    }
}

fn reply(query: &Message, manner: Manner) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.queries.clone_from(&query.queries);
    let name = query.queries[0].name.clone();
    match manner {
        Manner::Fails => reply.metadata.response_code = ResponseCode::ServFail,
        Manner::NoSuchName => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 30);
            reply.add_authority(Record::from_rdata(name, 30, RData::SOA(soa)));
        }
        _ => {
            let data = RData::A(A([192, 0, 2, 7].into()));
            reply.add_answer(Record::from_rdata(name, 0, data));
        }
    }
    reply
}

fn query(name: &str) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query
}

async fn ask(forwarder: &Forwarder, name: &str) -> Option<ResponseCode> {
    let query = query(name);
    let bytes = query.to_vec().unwrap();
    let reply = forwarder.ask(&query, &bytes, false).await?;
    Some(Message::from_vec(&reply).unwrap().metadata.response_code)
}

#[tokio::test]
async fn without_a_resolver_there_is_no_waiting() {
    let none = Forwarder::new(&[], endless());
    assert_eq!(ask(&none, "a.example.").await, None);
}

#[tokio::test]
async fn a_resolver_that_is_not_there_is_left_out_until_it_is() {
    let silent = fake(Manner::Silent).await;
    let forwarder = Forwarder::new(&[silent.address], endless());
    assert_eq!(ask(&forwarder, "a.example.").await, None);
    assert_eq!(silent.names.load(Ordering::SeqCst), 1);
    assert_eq!(ask(&forwarder, "b.example.").await, None);
    assert_eq!(
        silent.names.load(Ordering::SeqCst),
        1,
        "it was not even asked"
    );

    silent.manner.send_replace(Manner::Answers);
    let back = async {
        while ask(&forwarder, "c.example.").await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), back)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_slow_or_failing_resolver_hands_over_to_the_next() {
    for manner in [Manner::Silent, Manner::IgnoresNames, Manner::Fails] {
        let (first, second) = (fake(manner).await, fake(Manner::Answers).await);
        let forwarder = Forwarder::new(&[first.address, second.address], endless());
        assert_eq!(
            ask(&forwarder, "a.example.").await,
            Some(ResponseCode::NoError)
        );
        assert_eq!(second.names.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_name_may_take_its_time_at_a_resolver_that_lives() {
    let slow = fake(Manner::IgnoresNames).await;
    let timing = Timing {
        patience: Duration::from_secs(1),
        probe: Duration::from_secs(60),
        ..endless()
    };
    let forwarder = Forwarder::new(&[slow.address], timing);
    assert_eq!(ask(&forwarder, "a.example.").await, None);
    assert!(
        *forwarder.resolvers[0].is_up.borrow(),
        "the probe was answered"
    );
}

#[tokio::test]
async fn a_closed_port_fails_at_once() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    let timing = Timing {
        hedge: Duration::from_secs(3600),
        ..endless()
    };
    assert_eq!(
        ask(&Forwarder::new(&[address], timing), "a.example.").await,
        None
    );
}

#[tokio::test]
async fn failures_of_all_are_the_clients_to_see() {
    let (first, second) = (fake(Manner::Fails).await, fake(Manner::Fails).await);
    let forwarder = Forwarder::new(&[first.address, second.address], endless());
    assert_eq!(
        ask(&forwarder, "a.example.").await,
        Some(ResponseCode::ServFail)
    );
    assert_eq!(second.names.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_asked_once() {
    let resolver = fake(Manner::NoSuchName).await;
    let forwarder = Forwarder::new(&[resolver.address], endless());
    assert!(forwarder.cached(&query("gone.example.")).is_none());
    assert_eq!(
        ask(&forwarder, "gone.example.").await,
        Some(ResponseCode::NXDomain)
    );
    let kept = forwarder.cached(&query("gone.example.")).unwrap();
    assert_eq!(kept.metadata.response_code, ResponseCode::NXDomain);
}

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use proptest::prelude::*;

use super::{
    answer,
    cache::{Cache, Key},
    forward::{self, Unfit},
    names::{self, Asker, Found},
    query::{self, Query, Received},
    wire,
};
use crate::workload::{Defaults, Workloads};

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn ask(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), kind));
    message
}

fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("it can be written")
}

fn read(bytes: &[u8]) -> Query<'_> {
    match query::read(bytes) {
        Received::Query(query) => query,
        Received::Malformed(header) => panic!("malformed: {header:?}"),
        Received::Nothing => panic!("nothing"),
    }
}

/// What a server answers: addresses that live for `ttls` seconds.
fn reply(asked: &Message, ttls: &[u32]) -> Message {
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    let question = asked.queries[0].clone();
    for ttl in ttls {
        let data = RData::A(A([192, 0, 2, 1].into()));
        reply.add_answer(Record::from_rdata(question.name().clone(), *ttl, data));
    }
    reply.add_query(question);
    reply
}

fn negative(asked: &Message, code: ResponseCode, ttl: u32, minimum: u32) -> Message {
    let mut reply = reply(asked, &[]);
    reply.metadata.response_code = code;
    let soa = SOA::new(name("test."), name("test."), 1, 1, 1, 1, minimum);
    reply.add_authority(Record::from_rdata(name("test."), ttl, RData::SOA(soa)));
    reply
}

fn server() -> SocketAddr {
    "10.9.0.10:53".parse().expect("an address")
}

fn mesh() -> Workloads {
    let text = r#"
workloads:
- {uid: a, name: web-0, namespace: shop, workloadIps: [10.1.0.1, "fd00::1"], protocol: HBONE, hostname: Db.Example.com, services: {"shop/members.shop.svc.cluster.local": {"80": 80}}}
- {uid: b, name: web-1, namespace: shop, workloadIps: [10.1.0.2], protocol: HBONE, status: Unhealthy, services: {"shop/members.shop.svc.cluster.local": {"80": 80}}}
- {uid: c, name: far, namespace: shop, workloadIps: [10.1.0.3], protocol: HBONE, network: other, services: {"shop/members.shop.svc.cluster.local": {"80": 80}}}
- {uid: d, name: named, namespace: shop, workloadIps: [], hostname: gone.example.com}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [/10.96.0.1, "/fd00:96::1", other/10.96.9.9], ports: {"80": 80}}
- {name: members, namespace: shop, hostname: members.shop.svc.cluster.local, vips: [], ports: {"80": 80}}
- {name: empty, namespace: shop, hostname: empty.shop.svc.cluster.local, vips: [], ports: {"80": 80}}
- {name: ext, namespace: shop, hostname: api.example.org, vips: [/240.0.0.1], ports: {"443": 443}}
- {name: ext, namespace: own, hostname: api.example.org, vips: [/240.0.0.2], ports: {"443": 443}}
- {name: wild, namespace: shop, hostname: "*.wild.example.org", vips: [/240.0.0.3], ports: {"443": 443}}
- {name: hidden, namespace: shop, hostname: hidden.example.org, vips: [/240.0.0.4], ports: {"443": 443}, visibility: Namespace}
"#;
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a file");
    std::fs::write(file.path(), text).expect("written");
    let defaults = Defaults {
        trust_domain: "cluster.local".into(),
    };
    Workloads::load(file.path(), &defaults).expect("good workloads")
}

#[test]
fn names_of_the_mesh() {
    let mesh = mesh();
    /// An alias, and addresses.
    type Answer = Option<(&'static str, &'static [&'static str])>;
    let cases: &[(&str, &str, Answer)] = &[
        (
            "web.shop.svc.cluster.local",
            "own",
            Some(("", &["10.96.0.1", "fd00:96::1"])),
        ),
        ("web.shop", "own", Some(("", &["10.96.0.1", "fd00:96::1"]))),
        ("web", "shop", Some(("", &["10.96.0.1", "fd00:96::1"]))),
        ("web", "own", None),
        (
            "members.shop.svc.cluster.local",
            "own",
            Some(("", &["10.1.0.1", "fd00::1"])),
        ),
        (
            "web-0.members.shop.svc.cluster.local",
            "own",
            Some(("", &["10.1.0.1", "fd00::1"])),
        ),
        ("web-1.members.shop.svc.cluster.local", "own", None),
        ("far.members.shop.svc.cluster.local", "own", None),
        ("empty.shop.svc.cluster.local", "own", Some(("", &[]))),
        ("api.example.org", "own", Some(("", &["240.0.0.2"]))),
        ("api.example.org", "elsewhere", Some(("", &["240.0.0.1"]))),
        (
            "api.example.org.own.svc.cluster.local",
            "own",
            Some(("api.example.org", &["240.0.0.2"])),
        ),
        ("api.example.org.shop.svc.cluster.local", "own", None),
        ("a.wild.example.org", "own", Some(("", &["240.0.0.3"]))),
        (
            "a.b.wild.example.org.svc.cluster.local",
            "own",
            Some(("a.b.wild.example.org", &["240.0.0.3"])),
        ),
        ("wild.example.org", "own", None),
        ("hidden.example.org", "own", None),
        ("hidden.example.org", "shop", Some(("", &["240.0.0.4"]))),
        (
            "db.example.com",
            "own",
            Some(("", &["10.1.0.1", "fd00::1"])),
        ),
        ("gone.example.com", "own", None),
        ("example.net", "own", None),
        ("cluster.local", "own", None),
    ];
    for (name, namespace, expected) in cases {
        let asker = Asker {
            namespace,
            network: "",
            domain: "cluster.local",
        };
        let expected = expected.map(|(canonical, addresses)| Found {
            canonical: (!canonical.is_empty()).then(|| canonical.to_owned()),
            addresses: addresses
                .iter()
                .map(|ip| ip.parse().expect("an address"))
                .collect(),
        });
        assert_eq!(
            names::look_up(&mesh, &asker, name),
            expected,
            "{name} from {namespace}"
        );
    }
    let elsewhere = Asker {
        namespace: "own",
        network: "other",
        domain: "cluster.local",
    };
    let of = |name| names::look_up(&mesh, &elsewhere, name).map(|found| found.addresses);
    assert_eq!(
        of("web.shop.svc.cluster.local"),
        Some(vec!["10.96.9.9".parse::<IpAddr>().unwrap()])
    );
    assert_eq!(
        of("members.shop.svc.cluster.local"),
        Some(vec!["10.1.0.3".parse::<IpAddr>().unwrap()])
    );
}

#[test]
fn answers_fit_or_are_cut_and_spell_as_was_asked() {
    let found = Found {
        canonical: None,
        addresses: (0..64).map(|n| IpAddr::from([10, 0, 0, n])).collect(),
    };
    let message = ask("WeB.ShOp.", RecordType::A);
    let asked = bytes(&message);
    let query = read(&asked);
    let question = query.asked.as_ref().expect("a question");
    let answer = |limit, first| {
        let bytes = answer::found(&query, question, &found, 30, first, limit).expect("an answer");
        assert_eq!(wire::question(&bytes), wire::question(&asked));
        (bytes.len(), Message::from_vec(&bytes).expect("a message"))
    };
    let (length, cut) = answer(512, 0);
    assert!(cut.metadata.truncation && length <= 512);
    let (_, whole) = answer(65_535, 3);
    assert!(!whole.metadata.truncation && whole.metadata.authoritative);
    assert_eq!(whole.answers.len(), 64);
    assert_eq!(whole.answers[0].data, RData::A(A([10, 0, 0, 3].into())));
    assert_eq!(whole.metadata.id, 0x1234);
}

#[test]
fn host_names_in_questions() {
    let of = |text: &str| {
        let asked = bytes(&ask(text, RecordType::A));
        read(&asked).asked.expect("a question").hostname()
    };
    assert_eq!(
        of("Web.Shop.SVC.cluster.LOCAL.").as_deref(),
        Some("web.shop.svc.cluster.local")
    );
    assert_eq!(of("_dns._tcp.x_y-1.").as_deref(), Some("_dns._tcp.x_y-1"));
    assert_eq!(of("."), None);
    assert_eq!(of("a\\.b.c."), None);
    assert_eq!(of("*.c."), None);
}

#[test]
fn answers_live_as_long_as_their_first_record_dies() {
    let began = Instant::now();
    let after = |seconds| began + Duration::from_secs(seconds);
    let message = ask("a.test.", RecordType::A);
    let asked = bytes(&message);
    let kept = |reply: &Message| {
        let mut cache = Cache::new(10);
        let reply = bytes(reply);
        let key = Key::of(&read(&asked), server()).expect("ordinary");
        cache.put(
            key.clone(),
            &reply,
            wire::lifetimes(&reply).expect("well-formed"),
            began,
        );
        let holds = |seconds: &u64| cache.get(&key, after(*seconds), 512).is_some();
        (0..4000).take_while(holds).count()
    };
    assert_eq!(kept(&reply(&message, &[60, 20])), 20);
    assert_eq!(kept(&reply(&message, &[86_400])), 3600);
    assert_eq!(kept(&reply(&message, &[60, 0])), 0);
    assert_eq!(kept(&reply(&message, &[1 << 31])), 0);
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        assert_eq!(kept(&negative(&message, code, 300, 15)), 15);
        assert_eq!(kept(&negative(&message, code, 7, 15)), 7);
    }
    assert_eq!(
        kept(&negative(&message, ResponseCode::ServFail, 300, 15)),
        0
    );
    // Without the zone's start, nobody says for how long there is nothing.
    assert_eq!(kept(&reply(&message, &[])), 0);
    let mut cut = reply(&message, &[60]);
    cut.metadata.truncation = true;
    assert_eq!(kept(&cut), 0);
}

#[test]
fn kept_answers_grow_old_and_push_out_the_next_to_end() {
    let began = Instant::now();
    let mut cache = Cache::new(2);
    let mut put = |text: &str, ttl: u32| {
        let message = ask(text, RecordType::A);
        let (asked, reply) = (bytes(&message), bytes(&reply(&message, &[ttl])));
        let key = Key::of(&read(&asked), server()).expect("ordinary");
        cache.put(
            key.clone(),
            &reply,
            wire::lifetimes(&reply).expect("well-formed"),
            began,
        );
        key
    };
    let (a, b) = (put("a.test.", 100), put("b.test.", 50));
    put("a.test.", 100);
    let c = put("c.test.", 75);
    let get = |key, seconds, limit| cache.get(key, began + Duration::from_secs(seconds), limit);
    assert!(get(&b, 0, 512).is_none(), "it was the next to end");
    let old = Message::from_vec(&get(&a, 33, 512).expect("kept")).expect("a message");
    assert_eq!(old.answers[0].ttl, 67);
    assert!(get(&c, 74, 512).is_some() && get(&c, 75, 512).is_none());
    assert!(get(&a, 0, 20).is_none(), "it does not fit");
}

#[test]
fn questions_that_differ_have_answers_that_differ() {
    let key = |message: &Message| Key::of(&read(&bytes(message)), server());
    let plain = ask("a.test.", RecordType::A);
    let same = ask("A.TEST.", RecordType::A);
    assert_eq!(key(&plain), key(&same));
    let mut others = vec![
        ask("b.test.", RecordType::A),
        ask("a.test.", RecordType::AAAA),
    ];
    // HTTPS and its letter in lower case.
    others.push(ask("a.test.", RecordType::HTTPS));
    others.push(ask("a.test.", RecordType::Unknown(97)));
    let mut no_recursion = plain.clone();
    no_recursion.metadata.recursion_desired = false;
    let mut unchecked = plain.clone();
    unchecked.metadata.checking_disabled = true;
    others.extend([no_recursion, unchecked]);
    for dnssec_ok in [false, true] {
        let mut extended = plain.clone();
        let mut edns = Edns::new();
        edns.set_dnssec_ok(dnssec_ok);
        extended.set_edns(edns);
        others.push(extended);
    }
    others.push(plain);
    let mut seen = std::collections::HashSet::new();
    assert!(
        others
            .iter()
            .all(|message| seen.insert(key(message).expect("ordinary")))
    );
    assert_ne!(
        Key::of(&read(&bytes(&same)), server()),
        Key::of(
            &read(&bytes(&same)),
            "10.9.0.11:53".parse().expect("an address")
        )
    );
}

#[test]
fn only_the_answer_is_accepted() {
    let message = ask("MiXed.test.", RecordType::A);
    let asked = bytes(&message);
    let query = read(&asked);
    let mut right = reply(&ask("mixed.TEST.", RecordType::A), &[60]);
    right.metadata.id = 7;
    let accept =
        |message: &Message| forward::accept(&query, 7, &bytes(message)).map(|answer| answer.bytes);
    let answer = accept(&right).expect("the answer");
    assert_eq!(wire::question(&answer), wire::question(&asked));
    assert_eq!(wire::header(&answer).map(|header| header.id), Some(0x1234));

    let mut other_id = right.clone();
    other_id.metadata.id = 8;
    assert_eq!(accept(&other_id), Err(Unfit::Id));
    let mut a_query = message.clone();
    a_query.metadata.id = 7;
    assert_eq!(accept(&a_query), Err(Unfit::Query));
    for (text, kind) in [
        ("mixed.tesT.", RecordType::AAAA),
        ("mixed.tes.", RecordType::A),
        ("mixed.tess.", RecordType::A),
    ] {
        let mut other = reply(&ask(text, kind), &[60]);
        other.metadata.id = 7;
        assert_eq!(accept(&other), Err(Unfit::Question), "{text}");
    }
    // A server that did not understand the question does not repeat it.
    let mut empty = Message::response(7, OpCode::Query);
    assert_eq!(accept(&empty), Err(Unfit::Question));
    empty.metadata.response_code = ResponseCode::FormErr;
    assert!(accept(&empty).is_ok());
    let whole = bytes(&right);
    for cut in 0..whole.len() {
        assert!(
            forward::accept(&query, 7, &whole[..cut]).is_err(),
            "{cut} bytes"
        );
    }
}

#[test]
fn names_that_are_too_long_or_point_ahead() {
    let header = |questions: u8| [&[1, 2, 1, 0, 0, questions][..], &[0; 6]].concat();
    let message = |name: &[u8]| [&header(1)[..], name, &[0, 1, 0, 1]].concat();
    let label = [&[63][..], &[b'a'; 63]].concat();
    let long = [&label.repeat(4)[..], &[0]].concat();
    for (what, name) in [
        ("255 bytes and more", &long[..]),
        ("to itself", &[0xc0, 12]),
        ("ahead", &[0xc0, 40]),
        ("into the header", &[0xc0, 0]),
        ("an unknown kind of label", &[0x40, 1, 0]),
        ("no end", &[5, b'a']),
    ] {
        let bytes = message(name);
        assert!(wire::question(&bytes).is_err(), "{what}");
        assert!(
            matches!(query::read(&bytes), Received::Malformed(_)),
            "{what}"
        );
    }
    assert!(matches!(query::read(&header(0)), Received::Malformed(_)));
    assert!(matches!(query::read(&header(1)[..11]), Received::Nothing));
    let longest = [&label.repeat(3)[..], &[61], &[b'a'; 61], &[0]].concat();
    assert_eq!(longest.len(), 255);
    assert!(wire::question(&message(&longest)).is_ok());
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = wire::lifetimes(&bytes);
        let _ = wire::question(&bytes);
        if let Received::Query(query) = query::read(&bytes) {
            let _ = query.asked.as_ref().map(super::query::Asked::hostname);
            let _ = Key::of(&query, server());
            let _ = answer::failure(&query, ResponseCode::ServFail);
        }
    }

    #[test]
    fn changed_messages_do_no_harm(at in 0_usize..80, value: u8, ttl: u32, cut in 0_usize..100) {
        let message = ask("some.name.test.", RecordType::A);
        let asked = bytes(&message);
        let query = read(&asked);
        let mut reply = bytes(&negative(&message, ResponseCode::NoError, ttl, 5));
        let length = reply.len();
        reply[at % length] = value;
        reply.truncate(length - cut.min(length));
        if let Ok(answer) = forward::accept(&query, 0x1234, &reply) {
            let mut cache = Cache::new(1);
            let key = Key::of(&query, server()).expect("ordinary");
            cache.put(key.clone(), &answer.bytes, answer.lifetimes, Instant::now());
            cache.get(&key, Instant::now() + Duration::from_secs(3), 512);
        }
    }

    #[test]
    fn what_is_answered_can_be_read(labels in proptest::collection::vec("[a-zA-Z0-9]([a-zA-Z0-9-]{0,18}[a-zA-Z0-9])?", 1..6), edns: bool, a: bool) {
        let text = format!("{}.", labels.join("."));
        let mut message = ask(&text, if a { RecordType::A } else { RecordType::AAAA });
        if edns {
            message.set_edns(Edns::new());
        }
        let asked = bytes(&message);
        let query = read(&asked);
        let question = query.asked.as_ref().expect("a question");
        prop_assert_eq!(question.hostname(), Some(labels.join(".").to_ascii_lowercase()));
        let found = Found { canonical: None, addresses: vec![[10, 0, 0, 1].into()] };
        let answer = answer::found(&query, question, &found, 30, 0, 512).expect("an answer");
        let read = Message::from_vec(&answer).expect("a message");
        prop_assert_eq!(read.answers.len(), usize::from(a));
        prop_assert_eq!(read.edns.is_some(), edns);
        prop_assert_eq!(wire::question(&answer), wire::question(&asked));
        wire::lifetimes(&answer).expect("well-formed");
    }
}

//! From one query to its answer: from the mesh, from the cache, or from the server.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{DNSClass, RecordType},
};

use super::{
    Client, Exchange, Shared, Transport, answer,
    cache::{Cache, Key},
    forward::{self, Way},
    names::{self, Asker},
    query::{self, Query, Received},
    wire,
};
use crate::workload::Workloads;

/// Answers the queries of one pod.
pub struct Resolver {
    shared: Arc<Shared>,
    client: Client,
    cache: RefCell<Cache>,
    in_flight: Cell<usize>,
    /// Counts answers with several addresses, so that each comes first in its turn.
    turn: Cell<usize>,
}

/// What becomes of a query.
pub enum Outcome {
    Answer(Vec<u8>),
    /// It takes time: see [`Resolver::ask`].
    Later(Ticket),
    /// No answer at all.
    Nothing,
}

/// Leave to take time; there are only so many.
pub struct Ticket(Rc<Resolver>);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// Where an answer came from: the label `by` of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Mesh,
    Cache,
    Server,
    /// It is an error of ours.
    Proxy,
}

impl By {
    fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Cache => "cache",
            Self::Server => "server",
            Self::Proxy => "proxy",
        }
    }
}

impl Resolver {
    pub fn new(shared: Arc<Shared>, client: Client) -> Rc<Self> {
        Rc::new(Self {
            cache: RefCell::new(Cache::new(shared.config.cache_size)),
            shared,
            client,
            in_flight: Cell::new(0),
            turn: Cell::new(0),
        })
    }

    /// Answers at once if that can be.
    pub fn answer(self: &Rc<Self>, bytes: &[u8], exchange: &Exchange) -> Outcome {
        let query = match query::read(bytes) {
            Received::Query(query) => query,
            Received::Malformed(header) => {
                self.count(exchange, By::Proxy, "malformed");
                return Outcome::Answer(answer::malformed(&header));
            }
            Received::Nothing => {
                self.count(exchange, By::Proxy, "not_a_query");
                return Outcome::Nothing;
            }
        };
        // Without complete data, a name of the mesh would be taken for one of outside.
        if let Some(workloads) = self.shared.workloads.snapshot()
            && let Some(answer) = self.known(&workloads, &query, exchange)
        {
            return Outcome::Answer(answer);
        }
        if self.in_flight.get() >= self.shared.config.max_in_flight_per_pod {
            return self.failed(&query, exchange, "pod_query_limit");
        }
        self.in_flight.set(self.in_flight.get() + 1);
        Outcome::Later(Ticket(self.clone()))
    }

    /// The answer that takes time; `None`: there is none that could be written.
    pub async fn ask(&self, _: Ticket, bytes: &[u8], exchange: &Exchange) -> Option<Vec<u8>> {
        let Received::Query(query) = query::read(bytes) else {
            return None;
        };
        let shared = &self.shared;
        let failed = |reason| match self.failed(&query, exchange, reason) {
            Outcome::Answer(answer) => Some(answer),
            _ => None,
        };
        if shared.workloads.snapshot().is_none() {
            let Some(workloads) = shared.workloads.wait_ready(shared.config.timeout).await else {
                return failed("workloads_not_ready");
            };
            if let Some(answer) = self.known(&workloads, &query, exchange) {
                return Some(answer);
            }
        }
        let Some(server) = exchange.server else {
            return failed("no_original_destination");
        };
        let source = exchange.client.ip();
        let way = Way {
            netns: &self.client.netns,
            source: self.client.ips.contains(&source).then_some(source),
            mark: self.client.mark,
            limit: shared.config.timeout,
        };
        let asked = match exchange.transport {
            Transport::Udp => forward::by_udp(&way, server, &query).await,
            Transport::Tcp => forward::by_tcp(&way, server, &query).await,
        };
        match asked {
            Ok(found) => {
                if let Some(key) = Key::of(&query, server) {
                    let mut cache = self.cache.borrow_mut();
                    cache.put(key, &found.bytes, found.lifetimes, Instant::now());
                }
                self.answered(&query, exchange, By::Server, &found.bytes);
                Some(found.bytes)
            }
            Err(error) => {
                tracing::debug!(target: "redirect::dns", pod = %self.client.pod, %error, "no answer");
                failed(error.reason())
            }
        }
    }

    /// The answer from what is known here.
    fn known(
        &self,
        workloads: &Workloads,
        query: &Query<'_>,
        exchange: &Exchange,
    ) -> Option<Vec<u8>> {
        let limit = match exchange.transport {
            Transport::Udp => query.max_datagram(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        if let Some(answer) = self.of_the_mesh(workloads, query, limit) {
            self.answered(query, exchange, By::Mesh, &answer);
            return Some(answer);
        }
        let key = Key::of(query, exchange.server?)?;
        let mut answer = self.cache.borrow().get(&key, Instant::now(), limit)?;
        wire::readdress(&mut answer, query.header.id, query.question);
        self.answered(query, exchange, By::Cache, &answer);
        Some(answer)
    }

    fn of_the_mesh(
        &self,
        workloads: &Workloads,
        query: &Query<'_>,
        limit: usize,
    ) -> Option<Vec<u8>> {
        let asked = query.asked.as_ref().filter(|_| query.is_ordinary())?;
        let has_addresses = matches!(asked.record_type, RecordType::A | RecordType::AAAA);
        if !has_addresses || asked.class != DNSClass::IN {
            return None;
        }
        let asker = Asker {
            namespace: &self.client.namespace,
            network: &self.shared.network,
            domain: &self.shared.config.domain,
        };
        let found = names::look_up(workloads, &asker, &asked.hostname()?)?;
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let ttl = u32::try_from(self.shared.config.ttl.as_secs()).unwrap_or(u32::MAX);
        answer::found(query, asked, &found, ttl, turn, limit)
    }

    /// Counts what was not taken for a query of the pod.
    pub fn refused(&self, transport: Transport, reason: &'static str) {
        let metrics = &self.shared.metrics;
        metrics.dns_query(transport.name(), By::Proxy.name(), reason);
    }

    fn failed(&self, query: &Query<'_>, exchange: &Exchange, reason: &'static str) -> Outcome {
        self.count(exchange, By::Proxy, reason);
        let answer = answer::failure(query, ResponseCode::ServFail);
        if let Some(answer) = &answer {
            self.log(query, exchange, By::Proxy, answer);
        }
        answer.map_or(Outcome::Nothing, Outcome::Answer)
    }

    fn answered(&self, query: &Query<'_>, exchange: &Exchange, by: By, answer: &[u8]) {
        self.count(exchange, by, "answered");
        self.log(query, exchange, by, answer);
    }

    fn count(&self, exchange: &Exchange, by: By, result: &'static str) {
        let transport = exchange.transport.name();
        self.shared.metrics.dns_query(transport, by.name(), result);
    }

    fn log(&self, query: &Query<'_>, exchange: &Exchange, by: By, answer: &[u8]) {
        if !tracing::enabled!(target: "redirect::dns", tracing::Level::DEBUG) {
            return;
        }
        let asked = query.asked.as_ref();
        let name = asked.map(|asked| asked.name.to_ascii()).unwrap_or_default();
        let kind = asked
            .map(|asked| asked.record_type.to_string())
            .unwrap_or_default();
        let header = wire::header(answer);
        tracing::debug!(
            target: "redirect::dns",
            pod = %self.client.pod,
            client = %exchange.client,
            server = exchange.server.map(tracing::field::display),
            transport = exchange.transport.name(),
            name,
            kind,
            by = by.name(),
            rcode = header.map(|header| header.rcode()),
            answers = header.map(|header| header.counts[1]),
            "query"
        );
    }
}

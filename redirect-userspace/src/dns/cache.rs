//! Answers of servers, kept for as long as they say. Pure: time is an argument.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    query::Query,
    wire::{self, Lifetimes},
};

/// Longer than this no answer is kept, whatever it says.
const LONGEST: Duration = Duration::from_secs(3600);
/// Bigger answers are not kept, so that the bound on their number bounds the memory.
const BIGGEST: usize = 4096;

/// Whose answer to what. A question in another way (with DNSSEC, without recursion) has other answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    server: SocketAddr,
    /// In lower case.
    question: Box<[u8]>,
    flags: u16,
    dnssec_ok: Option<bool>,
}

impl Key {
    /// `None`: the answer is for the one who asks alone.
    pub fn of(query: &Query<'_>, server: SocketAddr) -> Option<Self> {
        /// Recursion desired, authentic data, checking disabled.
        const ASKED_FOR: u16 = 1 << 8 | 1 << 5 | 1 << 4;
        let [1, 0, 0, additionals] = query.header.counts else {
            return None;
        };
        let only_edns = additionals == u16::from(query.edns.is_some());
        if !query.is_ordinary() || !only_edns || query.edns.is_some_and(|edns| edns.has_options) {
            return None;
        }
        let mut question: Box<[u8]> = query.question?.into();
        // Not type and class, some values of which look like letters.
        let name = question.len().checked_sub(4)?;
        question[..name].make_ascii_lowercase();
        Some(Self {
            server,
            question,
            flags: query.header.flags & ASKED_FOR,
            dnssec_ok: query.edns.map(|edns| edns.dnssec_ok),
        })
    }
}

struct Entry {
    answer: Box<[u8]>,
    ttls: Box<[u16]>,
    stored: Instant,
    /// Where it stands in the order of ends.
    end: (Instant, u64),
}

/// Of one pod.
pub struct Cache {
    entries: HashMap<Key, Entry>,
    /// The next to end first.
    ends: BTreeMap<(Instant, u64), Key>,
    limit: usize,
    count: u64,
}

impl Cache {
    /// Keeps at most `limit` answers; 0 keeps none.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            ends: BTreeMap::new(),
            limit,
            count: 0,
        }
    }

    /// An answer as it is at the time `now`, if there is one that still holds, of at most `limit` bytes.
    pub fn get(&self, key: &Key, now: Instant, limit: usize) -> Option<Vec<u8>> {
        let entry = self.entries.get(key)?;
        if entry.end.0 <= now || entry.answer.len() > limit {
            return None;
        }
        let mut answer = entry.answer.to_vec();
        let passed = now.saturating_duration_since(entry.stored).as_secs();
        wire::age(
            &mut answer,
            &entry.ttls,
            u32::try_from(passed).unwrap_or(u32::MAX),
        );
        Some(answer)
    }

    /// Keeps a well-formed answer, if it may be kept.
    pub fn put(&mut self, key: Key, answer: &[u8], lifetimes: Lifetimes, now: Instant) {
        let Some(lifetime) = lifetime(answer, &lifetimes) else {
            return;
        };
        if self.limit == 0 || answer.len() > BIGGEST {
            return;
        }
        self.remove(&key);
        if self.entries.len() >= self.limit
            && let Some((_, next)) = self.ends.pop_first()
        {
            self.entries.remove(&next);
        }
        self.count += 1;
        let end = (now + lifetime, self.count);
        self.ends.insert(end, key.clone());
        let entry = Entry {
            answer: answer.into(),
            ttls: lifetimes.ttls.into(),
            stored: now,
            end,
        };
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(old) = self.entries.remove(key) {
            self.ends.remove(&old.end);
        }
    }
}

/// For how long an answer may be kept; `None`: not at all.
fn lifetime(answer: &[u8], lifetimes: &Lifetimes) -> Option<Duration> {
    let header = wire::header(answer)?;
    if header.is_truncated() {
        return None;
    }
    let seconds = match (header.rcode(), header.counts[1]) {
        (wire::NX_DOMAIN, _) | (wire::NO_ERROR, 0) => lifetimes.negative?.min(lifetimes.least?),
        (wire::NO_ERROR, _) => lifetimes.least?,
        _ => return None,
    };
    let lifetime = Duration::from_secs(seconds.into()).min(LONGEST);
    (!lifetime.is_zero()).then_some(lifetime)
}

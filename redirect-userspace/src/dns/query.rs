//! What an app asks: the parts of its message that decide what becomes of it. Pure.

use hickory_proto::{
    op::{Message, OpCode},
    rr::{DNSClass, Name, RecordType},
};

use super::wire::{self, Header};

/// What came to the server's port.
pub enum Received<'a> {
    Query(Query<'a>),
    /// To be answered with an error.
    Malformed(Header),
    /// Not a query at all: an answer to it could meet somebody else, or go back and forth.
    Nothing,
}

/// One query.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    pub bytes: &'a [u8],
    pub header: Header,
    /// Name, type and class as they lie in the message; `None` for the few kinds of messages that ask no question.
    pub question: Option<&'a [u8]>,
    pub asked: Option<Asked>,
    pub edns: Option<Edns>,
}

/// The question in our words.
#[derive(Clone, Debug)]
pub struct Asked {
    pub name: Name,
    pub record_type: RecordType,
    pub class: DNSClass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edns {
    pub max_payload: u16,
    pub dnssec_ok: bool,
    /// Something in it is between this client and its server alone.
    pub has_options: bool,
}

impl Query<'_> {
    /// The most bytes that an answer by UDP may have (RFC 6891, section 6.2.3).
    pub fn max_datagram(&self) -> usize {
        const PLAIN: u16 = 512;
        let payload = self.edns.map_or(PLAIN, |edns| edns.max_payload);
        usize::from(payload.max(PLAIN))
    }

    pub fn is_ordinary(&self) -> bool {
        self.header.opcode() == u8::from(OpCode::Query)
    }
}

/// Reads a message that came to the server's port.
pub fn read(bytes: &[u8]) -> Received<'_> {
    let Some(header) = wire::header(bytes) else {
        return Received::Nothing;
    };
    if header.is_response() {
        return Received::Nothing;
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Received::Malformed(header);
    };
    let question = match header.counts[0] {
        0 => None,
        _ => match wire::question(bytes) {
            Ok(question) => Some(question),
            Err(_) => return Received::Malformed(header),
        },
    };
    let query = Query {
        bytes,
        header,
        question,
        asked: message.queries.into_iter().next().map(|asked| Asked {
            name: asked.name,
            record_type: asked.query_type,
            class: asked.query_class,
        }),
        edns: message.edns.map(|edns| Edns {
            max_payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
            has_options: !edns.options().as_ref().is_empty(),
        }),
    };
    // An ordinary query has one question (RFC 9619).
    if query.is_ordinary() && query.question.is_none() {
        return Received::Malformed(header);
    }
    Received::Query(query)
}

impl Asked {
    /// The name as host names are written: in lower case, without the last dot. `None` if it cannot be one.
    pub fn hostname(&self) -> Option<String> {
        let mut text = String::with_capacity(self.name.len());
        for label in self.name.iter() {
            let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            if !label.iter().all(fits) {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(
                label
                    .iter()
                    .map(|byte| char::from(byte.to_ascii_lowercase())),
            );
        }
        (!text.is_empty()).then_some(text)
    }
}

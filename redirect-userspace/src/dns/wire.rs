//! The bytes of a DNS message (RFC 1035, section 4), as far as passing it on needs: what is not changed is not re-encoded.

/// Id, flags and four counts.
pub const HEADER: usize = 12;

const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;

const QR: u16 = 1 << 15;
const TC: u16 = 1 << 9;

pub const NO_ERROR: u8 = 0;
pub const NX_DOMAIN: u8 = 3;

/// The bytes are not a DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a DNS message: {0}")]
pub struct Malformed(&'static str);

/// What is in front of each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: u16,
    pub flags: u16,
    /// Questions, answers, authorities, additionals.
    pub counts: [u16; 4],
}

impl Header {
    pub fn is_response(&self) -> bool {
        self.flags & QR != 0
    }

    pub fn is_truncated(&self) -> bool {
        self.flags & TC != 0
    }

    pub fn opcode(&self) -> u8 {
        (self.flags >> 11 & 0xf) as u8
    }

    pub fn rcode(&self) -> u8 {
        (self.flags & 0xf) as u8
    }
}

/// `None`: shorter than a header.
pub fn header(message: &[u8]) -> Option<Header> {
    let word = |at: usize| {
        Some(u16::from_be_bytes(
            message.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    Some(Header {
        id: word(0)?,
        flags: word(2)?,
        counts: [word(4)?, word(6)?, word(8)?, word(10)?],
    })
}

/// Name, type and class of the only question.
pub fn question(message: &[u8]) -> Result<&[u8], Malformed> {
    let header = header(message).ok_or(Malformed("shorter than a header"))?;
    if header.counts[0] != 1 {
        return Err(Malformed("not one question"));
    }
    let mut reader = Reader {
        message,
        at: HEADER,
    };
    // Nothing stands before the first name that it could point to.
    reader.skip_name(false)?;
    reader.skip(4)?;
    Ok(&message[HEADER..reader.at])
}

/// Whether two questions ask the same: case does not count in names (RFC 4343), and in type and class it cannot matter, for
/// both were read to have the same lengths of labels.
pub fn same_question(a: &[u8], b: &[u8]) -> bool {
    let split = |question: &[u8]| question.len().checked_sub(4);
    match (split(a), split(b)) {
        (Some(x), Some(y)) => x == y && a[..x].eq_ignore_ascii_case(&b[..y]) && a[x..] == b[y..],
        _ => false,
    }
}

/// What a server's answer says of how long it may be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Where the times to live stand.
    pub ttls: Vec<u16>,
    /// The least of them, in seconds.
    pub least: Option<u32>,
    /// For how long it holds that there is nothing (RFC 2308, section 5).
    pub negative: Option<u32>,
}

/// Reads all records; fails if they are not there as the header counts them, or point beyond themselves.
pub fn lifetimes(message: &[u8]) -> Result<Lifetimes, Malformed> {
    let header = header(message).ok_or(Malformed("shorter than a header"))?;
    let mut reader = Reader {
        message,
        at: HEADER,
    };
    for _ in 0..header.counts[0] {
        reader.skip_name(true)?;
        reader.skip(4)?;
    }
    let mut found = Lifetimes::default();
    for (section, count) in header.counts.iter().enumerate().skip(1) {
        for _ in 0..*count {
            reader.record(section, &mut found)?;
        }
    }
    Ok(found)
}

/// Where reading is.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn record(&mut self, section: usize, found: &mut Lifetimes) -> Result<(), Malformed> {
        const AUTHORITIES: usize = 2;
        self.skip_name(true)?;
        let kind = self.u16()?;
        self.skip(2)?;
        let ttl_at = self.at;
        let ttl = self.u32()?;
        let length = usize::from(self.u16()?);
        let data = self.at;
        self.skip(length)?;
        // What stands in the place of this one's is flags.
        if kind == TYPE_OPT {
            return Ok(());
        }
        // A set top bit is to be read as zero (RFC 2181, section 8).
        let ttl = if ttl >> 31 == 1 { 0 } else { ttl };
        found
            .ttls
            .push(u16::try_from(ttl_at).map_err(|_| Malformed("longer than 64 KiB"))?);
        found.least = Some(found.least.map_or(ttl, |least| least.min(ttl)));
        if kind == TYPE_SOA && section == AUTHORITIES && length >= 4 {
            let minimum = Reader {
                message: self.message,
                at: data + length - 4,
            }
            .u32()?;
            found.negative = Some(ttl.min(minimum));
        }
        Ok(())
    }

    fn skip_name(&mut self, may_point: bool) -> Result<(), Malformed> {
        const POINTER: u8 = 0xc0;
        const LONGEST: usize = 255;
        let start = self.at;
        loop {
            let length = self.u8()?;
            match length {
                0 => break,
                1..=63 => self.skip(length.into())?,
                _ if length & POINTER == POINTER && may_point => {
                    let target = usize::from(length & !POINTER) << 8 | usize::from(self.u8()?);
                    // Forward pointers and those to themselves make loops.
                    if target >= start {
                        return Err(Malformed("a name points forward"));
                    }
                    break;
                }
                _ => return Err(Malformed("a label of an unknown kind")),
            }
            if self.at - start > LONGEST {
                return Err(Malformed("a name of over 255 bytes"));
            }
        }
        match self.at - start > LONGEST {
            true => Err(Malformed("a name of over 255 bytes")),
            false => Ok(()),
        }
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.take(bytes).map(drop)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn take(&mut self, bytes: usize) -> Result<&[u8], Malformed> {
        let end = self.at + bytes;
        let taken = self
            .message
            .get(self.at..end)
            .ok_or(Malformed("it ends too early"))?;
        self.at = end;
        Ok(taken)
    }
}

/// Makes an answer that of another query: its id, and the name as it was spelled there.
pub fn readdress(answer: &mut [u8], id: u16, question: Option<&[u8]>) {
    answer[..2].copy_from_slice(&id.to_be_bytes());
    if let Some(question) = question
        && let Some(place) = answer.get_mut(HEADER..HEADER + question.len())
    {
        place.copy_from_slice(question);
    }
}

/// Lets `seconds` pass for all records of an answer.
pub fn age(answer: &mut [u8], ttls: &[u16], seconds: u32) {
    for at in ttls {
        let at = usize::from(*at);
        if let Some(place) = answer.get_mut(at..at + 4) {
            let ttl = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
            place.copy_from_slice(&ttl.saturating_sub(seconds).to_be_bytes());
        }
    }
}

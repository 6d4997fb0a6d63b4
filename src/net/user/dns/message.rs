//! DNS messages (RFC 1035): what a query asks, what an answer tells, and answers of our own.

use std::net::IpAddr;

use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData};

/// Bytes of the header.
const HEADER: usize = 12;
/// Bytes after the name of a question: its type and class.
const QUESTION_END: usize = 4;
/// Longest name with its dots.
const MAX_NAME: usize = 255;
/// A name that is the question's, which begins after the header (section 4.1.4).
const SAME_NAME: [u8; 2] = [0xc0, HEADER as u8];
const CLASS_IN: u16 = 1;
/// Seconds for which answers of our own are good.
const TTL: u32 = 60;
/// Most records of an answer that are read.
const MOST_RECORDS: u16 = 256;

/// A query of the guest's, as it came.
pub(super) struct Query {
    pub id: u16,
    /// In lower case, with dots in between; empty for the root.
    pub name: String,
    pub kind: DnsQueryType,
    /// The header's flags that an answer repeats.
    flags: DnsFlags,
    /// The question as it stands in the message.
    question: Vec<u8>,
}

/// Why a query is not one that can be passed on.
pub(super) enum Bad {
    /// Not even an answer can be made.
    NoQuery,
    /// This is the answer.
    Answer(Vec<u8>),
}

/// Takes a query apart.
pub(super) fn query(message: &[u8]) -> Result<Query, Bad> {
    let packet = DnsPacket::new_checked(message).map_err(|_| Bad::NoQuery)?;
    if packet.flags().contains(DnsFlags::RESPONSE) {
        return Err(Bad::NoQuery);
    }
    let refuse = |rcode| Bad::Answer(header(packet.transaction_id(), packet.flags(), rcode, 0, 0));
    if packet.opcode() != DnsOpcode::Query || packet.question_count() != 1 {
        return Err(refuse(DnsRcode::NotImp));
    }
    let (_, question) = DnsQuestion::parse(packet.payload()).map_err(|_| refuse(DnsRcode::FormErr))?;
    let name = name(&packet, question.name).ok_or_else(|| refuse(DnsRcode::FormErr))?;
    let end = HEADER + question.name.len() + QUESTION_END;
    Ok(Query {
        id: packet.transaction_id(),
        name,
        kind: question.type_,
        flags: packet.flags(),
        question: message.get(HEADER..end).unwrap_or_default().to_vec(),
    })
}

/// The name whose encoding `bytes` begin with. Bytes that names of hosts do not have become question marks.
fn name(packet: &DnsPacket<&[u8]>, bytes: &[u8]) -> Option<String> {
    let mut name = String::new();
    for label in packet.parse_name(bytes) {
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label.ok()? {
            let plain = byte.is_ascii_graphic() && *byte != b'.';
            name.push(if plain { byte.to_ascii_lowercase().into() } else { '?' });
        }
        if name.len() > MAX_NAME {
            return None;
        }
    }
    Some(name)
}

impl Query {
    /// An answer with addresses, those of the kind asked for. There may be none.
    pub(super) fn addresses(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let fitting = addresses.iter().filter_map(|address| match (address, self.kind) {
            (IpAddr::V4(v4), DnsQueryType::A) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), DnsQueryType::Aaaa) => Some(v6.octets().to_vec()),
            _ => None,
        });
        let records: Vec<Vec<u8>> = fitting.take(usize::from(u8::MAX)).collect();
        let mut message = header(self.id, self.flags, DnsRcode::NoError, 1, records.len() as u16);
        message.extend(&self.question);
        for data in records {
            message.extend(SAME_NAME);
            message.extend(u16::from(self.kind).to_be_bytes());
            message.extend(CLASS_IN.to_be_bytes());
            message.extend(TTL.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        message
    }

    /// An answer without any.
    pub(super) fn refusal(&self, rcode: DnsRcode) -> Vec<u8> {
        let mut message = header(self.id, self.flags, rcode, 1, 0);
        message.extend(&self.question);
        message
    }

    /// Whether `message`, which came with the identifier `id`, answers this query. Then it gets the guest's identifier.
    pub(super) fn accept(&self, message: &mut [u8], id: u16) -> bool {
        let Ok(packet) = DnsPacket::new_checked(&*message) else { return false };
        // A server that does not understand a query may leave the question out.
        let question = match packet.question_count() {
            0 => packet.rcode() != DnsRcode::NoError,
            1 => packet.payload().get(..self.question.len()).is_some_and(|q| q.eq_ignore_ascii_case(&self.question)),
            _ => false,
        };
        let answers = packet.transaction_id() == id && packet.flags().contains(DnsFlags::RESPONSE) && question;
        if answers {
            set_id(message, self.id);
        }
        answers
    }
}

/// Writes an identifier into a message.
pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(field) = message.get_mut(..2) {
        field.copy_from_slice(&id.to_be_bytes());
    }
}

/// The addresses in an answer.
pub(super) fn answered(message: &[u8]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let Ok(packet) = DnsPacket::new_checked(message) else { return addresses };
    let Ok((mut rest, _)) = DnsQuestion::parse(packet.payload()) else { return addresses };
    for _ in 0..packet.answer_record_count().min(MOST_RECORDS) {
        let Ok((after, record)) = DnsRecord::parse(rest) else { break };
        rest = after;
        match record.data {
            DnsRecordData::A(v4) => addresses.push(v4.into()),
            DnsRecordData::Aaaa(v6) => addresses.push(v6.into()),
            _ => {}
        }
    }
    addresses
}

fn header(id: u16, flags: DnsFlags, rcode: DnsRcode, questions: u16, answers: u16) -> Vec<u8> {
    let kept = flags & (DnsFlags::RECURSION_DESIRED | DnsFlags::CHECK_DISABLED);
    let flags = (kept | DnsFlags::RESPONSE | DnsFlags::RECURSION_AVAILABLE).bits() | u16::from(u8::from(rcode));
    [id, flags, questions, answers, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[cfg(test)]
pub(in crate::net::user) mod tests {
    use super::*;

    /// A query for `name`.
    pub(in crate::net::user) fn ask(id: u16, name: &str, kind: u16) -> Vec<u8> {
        let mut message: Vec<u8> = [id, 0x100, 1, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.extend([0, (kind >> 8) as u8, kind as u8, 0, 1]);
        message
    }

    #[test]
    fn queries_are_read_and_answered() {
        let Ok(query) = query(&ask(7, "Example.ORG", 1)) else { panic!("it is one") };
        assert_eq!((query.id, query.name.as_str(), query.kind), (7, "example.org", DnsQueryType::A));
        let list = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let mut answer = query.addresses(&list);
        assert_eq!(answered(&answer), [list[0], list[2]]);
        assert!(!query.accept(&mut answer, 8));
        assert!(query.accept(&mut answer, 7));
        assert_eq!(&answer[..4], [0, 7, 0x81, 0x80]);
        let refusal = query.refusal(DnsRcode::ServFail);
        assert_eq!((refusal[3] & 15, answered(&refusal).len()), (2, 0));
    }

    #[test]
    fn answers_of_others_are_not_accepted() {
        let Ok(asked) = query(&ask(7, "a.example", 1)) else { panic!("it is one") };
        let Ok(other) = query(&ask(7, "b.example", 1)) else { panic!("it is one") };
        assert!(!asked.accept(&mut other.addresses(&[]), 7), "another name");
        assert!(!asked.accept(&mut ask(7, "a.example", 1), 7), "no answer");
        assert!(!asked.accept(&mut [0; 5], 7));
    }

    #[test]
    fn what_is_no_query_is_answered_if_it_can_be() {
        assert!(matches!(query(&[0; 5]), Err(Bad::NoQuery)));
        let mut message = ask(9, "a.b", 1);
        message[2] |= 0x80;
        assert!(matches!(query(&message), Err(Bad::NoQuery)));
        for (at, value, rcode) in [(5, 2, 4), (2, 0x29, 4), (12, 0xc0, 1), (12, 99, 1)] {
            let mut message = ask(9, "a.b", 1);
            message[at] = value;
            match query(&message) {
                Err(Bad::Answer(answer)) => assert_eq!((answer[1], answer[3] & 15), (9, rcode), "{at}"),
                _ => panic!("{at}"),
            }
        }
    }
}

//! The DNS relay: answers for names that the host knows by itself, and asks the host's resolvers for all others.
//!
//! ```text
//!   guest --UDP--> 10.0.2.3:53 --> names   --> exchange --UDP--> a resolver of the host
//!   guest --TCP--> (a connection like any other, whose host end is a pair of sockets) --> exchange --TCP--> resolver
//! ```
//!
//! Each question goes out with an identifier and a port of its own. With rules the relay only answers for names that they
//! permit, and tells them the addresses that it gave.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::wire::DnsRcode;

use super::context::Context;
use super::counters::count;
use super::poller::Source;
use super::udp::{self, Ends};

mod exchange;
pub(super) mod message;
mod names;

use exchange::{Exchange, Progress, framed, unframe};
use message::{Bad, Query};
use names::Names;

/// Most questions under way, and connections of the guest's with the relay.
const MOST_PENDING: usize = 256;
const MOST_CLIENTS: usize = 64;
/// How long resolvers have altogether: less than the patience of programs (5 s, resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a connection with the relay may be still.
const IDLE: Duration = Duration::from_secs(30);
/// Messages of one resolver that are no answer, before it is given up.
const MOST_STRAY: u32 = 16;
/// Bytes that wait for a guest that does not read its answers.
const MOST_OUTPUT: usize = 1 << 20;

/// To whom an answer goes.
#[derive(Clone, Copy)]
enum Asker {
    Datagram(Ends),
    Stream(u64),
}

struct Pending {
    query: Query,
    /// The query as it goes out.
    message: Vec<u8>,
    /// The identifier in it.
    id: u16,
    asker: Asker,
    exchange: Exchange,
    stray: u32,
    /// Resolvers that were not asked yet.
    others: Vec<SocketAddr>,
    /// When the present one is given up, and after how long the next ones are.
    until: Instant,
    share: Duration,
}

/// A connection of the guest's with the relay: our end.
struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    pending: usize,
    ended: bool,
    last: Instant,
}

/// The relay.
pub(super) struct Dns {
    names: Names,
    resolver: Option<SocketAddr>,
    pending: HashMap<u64, Pending>,
    clients: HashMap<u64, Client>,
    /// Clients whose answer came, and who may have asked for more meanwhile.
    woken: Vec<u64>,
    next: u64,
}

impl Dns {
    /// A relay that asks `resolver`, or else those of the host.
    pub(super) fn new(resolver: Option<SocketAddr>) -> Self {
        let (pending, clients) = (HashMap::new(), HashMap::new());
        Self { names: Names::of_host(), resolver, pending, clients, woken: Vec::new(), next: 0 }
    }

    /// The guest asks by UDP.
    pub(super) fn datagram(&mut self, context: &mut Context, ends: Ends, message: &[u8]) {
        self.ask(context, Asker::Datagram(ends), message);
    }

    /// The guest connects with the relay: the end of the connection that its bytes go to.
    pub(super) fn connect(&mut self, context: &Context) -> Result<OwnedFd, Errno> {
        if self.clients.len() >= MOST_CLIENTS {
            return Err(Errno::CONNREFUSED);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let id = self.next;
        context.poller.watch(&socket, Source::DnsClient(id)).map_err(|_| Errno::NOMEM)?;
        self.next += 1;
        let (input, output) = (Vec::new(), Vec::new());
        self.clients.insert(id, Client { socket, input, output, pending: 0, ended: false, last: context.now });
        Ok(theirs)
    }

    fn ask(&mut self, context: &mut Context, asker: Asker, message: &[u8]) {
        count(&context.counters.dns_queries);
        let query = match message::query(message) {
            Ok(query) => query,
            Err(Bad::Answer(answer)) => return self.answer(context, asker, &answer),
            Err(Bad::NoQuery) => return,
        };
        let local = self.names.find(&query.name);
        let own = super::rules::HOST_NAMES.contains(&query.name.as_str());
        if !own && !context.rules.permits_name(&query.name) {
            context.counters.deny(format!("name {}", query.name));
            return self.answer(context, asker, &query.refusal(DnsRcode::Refused));
        }
        if let Some(addresses) = local {
            addresses.iter().for_each(|address| context.rules.learn(&query.name, *address));
            return self.answer(context, asker, &query.addresses(&addresses));
        }
        self.pass_on(context, asker, query, message);
    }

    fn pass_on(&mut self, context: &mut Context, asker: Asker, query: Query, message: &[u8]) {
        let mut resolvers = self.resolver.map_or_else(|| self.names.resolvers(), |resolver| vec![resolver]);
        resolvers.reverse();
        let share = PATIENCE / u32::try_from(resolvers.len().max(1)).unwrap_or(1);
        let mut message = message.to_vec();
        let mut id = [0; 2];
        // Without random bytes the guest's identifier goes out as it is.
        let id = getrandom(&mut id, GetRandomFlags::empty()).map_or(query.id, |_| u16::from_ne_bytes(id));
        message::set_id(&mut message, id);
        let exchange = match self.pending.len() < MOST_PENDING {
            true => next_exchange(&mut resolvers, &message, asker),
            false => None,
        };
        let Some(exchange) = exchange else {
            return self.answer(context, asker, &query.refusal(DnsRcode::ServFail));
        };
        let until = context.now + share;
        if let Asker::Stream(client) = asker
            && let Some(client) = self.clients.get_mut(&client)
        {
            client.pending += 1;
        }
        let pending = Pending { query, message, id, asker, exchange, stray: 0, others: resolvers, until, share };
        let number = self.next;
        self.next += 1;
        let watched = context.poller.watch(pending.exchange.socket(), Source::Query(number));
        self.pending.insert(number, pending);
        context.alarm.set(share);
        if watched.is_err() {
            self.give_up(context, number);
        } else {
            self.advance(context, number);
        }
    }

    /// The socket of a question became ready.
    pub(super) fn ready(&mut self, context: &mut Context, number: u64) {
        self.advance(context, number);
        self.serve_woken(context);
    }

    fn advance(&mut self, context: &mut Context, number: u64) {
        loop {
            let Some(pending) = self.pending.get_mut(&number) else { return };
            match pending.exchange.advance() {
                Progress::Waiting => return,
                Progress::Failed => return self.try_next(context, number),
                Progress::Message(mut message) => {
                    if pending.query.accept(&mut message, pending.id) {
                        return self.done(context, number, &message);
                    }
                    pending.stray += 1;
                    if pending.stray > MOST_STRAY {
                        return self.try_next(context, number);
                    }
                }
            }
        }
    }

    fn try_next(&mut self, context: &mut Context, number: u64) {
        let Some(pending) = self.pending.get_mut(&number) else { return };
        let Some(exchange) = next_exchange(&mut pending.others, &pending.message, pending.asker) else {
            return self.give_up(context, number);
        };
        let watched = context.poller.watch(exchange.socket(), Source::Query(number));
        (pending.exchange, pending.stray, pending.until) = (exchange, 0, context.now + pending.share);
        context.alarm.set(pending.share);
        if watched.is_err() {
            self.give_up(context, number);
        }
    }

    fn give_up(&mut self, context: &mut Context, number: u64) {
        let Some(pending) = self.pending.get(&number) else { return };
        let refusal = pending.query.refusal(DnsRcode::ServFail);
        self.done(context, number, &refusal);
    }

    fn done(&mut self, context: &mut Context, number: u64, message: &[u8]) {
        let Some(pending) = self.pending.remove(&number) else { return };
        message::answered(message).into_iter().for_each(|address| context.rules.learn(&pending.query.name, address));
        if let Asker::Stream(client) = pending.asker
            && let Some(client) = self.clients.get_mut(&client)
        {
            client.pending = client.pending.saturating_sub(1);
        }
        self.answer(context, pending.asker, message);
        if let Asker::Stream(client) = pending.asker {
            self.woken.push(client);
        }
    }

    fn answer(&mut self, context: &mut Context, asker: Asker, message: &[u8]) {
        match asker {
            Asker::Datagram(ends) => {
                let frame = udp::datagram_frame(context, ends.outside, ends.guest, message);
                context.send(frame);
            }
            Asker::Stream(id) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.output.extend(framed(message));
                    client.flush();
                }
            }
        }
    }

    /// The guest has sent to the relay by TCP, or reads again.
    pub(super) fn client_ready(&mut self, context: &mut Context, id: u64) {
        self.woken.push(id);
        self.serve_woken(context);
    }

    fn serve_woken(&mut self, context: &mut Context) {
        while let Some(id) = self.woken.pop() {
            self.serve(context, id);
        }
    }

    fn serve(&mut self, context: &mut Context, id: u64) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            client.last = context.now;
            client.flush();
            client.read();
            // One after the other: a guest that asks and does not read has to wait.
            if client.pending == 0
                && client.output.len() < MOST_OUTPUT
                && let Some(message) = unframe(&mut client.input)
            {
                self.ask(context, Asker::Stream(id), &message);
                continue;
            }
            if client.is_over() {
                self.clients.remove(&id);
            }
            return;
        }
    }

    /// Gives up resolvers and connections that take too long.
    pub(super) fn expire(&mut self, context: &mut Context) {
        let now = context.now;
        let late = self.pending.iter().filter(|(_, pending)| now >= pending.until).map(|(number, _)| *number);
        for number in late.collect::<Vec<_>>() {
            self.try_next(context, number);
        }
        self.clients.retain(|_, client| client.pending > 0 || now < client.last + IDLE);
        self.serve_woken(context);
    }

    /// When [`Dns::expire`] has something to do.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let queries = self.pending.values().map(|pending| pending.until);
        let still = self.clients.values().filter(|client| client.pending == 0).map(|client| client.last + IDLE);
        queries.chain(still).min()
    }
}

impl Client {
    fn flush(&mut self) {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(len) => drop(self.output.drain(..len.min(self.output.len()))),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.output.clear();
                    self.ended = true;
                }
            }
        }
    }

    fn read(&mut self) {
        let mut room = [0; 4096];
        // What does not fit in yet stays in the socket.
        while !self.ended && self.input.len() <= 2 * exchange::MAX_MESSAGE {
            match rustix::io::read(&self.socket, &mut room) {
                Ok(0) => self.ended = true,
                Ok(len) => self.input.extend(room.get(..len).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.ended = true,
            }
        }
    }

    fn is_over(&self) -> bool {
        self.ended && self.pending == 0 && self.output.is_empty()
    }
}

/// A question to the last of `resolvers`, or to the one before if that cannot even be asked.
fn next_exchange(resolvers: &mut Vec<SocketAddr>, message: &[u8], asker: Asker) -> Option<Exchange> {
    while let Some(resolver) = resolvers.pop() {
        if let Ok(exchange) = Exchange::new(resolver, message, matches!(asker, Asker::Stream(_))) {
            return Some(exchange);
        }
    }
    None
}

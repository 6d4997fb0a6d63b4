//! Guests that do not keep to the protocol.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{LONG, deadline};
use crate::agent::protocol::frame::{MAGIC, put_data};
use crate::agent::protocol::{Frame, Message, Stream, VERSION, WINDOW};
use crate::agent::{Agent, Error, Exec, Io, Outcome, Ready};

/// The guest's side, in the hands of the test.
struct Guest(UnixStream);

impl Guest {
    fn say(&mut self, session: u32, message: Message) {
        let mut bytes = Vec::new();
        Frame::new(session, message).put(&mut bytes);
        // The host may have hung up.
        let _ = self.0.write_all(&bytes);
    }

    fn ready() -> (Self, Agent) {
        let (mut guest, agent) = Self::silent();
        guest.0.write_all(&MAGIC).unwrap();
        guest.say(0, Message::Hello { version: VERSION });
        guest.say(0, Message::Ready(Ready::default()));
        agent.ready(deadline()).unwrap();
        (guest, agent)
    }

    fn silent() -> (Self, Agent) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(LONG)).unwrap();
        (Self(theirs), Agent::connect(ours).unwrap())
    }
}

fn end(agent: &Agent, guest: &mut Guest, messages: Vec<Message>) -> Result<Outcome, Error> {
    let process = agent.exec(&Exec::new(["x"]), Io::none()).unwrap();
    messages.into_iter().for_each(|message| guest.say(1, message));
    process.wait(deadline())
}

#[test]
fn a_guest_that_breaks_the_rules_is_left() {
    let data = |n: usize| Message::Data { stream: Stream::Stdout, bytes: vec![0; n] };
    let too_much = (0..2 + WINDOW as usize / 60_000).map(|_| data(60_000));
    let rules: Vec<Vec<Message>> = vec![
        vec![Message::Data { stream: Stream::Stdin, bytes: vec![1] }],
        vec![Message::End { stream: Stream::Stdout }, data(1)],
        vec![Message::Credit { stream: Stream::Stdin, bytes: 1 }],
        vec![Message::Credit { stream: Stream::Stdin, bytes: u32::MAX }],
        vec![Message::Shutdown],
        vec![Message::Exec(Exec::new(["x"]))],
    ];
    for messages in rules {
        let (mut guest, agent) = Guest::ready();
        let shown = format!("{messages:?}");
        assert!(matches!(end(&agent, &mut guest, messages), Err(Error::Gone(_))), "{shown}");
        assert!(matches!(agent.exec(&Exec::new(["x"]), Io::none()), Err(Error::Gone(_))));
    }
    // More than the window, while nobody reads it.
    let (mut guest, agent) = Guest::ready();
    let (_reader, writer) = std::io::pipe().unwrap();
    let io = Io { stdout: crate::agent::Output::Fd(writer.into()), ..Io::none() };
    let process = agent.exec(&Exec::new(["x"]), io).unwrap();
    too_much.for_each(|message| guest.say(1, message));
    let why = loop {
        match process.ended() {
            Some(end) => break end,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(matches!(why, Err(Error::Gone(_))), "{why:?}");
}

#[test]
fn words_of_a_guest_do_nothing_to_a_terminal() {
    let (mut guest, agent) = Guest::ready();
    let text = format!("\x1b]0;evil\x07{}", "x".repeat(5000));
    let outcome = end(&agent, &mut guest, vec![Message::Ended(Outcome::NotFound(text))]).unwrap();
    let Outcome::NotFound(text) = outcome else { panic!("{outcome:?}") };
    assert!(text.starts_with("?]0;evil?x") && text.len() == 1000);
    // What comes for a session that is over, or never was, is passed over.
    guest.say(1, Message::End { stream: Stream::Stdout });
    guest.say(77, Message::Started { pid: 1 });
    guest.say(0, Message::Failed { what: "the\nend".into() });
    let failed = loop {
        match agent.exec(&Exec::new(["x"]), Io::none()) {
            Err(e) => break e,
            Ok(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(matches!(failed, Error::Failed(what) if what == "the?end"));
}

#[test]
fn nothing_is_said_to_a_guest_that_is_silent_and_versions_must_agree() {
    let (mut guest, agent) = Guest::silent();
    assert!(matches!(agent.ready(Some(Instant::now() + Duration::from_millis(20))), Err(Error::TimedOut)));
    assert!(matches!(agent.exec(&Exec::new(["x"]), Io::none()), Err(Error::NotReady)));
    guest.0.set_nonblocking(true).unwrap();
    assert!(guest.0.read(&mut [0]).is_err(), "it was spoken to");
    guest.0.set_nonblocking(false).unwrap();
    guest.0.write_all(b"\r\nsome noise of a serial port\xff").unwrap();
    guest.0.write_all(&MAGIC).unwrap();
    guest.say(0, Message::Hello { version: VERSION + 1 });
    let error = agent.ready(deadline()).unwrap_err().to_string();
    assert!(error.contains("another version"), "{error}");

    let (guest, agent) = Guest::silent();
    drop(guest);
    assert!(matches!(agent.ready(deadline()), Err(Error::Gone(_))));
    assert!(matches!(agent.shutdown(), Err(Error::Gone(_))));
}

#[test]
fn a_guest_that_reads_nothing_blocks_nobody() {
    let (mut guest, agent) = Guest::ready();
    let input = crate::agent::Input::Reader(Box::new(std::io::repeat(1)));
    let process = agent.exec(&Exec::new(["x"]), Io { stdin: input, ..Io::none() }).unwrap();
    for _ in 0..1000 {
        process.signal(1).unwrap();
    }
    let mut bytes = Vec::new();
    put_data(1, Stream::Stdout, b"still alive", &mut bytes);
    guest.0.write_all(&bytes).unwrap();
    guest.say(1, Message::Ended(Outcome::Exited(0)));
    assert_eq!(process.wait(deadline()).unwrap(), Outcome::Exited(0));
    let long = Exec::new(["x".repeat(3 << 20)]);
    assert!(matches!(agent.exec(&long, Io::none()), Err(Error::TooLong(_))));
    drop(agent);
}

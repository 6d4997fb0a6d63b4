//! Messages survive their way; bytes that are no messages are told from those that are.

use proptest::prelude::*;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::agent::protocol::frame::{MAGIC, put_data};
use crate::agent::protocol::{Decoder, Frame, Malformed, Message, Outcome, Stream, TO_HOST, Task};
use crate::agent::{Access, Address, Channel, Exec, Mount, Network, Plan, Ready, Root, Size};

fn os() -> impl Strategy<Value = OsString> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(OsString::from_vec)
}

fn size() -> impl Strategy<Value = Size> {
    any::<(u16, u16)>().prop_map(|(columns, rows)| Size { columns, rows })
}

fn task() -> impl Strategy<Value = Task> {
    prop_oneof![
        prop::collection::vec(os(), 0..5).prop_map(Task::Command),
        os().prop_map(|path| Task::Pack(path.into())),
        os().prop_map(|path| Task::Unpack(path.into())),
    ]
}

fn exec() -> impl Strategy<Value = Exec> {
    let env = prop::collection::vec((os(), os()), 0..4);
    let (cwd, user, terminal) = (prop::option::of(os()), prop::option::of(".{0,9}"), prop::option::of(size()));
    (task(), env, any::<bool>(), cwd, user, terminal, any::<bool>()).prop_map(
        |(task, env, clear_env, cwd, user, terminal, stdin)| Exec {
            task,
            env,
            clear_env,
            cwd_or_root: clear_env,
            cwd: cwd.map(Into::into),
            user,
            terminal,
            stdin,
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        any::<u8>().prop_map(Outcome::Exited),
        any::<u8>().prop_map(Outcome::Signalled),
        ".{0,30}".prop_map(Outcome::NotFound),
        ".{0,30}".prop_map(Outcome::NotExecutable),
        ".{0,30}".prop_map(Outcome::Failed),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let stream = prop_oneof![Just(Stream::Stdin), Just(Stream::Stdout), Just(Stream::Stderr)];
    let ready = (any::<(u64, u64)>(), prop::collection::vec(".{0,30}", 0..3));
    prop_oneof![
        any::<u32>().prop_map(|version| Message::Hello { version }),
        ready.prop_map(|((started, ready), notes)| Message::Ready(Ready { started, ready, notes })),
        ".{0,50}".prop_map(|what| Message::Failed { what }),
        any::<u32>().prop_map(|pid| Message::Started { pid }),
        outcome().prop_map(Message::Ended),
        (stream.clone(), prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(stream, bytes)| Message::Data { stream, bytes }),
        stream.clone().prop_map(|stream| Message::End { stream }),
        (stream.clone(), any::<u32>()).prop_map(|(stream, bytes)| Message::Credit { stream, bytes }),
        stream.prop_map(|stream| Message::Close { stream }),
        exec().prop_map(Message::Exec),
        any::<u8>().prop_map(|number| Message::Signal { number }),
        size().prop_map(Message::Resize),
        Just(Message::Shutdown),
        Just(Message::Dump),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let channel = prop_oneof![
        any::<u32>().prop_map(|port| Channel::Vsock { port }),
        ".{0,9}".prop_map(|name| Channel::Port { name }),
        ".{0,9}".prop_map(|device| Channel::Uart { device }),
    ];
    let access = prop_oneof![Just(Access::ReadOnly), Just(Access::ReadWrite), Just(Access::Overlay)];
    let root = prop_oneof![
        Just(Root::Initramfs),
        (".{0,9}", access.clone()).prop_map(|(tag, access)| Root::Fs { tag, access }),
        (".{0,9}", prop::option::of(".{0,9}"), access).prop_map(|(device, fstype, access)| Root::Disk {
            device,
            fstype,
            access
        }),
    ];
    let mount = (".{0,9}", ".{0,9}", any::<bool>()).prop_map(|(tag, path, read_only)| Mount { tag, path, read_only });
    let network = (any::<[u8; 6]>(), address::<std::net::Ipv4Addr>(), address::<std::net::Ipv6Addr>())
        .prop_map(|(mac, ipv4, ipv6)| Network { mac, ipv4, ipv6, dns: vec!["10.0.2.3".into()] });
    let lists = (prop::collection::vec(".{0,9}", 0..3), prop::collection::vec(mount, 0..3));
    let rest = (prop::collection::vec(network, 0..3), prop::option::of(prop::collection::vec(".{0,9}", 0..3)));
    (channel, root, lists, ".{0,9}", rest).prop_map(|(channel, root, (modules, mounts), hostname, (network, init))| {
        Plan { modules, channel, root, mounts, hostname, network, init }
    })
}

fn address<A: Arbitrary>() -> impl Strategy<Value = Option<Address<A>>> {
    prop::option::of(any::<(A, u8, Option<A>)>().prop_map(|(address, prefix, gateway)| Address {
        address,
        prefix,
        gateway,
    }))
}

proptest! {
    #[test]
    fn frames_survive_any_cut(
        frames in prop::collection::vec((any::<u32>(), message()).prop_map(|(id, message)| Frame::new(id, message)), 0..8),
        noise in prop::collection::vec(1u8.., 0..100),
        step in 1usize..50,
    ) {
        let mut bytes = noise;
        bytes.extend_from_slice(&MAGIC);
        frames.iter().for_each(|frame| frame.put(&mut bytes));
        let (mut decoder, mut seen) = (Decoder::new(TO_HOST), Vec::new());
        for piece in bytes.chunks(step) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn plans_survive(plan in plan(), cut in any::<prop::sample::Index>()) {
        let bytes = plan.to_bytes();
        prop_assert_eq!(Plan::from_bytes(&bytes), Ok(plan));
        prop_assert!(Plan::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Malformed> {
    let (mut decoder, mut seen) = (Decoder::new(TO_HOST), Vec::new());
    decoder.push(&MAGIC);
    decoder.push(bytes);
    while let Some(frame) = decoder.next_frame()? {
        seen.push(frame);
    }
    Ok(seen)
}

#[test]
fn what_is_wrong_is_found_and_what_is_new_is_passed_over() {
    let (mut bytes, end) = (Vec::new(), Frame::new(7, Message::End { stream: Stream::Stdout }));
    put_data(7, Stream::Stderr, b"data", &mut bytes);
    // A message of the future.
    bytes.extend_from_slice(&[3, 0, 0, 0, 7, 0, 0, 0, 200, 1, 2, 3]);
    end.put(&mut bytes);
    let data = Frame::new(7, Message::Data { stream: Stream::Stderr, bytes: b"data".to_vec() });
    assert_eq!(decode(&bytes), Ok(vec![data, end]));
    // Longer than allowed; a list that promises more than there is; bytes left over; a stream that there is not.
    for wrong in [
        &[0, 0, 2, 0, 1, 0, 0, 0, 6][..],
        &[20, 0, 0, 0, 0, 0, 0, 0, 2, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 0, 0, 0, 0, 0, 0, 7, 1, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 7, 3],
    ] {
        assert_eq!(decode(wrong), Err(Malformed), "{wrong:?}");
    }
    let mut noisy = Decoder::new(TO_HOST);
    noisy.push(&[b'x'; 5000]);
    assert_eq!(noisy.next_frame(), Err(Malformed), "noise without end");
}

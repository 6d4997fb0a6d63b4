//! Guests and programs that do not keep to the rules, or keep others waiting.

use super::*;

#[test]
fn packets_that_belong_nowhere_are_answered_by_resets() {
    let mut bench = bench();
    (bench.host_port, bench.guest_port) = (7, 8);
    let rw = bench.header(op::RW, 0);
    for op in [0, op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 8, u16::MAX] {
        bench.send(op);
        let reset = bench.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (7, 8));
    }
    let answer = |bench: &mut Bench, header: Header| {
        bench.send_raw(&header, &[]);
        let used = bench.kit.wait_used(RX);
        bench.offer(1);
        let reset = Header::parse(used.data.first_chunk().unwrap());
        assert_eq!((reset, used.len as usize), (header.reset(), HEADER_LEN));
    };
    answer(&mut bench, Header { dst_cid: 1, op: op::REQUEST, ..rw });
    answer(&mut bench, Header { dst_cid: u64::MAX, op: op::REQUEST, ..rw });
    answer(&mut bench, Header { kind: 2, op: op::REQUEST, ..rw });
    bench.send(op::RST);
    bench.send_raw(&Header { src_cid: CID + 1, op: op::REQUEST, ..rw }, &[]);
    bench.send_raw(&Header { src_cid: CID | 1 << 32, ..rw }, &[]);
    bench.quiet();
}

#[test]
fn a_connection_whose_rules_are_broken_is_reset_and_the_others_live() {
    let mut bench = bench();
    let mut other = bench.connected();
    let ports = bench.host_port;
    let wrong: [fn(&mut Bench); 8] = [
        |bench| bench.send(op::RESPONSE),
        |bench| bench.send(op::REQUEST),
        |bench| bench.send(99),
        |bench| bench.send_raw(&bench.header(op::RW, 100), b"less than it says"),
        |bench| bench.send_raw(&bench.header(op::RW, u32::MAX as usize), b"less than it says"),
        |bench| {
            bench.shut_down(NO_SEND);
            bench.send_data(b"more");
        },
        |bench| {
            // More than the device ever offered, in one packet that lies in memory.
            let header = bench.header(op::RW, 1 << 20).bytes();
            bench.kit.add(TX, &[Part::Out(&header), Part::OutAt(0, 1 << 20)]);
            bench.kit.notify(TX);
            bench.kit.wait_used(TX);
        },
        |bench| bench.shut_down(NO_MORE),
    ];
    for (case, act) in wrong.into_iter().enumerate() {
        let mut host = bench.connected();
        act(&mut bench);
        let (port, reset) = (bench.host_port, bench.expect(op::RST));
        assert_eq!(reset.src_port, port, "case {case}");
        assert!(at_end(&mut host), "case {case}");
    }
    let mut host = bench.host();
    host.write_all(b"CONNECT 9\n").unwrap();
    (bench.host_port, bench.guest_port) = (bench.expect(op::REQUEST).src_port, 9);
    bench.send_data(b"before the answer");
    bench.expect(op::RST);
    assert!(at_end(&mut host));
    (bench.host_port, bench.guest_port) = (ports, 1024);
    // Bytes behind the payload are none of it; unknown flags mean nothing.
    bench.send_raw(&bench.header(op::RW, 5), b"alivexxx");
    bench.send_raw(&Header { flags: !NO_MORE, ..bench.header(op::SHUTDOWN, 0) }, &[]);
    assert_eq!(read(&mut other, 5), b"alive");
}

#[test]
fn a_reader_that_never_reads_costs_no_more_than_the_credit() {
    let mut bench = bench();
    let mut host = bench.connected();
    let piece = pattern(32 << 10);
    let mut sent = 0u32;
    // Honest to the last byte: the socket's own buffer and then ours.
    while bench.device.buf_alloc > sent.wrapping_sub(bench.device.fwd_cnt) {
        let room = bench.device.buf_alloc - sent.wrapping_sub(bench.device.fwd_cnt);
        let count = piece.len().min(room as usize);
        bench.send_data(&piece[..count]);
        sent += count as u32;
        while bench.kit.used_within(RX, Duration::ZERO).map(|used| {
            bench.device = Header::parse(used.data.first_chunk().unwrap());
            assert_eq!(bench.device.op, op::CREDIT_UPDATE);
        }) == Some(())
        {
            bench.offer(1);
        }
        bench.send(op::CREDIT_REQUEST);
        bench.expect(op::CREDIT_UPDATE);
    }
    assert!(sent > bench.device.buf_alloc, "the socket took nothing");
    bench.send_data(b"x");
    bench.expect(op::RST);
    // What the socket has taken is not lost.
    let taken = bench.device.fwd_cnt;
    assert_eq!(taken, 0, "a reset tells no credit");
    let mut seen = Vec::new();
    host.read_to_end(&mut seen).unwrap();
    assert!(!seen.is_empty() && seen.len() < sent as usize);
}

#[test]
fn buffers_that_are_none_stop_the_device_until_reset() {
    let mut bench = bench();
    let bad: [(usize, &[Part<'_>]); 4] = [
        (TX, &[Part::Out(&[0; HEADER_LEN - 1])]),
        (TX, &[Part::In(100)]),
        (RX, &[Part::In(HEADER_LEN)]),
        (RX, &[Part::Out(b"wrong direction")]),
    ];
    for (queue, parts) in bad {
        bench.kit.reset();
        bench.kit.activate_on_loop(F_STREAM);
        bench.kit.add(queue, parts);
        bench.kit.notify(queue);
        if queue == RX {
            let header = bench.header(op::RW, 0).bytes();
            bench.kit.add(TX, &[Part::Out(&header)]);
            bench.kit.notify(TX);
        }
        bench.kit.wait_broken();
    }
    bench.kit.reset();
    bench.start();
    bench.connected();
}

#[test]
fn headers_may_be_in_pieces() {
    let mut bench = bench();
    bench.kit.reset();
    bench.kit.activate_on_loop(F_STREAM);
    for _ in 0..3 {
        bench.kit.add(RX, &[Part::In(1), Part::In(20), Part::In(30), Part::In(4)]);
    }
    let mut host = bench.connected();
    host.write_all(b"0123456789ab").unwrap();
    let mut seen = Vec::new();
    while seen.len() < 12 {
        let (header, data) = bench.next();
        assert!(header.len <= 11 || header.op == op::RW);
        seen.extend(data);
    }
    assert_eq!(seen, b"0123456789ab");
}

#[test]
fn resets_that_nobody_takes_are_bounded() {
    let mut bench = bench();
    bench.kit.reset();
    bench.kit.activate_on_loop(F_STREAM);
    for port in 0..2000 {
        bench.guest_port = port;
        bench.send(op::RW);
    }
    bench.offer(100);
    let mut count = 0;
    while bench.kit.used_within(RX, SOON).is_some() {
        bench.offer(1);
        count += 1;
    }
    assert_eq!(count, 256);
}

#[test]
fn connections_are_bounded_and_programs_wait_for_a_free_one() {
    let mut bench = limited_bench(handler::Limits { connections: 2, patience: 10 * LIMIT });
    let first = bench.connected();
    let port = bench.host_port;
    let mut second = bench.connected();
    let service = bench.service(52);
    (bench.host_port, bench.guest_port) = (52, 1);
    bench.send(op::REQUEST);
    bench.expect(op::RST);
    drop(service);
    let mut third = bench.host();
    third.write_all(b"CONNECT 3\n").unwrap();
    bench.quiet();
    drop(first);
    while bench.expect(op::SHUTDOWN).flags != NO_MORE {}
    (bench.host_port, bench.guest_port) = (port, 1024);
    bench.send(op::RST);
    assert_eq!(bench.expect(op::REQUEST).dst_port, 3);
    second.write_all(b"x").unwrap();
    assert_eq!(bench.next().1, b"x");
}

#[test]
fn nobody_waits_for_ever() {
    let patience = Duration::from_millis(400);
    let mut bench = limited_bench(handler::Limits { connections: 10, patience });
    // A program that says nothing, and one that says something else.
    assert!(at_end(&mut bench.host()));
    let mut host = bench.host();
    host.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(at_end(&mut host));
    // A guest that does not answer.
    let mut host = bench.host();
    host.write_all(b"CONNECT 1\n").unwrap();
    bench.expect(op::REQUEST);
    bench.expect(op::RST);
    assert!(at_end(&mut host));
    // A guest that does not agree to an end.
    drop(bench.connected());
    while bench.expect(op::SHUTDOWN).flags != NO_MORE {}
    std::thread::sleep(2 * patience);
    bench.quiet();
    bench.send_data(b"too late");
    bench.expect(op::RST);
    // A connection that is only quiet is not touched.
    let mut host = bench.connected();
    std::thread::sleep(2 * patience);
    bench.send_data(b"still here");
    assert_eq!(read(&mut host, 10), b"still here");
}

#[test]
fn a_program_that_leaves_before_the_answer_is_forgotten() {
    let mut bench = bench();
    let mut host = bench.host();
    host.write_all(b"CONNECT 1\n").unwrap();
    bench.expect(op::REQUEST);
    drop(host);
    bench.expect(op::RST);
    bench.quiet();
}

#[test]
fn sockets_for_which_there_are_no_buffers_do_not_wake_anybody() {
    let mut bench = bench();
    let service = bench.service(52);
    bench.kit.reset();
    bench.kit.activate(F_STREAM);
    (bench.host_port, bench.guest_port) = (52, 1);
    bench.send(op::REQUEST);
    let mut host = service.accept().unwrap().0;
    host.write_all(b"data").unwrap();
    assert!(bench.kit.poll_fds(SOON));
    assert!(!bench.kit.poll_fds(SOON));
    drop(host);
    bench.kit.poll_fds(SOON);
    assert!(!bench.kit.poll_fds(SOON), "nor one whose other end is gone");
    bench.offer(10);
    bench.expect(op::RESPONSE);
    bench.expect_data(b"data");
    assert_eq!(bench.expect(op::SHUTDOWN).flags, NO_MORE);
}

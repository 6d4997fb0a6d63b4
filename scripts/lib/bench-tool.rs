//! Load for scripts/bench, compiled by it with rustc alone: runs in guests, and on the host beside them.
//!
//!   read FILE SIZE COUNT [random]      COUNT direct reads of SIZE bytes, one after another
//!   serve PORT                         answers `net`, for ever
//!   net ADDRESS:PORT send|receive|ask COUNT   COUNT bytes to or from `serve`, or COUNT requests of one byte
//!   start COUNT COMMAND..              belljar's time from fork to its first KVM_RUN, in microseconds, once a line
//!
//! All but `serve` print how long it took, in microseconds.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::Instant;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PAGE: usize = 4096;
const O_DIRECT: i32 = 0o40000;
const CLOCK_MONOTONIC: i32 = 1;

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["read", file, size, count, rest @ ..] => read(file, size.parse()?, count.parse()?, rest == ["random"]),
        ["serve", port] => serve(port.parse()?),
        ["net", address, what, count] => net(address, what, count.parse()?),
        ["start", count, command, args @ ..] => {
            for _ in 0..count.parse::<usize>()? {
                start(command, args)?;
            }
            Ok(())
        }
        _ => Err("bad usage: see the head of bench-tool.rs".into()),
    }
}

fn timed(work: impl FnOnce() -> Outcome) -> Outcome {
    let begin = Instant::now();
    work()?;
    println!("{}", begin.elapsed().as_micros());
    Ok(())
}

fn read(path: &str, size: usize, count: u64, random: bool) -> Outcome {
    let file = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path)?;
    let blocks = length(&file)? / size as u64;
    let mut space = vec![0; size + PAGE];
    let start = space.as_ptr().align_offset(PAGE);
    let buffer = &mut space[start..start + size];
    let mut state = 1u64;
    timed(|| {
        for n in 0..count {
            // A linear congruential generator (Knuth, MMIX); its high bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let block = if random { (state >> 33) % blocks } else { n % blocks };
            file.read_exact_at(buffer, block * size as u64)?;
        }
        Ok(())
    })
}

/// Size of a file or block device.
fn length(file: &File) -> Outcome<u64> {
    use std::io::Seek;
    let mut file = file;
    Ok(file.seek(std::io::SeekFrom::End(0))?)
}

// ---- network: one byte says what a connection is for, eight how much ------------------------------------------------

fn serve(port: u16) -> Outcome {
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        // A client that goes away ends its connection only.
        if let Err(e) = stream.map_err(Into::into).and_then(answer) {
            eprintln!("serve: {e}");
        }
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> Outcome {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let (what, count) = (head[0], u64::from_le_bytes(head[1..].try_into()?));
    stream.set_nodelay(true)?;
    match what {
        b's' => sink(&mut stream, count)?,
        b'r' => return source(&mut stream, count),
        _ => {
            let mut byte = [0];
            for _ in 0..count {
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)?;
            }
        }
    }
    Ok(stream.write_all(&[0])?)
}

fn net(address: &str, what: &str, count: u64) -> Outcome {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut head = [what.as_bytes()[0]; 9];
    head[1..].copy_from_slice(&count.to_le_bytes());
    let mut byte = [0];
    timed(|| {
        stream.write_all(&head)?;
        match what {
            "send" => {
                source(&mut stream, count)?;
                stream.read_exact(&mut byte)?;
            }
            "receive" => sink(&mut stream, count)?,
            _ => {
                for _ in 0..count {
                    stream.write_all(&byte)?;
                    stream.read_exact(&mut byte)?;
                }
            }
        }
        Ok(())
    })
}

fn source(stream: &mut TcpStream, count: u64) -> Outcome {
    let buffer = vec![0x5a; 64 << 10];
    let mut left = count;
    while left > 0 {
        let now = left.min(buffer.len() as u64) as usize;
        stream.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    Ok(())
}

fn sink(stream: &mut TcpStream, count: u64) -> Outcome {
    let mut buffer = vec![0; 64 << 10];
    let mut left = count;
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        match stream.read(&mut buffer[..most])? {
            0 => return Err("the connection ended early".into()),
            n => left -= n as u64,
        }
    }
    Ok(())
}

// ---- start ------------------------------------------------------------------------------------------------------------

fn start(command: &str, args: &[&str]) -> Outcome {
    let begin = monotonic();
    let output = Command::new(command).args(args).stdin(Stdio::null()).stdout(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let first_run = said.split("\"first_run\":").nth(1).ok_or_else(|| format!("no first_run:\n{said}"))?;
    let digits: String = first_run.chars().take_while(char::is_ascii_digit).collect();
    println!("{}", (digits.parse::<u64>()? - begin) / 1000);
    Ok(())
}

/// The clock that belljar's --timing shows, in nanoseconds. std keeps its value to itself.
fn monotonic() -> u64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    let mut time = [0; 2];
    // SAFETY: on this 64-bit target a timespec is two 64-bit integers, and `time` outlives the call.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &raw mut time) };
    time[0] as u64 * 1_000_000_000 + time[1] as u64
}

//! What a guest's agent says: frames, and trees of files that are copied out of the guest.

use crate::agent::protocol::frame::MAGIC;
use crate::agent::protocol::wire::Wire;
use crate::agent::protocol::{Decoder, Frame, Message, Outcome, Plan, Ready, Stream, TO_HOST, tree};
use crate::agent::{Channel, Exec, Root};

/// The first byte chooses how the rest is cut into pieces. What is understood survives being said again.
pub(super) fn frames(data: &[u8]) {
    let Some((&cut, rest)) = data.split_first() else { return };
    let mut decoder = Decoder::new(TO_HOST);
    for piece in rest.chunks(usize::from(cut).max(1)) {
        decoder.push(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let mut again = MAGIC.to_vec();
            frame.put(&mut again);
            let mut second = Decoder::new(TO_HOST);
            second.push(&again);
            assert_eq!(second.next_frame(), Ok(Some(frame)));
        }
    }
    drop(Plan::from_bytes(rest));
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let data = Message::Data { stream: Stream::Stdout, bytes: b"text".to_vec() };
    let ready = Ready { started: 1, ready: 2, notes: vec!["a note".into()] };
    let messages = [
        Message::Hello { version: 1 },
        Message::Ready(ready),
        Message::Started { pid: 7 },
        data,
        Message::Credit { stream: Stream::Stdin, bytes: 9 },
        Message::Exec(Exec::new(["sh", "-c", "true"])),
        Message::Ended(Outcome::NotFound("x".into())),
    ];
    let mut bytes = vec![5];
    bytes.extend_from_slice(&MAGIC);
    messages.into_iter().for_each(|message| Frame::new(1, message).put(&mut bytes));
    vec![bytes, [&[1][..], &Plan::new(Channel::Vsock { port: 1 }, Root::Initramfs).to_bytes()].concat()]
}

/// Unpacked into a directory beside which a file must stay as it is.
pub(super) fn files(data: &[u8]) {
    let dir = directory();
    let (inside, outside) = (dir.0.join("in"), dir.0.join("out"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(&outside, "untouched").unwrap();
    drop(tree::unpack(&inside, &mut &*data));
    assert_eq!(std::fs::read(&outside).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 2, "something got out");
}

pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    let head = |kind: u8, name: &str| {
        let mut bytes = vec![kind];
        if kind != 3 {
            bytes.extend_from_slice(&0o700u32.to_le_bytes());
            bytes.extend_from_slice(&[0; 12]);
        }
        std::ffi::OsString::from(name).put(&mut bytes);
        bytes
    };
    let mut link = head(3, "link");
    std::ffi::OsString::from("../out").put(&mut link);
    let file = [head(1, "file"), vec![2, 0, 0, 0, b'h', b'i', 0, 0, 0, 0]].concat();
    vec![[head(2, "dir"), link, file, vec![4, 0]].concat()]
}

/// A directory that goes when it is dropped.
struct Directory(std::path::PathBuf);

fn directory() -> Directory {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("belljar-fuzz-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    Directory(path)
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What the stream made may be unreadable.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

//! Directories of the host (virtio 1.3, section 5.11): options, configuration space, and the way of a request from the
//! queue to the server ([`crate::fs`]) and back. The handler has an event loop of its own, since file systems may block.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::devices::builder::json;
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::fs::protocol::{ANSWER_HEADER, Header, Opcode, REQUEST_HEADER, WRITE_ARGS};
use crate::fs::{Answer, Cache, Limits, Server, Share};
use crate::host::limits;
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{ActivateError, Broken, Chain, Handler, Info, VirtioDevice};

mod asked;
#[cfg(test)]
mod tests;

use asked::Asked;

/// Device type (section 5.11.1).
const DEVICE_ID: u16 = 26;
/// Room for requests of 1 MiB in 256 pages, next to smaller ones.
const QUEUE_SIZE: u16 = 512;
/// One vCPU each; more would not make one loop faster.
const MAX_QUEUES: u16 = 16;
/// Bytes of a tag (section 5.11.4).
const TAG_LEN: usize = 36;
/// Bytes of arguments without data: an extended attribute is the longest.
const MAX_ARGS: usize = 128 << 10;
/// Longest time for which answers are kept from the guest while other requests are served.
const ANSWER_WITHIN: Duration = Duration::from_micros(200);

/// Bytes of guest RAM that its kernel needs at least for one file that it knows: so many files it cannot know.
const RAM_PER_NODE: u64 = 1 << 10;
/// Small guests may know this many.
const LEAST_NODES: usize = 1 << 16;

/// `--fs`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] = &[
    Key { name: "path", value: "DIR", about: "directory to share" },
    Key { name: "tag", value: "NAME", about: "in the guest: mount -t virtiofs NAME DIR; at most 36 bytes" },
    Key { name: "mode", value: "ro|rw", about: "whether the guest may change anything (default ro)" },
    Key { name: "cache", value: "auto|always|never", about: "for how long the guest may believe what it saw" },
    Key { name: "queues", value: "N", about: "request queues, 1 to 16 (default 1)" },
];

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "fs"
    }

    fn about(&self) -> &'static str {
        "A directory of the host, shared with the guest (virtio-fs)"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(parse(options)?))
    }
}

fn parse(options: &Options) -> Result<FsSpec, OptionError> {
    let tag = options.required("tag")?;
    if tag.len() > TAG_LEN || tag.contains('\0') {
        return Err(options.error(format!("tag={tag}: give at most {TAG_LEN} bytes")));
    }
    let caches = [("auto", Cache::Auto), ("always", Cache::Always), ("never", Cache::Never)];
    Ok(FsSpec {
        path: PathBuf::from(options.required("path")?),
        tag: tag.into(),
        writable: options.choice("mode", false, &[("ro", false), ("rw", true)])?,
        cache: options.choice("cache", Cache::Auto, &caches)?,
        queues: options.number("queues", 1, 1..=MAX_QUEUES)?,
    })
}

/// One directory that a machine shall have.
#[derive(Debug, Clone)]
struct FsSpec {
    path: PathBuf,
    tag: String,
    writable: bool,
    cache: Cache,
    queues: u16,
}

impl Spec for FsSpec {
    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let nodes = (builder.ram.size() / RAM_PER_NODE) as usize;
        let share = Share::open(&self.path, self.writable, self.cache, limits(nodes.max(LEAST_NODES)));
        let share = share.map_err(|e| AttachError(format!("--fs: {e}")))?;
        let device = Fs::new(self, share);
        let asked = device.asked.clone();
        let name = builder.virtio("fs", Box::new(device));
        builder.report(name, move || json(&asked.report()));
        Ok(())
    }

    fn exclusive(&self) -> Option<String> {
        Some(format!("tag={}", self.tag))
    }
}

/// What one share may use of what this process may have open.
fn limits(nodes: usize) -> Limits {
    let files = limits::open_files();
    Limits { nodes, descriptors: (files / 8).clamp(64, 4096), handles: (files / 4).clamp(64, 1 << 16) }
}

/// The device as its transport sees it.
struct Fs {
    share: Arc<Share>,
    config: ConfigSpace,
    queues: u16,
    asked: Arc<Asked>,
}

impl Fs {
    fn new(spec: &FsSpec, share: Share) -> Self {
        let config = ConfigSpace::new(TAG_LEN + 4);
        config.set(0, spec.tag.as_bytes());
        config.set(TAG_LEN, &u32::from(spec.queues).to_le_bytes());
        Self { share: Arc::new(share), config, queues: spec.queues, asked: Arc::default() }
    }
}

impl VirtioDevice for Fs {
    fn info(&self) -> Info {
        // The first is for requests that must not wait behind others.
        let queue_sizes = vec![QUEUE_SIZE; 1 + usize::from(self.queues)];
        Info { id: DEVICE_ID, features: 0, queue_sizes, blocking: true }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, _: u64) -> Result<Box<dyn Handler>, ActivateError> {
        let server = Server::new(self.share.clone()).map_err(|e| ActivateError(format!("shared directory: {e}")))?;
        Ok(Box::new(Requests { server, args: Vec::new(), asked: self.asked.clone() }))
    }
}

struct Requests {
    server: Server,
    /// Arguments of the request under way; keeps its memory.
    args: Vec<u8>,
    asked: Arc<Asked>,
}

impl Handler for Requests {
    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        let mut answered = Instant::now();
        while let Some(mut chain) = queues.queue(index).pop()? {
            self.serve(&mut chain)?;
            let written = chain.written();
            queues.queue(index).push(chain, written)?;
            if answered.elapsed() > ANSWER_WITHIN {
                queues.signal()?;
                answered = Instant::now();
            }
        }
        Ok(())
    }
}

impl Requests {
    fn serve(&mut self, chain: &mut Chain) -> Result<(), Broken> {
        let mut header = [0; REQUEST_HEADER];
        chain.read_exact(&mut header)?;
        let header = Header::parse(&header);
        self.asked.request(&header);
        let has_room = chain.take_header(ANSWER_HEADER).is_ok();
        let result = self.take_args(&header, chain).and_then(|()| {
            let data = crate::fs::Data { readable: chain.readable(), writable: chain.writable() };
            self.server.serve(&header, &self.args, data)
        });
        match result {
            Ok(Answer::InPlace(count)) => self.asked.moved(count, 0),
            Ok(_) => self.asked.moved(0, chain.readable_len()),
            Err(_) => {}
        }
        // Without room for an answer nobody waits for one.
        if has_room {
            answer(&header, result, self.server.body(), chain);
        }
        Ok(())
    }

    /// Reads all that is not data.
    fn take_args(&mut self, header: &Header, chain: &mut Chain) -> Result<(), Errno> {
        let there = chain.readable_len();
        let len = match Opcode::new(header.opcode) {
            Some(Opcode::Write) => there.min(WRITE_ARGS),
            _ if there > MAX_ARGS => return Err(Errno::TOOBIG),
            _ => there,
        };
        self.args.resize(len, 0);
        chain.read(&mut self.args);
        Ok(())
    }
}

/// Writes the answer, header last.
fn answer(header: &Header, result: Result<Answer, Errno>, body: &[u8], chain: &mut Chain) {
    let result = match result {
        Ok(Answer::Body) if body.len() > chain.writable_len() => Err(Errno::RANGE),
        other => other,
    };
    let error = match result {
        // The driver made room for an answer to what has none.
        Ok(Answer::Nothing) => 0,
        Ok(Answer::Body) => {
            chain.write(body);
            0
        }
        Ok(Answer::InPlace(count)) => {
            chain.skip_writable(count);
            0
        }
        Err(e) => -e.raw_os_error(),
    };
    let mut bytes = [0; ANSWER_HEADER];
    let fields = [&chain.written().to_le_bytes()[..], &error.to_le_bytes(), &header.unique.to_le_bytes()];
    bytes.iter_mut().zip(fields.concat()).for_each(|(to, from)| *to = from);
    chain.set_header(&bytes);
}

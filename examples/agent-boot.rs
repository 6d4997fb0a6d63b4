//! scratch: boots a guest with the agent by an existing belljar binary. usage: agent-boot MODE -- command..
use belljar::agent::*;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let channel = std::env::var("CHANNEL").unwrap_or("vsock".into());
    let dir = std::path::PathBuf::from("/tmp/h/agt/boot");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("root/belljar/modules")).unwrap();
    let root = dir.join("root");
    let init = std::env::var("INIT").unwrap_or("/tmp/h/agt/init".into());
    if init == "embedded" {
        std::fs::write(root.join("init"), PROGRAM).unwrap();
    } else {
        std::fs::copy(init, root.join("init")).unwrap();
    }
    Command::new("chmod").arg("755").arg(root.join("init")).status().unwrap();
    let base = std::env::var("MODULES").unwrap_or(
        "/root/.cache/belljar/assets/kernel-6.12-cloud/modules/lib/modules/6.12.117+deb12-cloud-amd64/kernel/".into(),
    );
    let mut modules = vec![];
    let wanted = std::env::var("MODS").unwrap_or("net/vmw_vsock/vsock net/vmw_vsock/vmw_vsock_virtio_transport_common net/vmw_vsock/vmw_vsock_virtio_transport fs/overlayfs/overlay net/core/failover drivers/net/net_failover drivers/net/virtio_net drivers/block/virtio_blk".into());
    for (n, m) in wanted.split_whitespace().enumerate() {
        let to = format!("/belljar/modules/{n:02}-{}.ko", m.rsplit('/').next().unwrap());
        let status = Command::new("sh")
            .arg("-c")
            .arg(format!("xz -dc {base}/{m}.ko.xz > {}{to}", root.display()))
            .status()
            .unwrap();
        assert!(status.success());
        modules.push(to);
    }
    let ch = match channel.as_str() {
        "vsock" => Channel::Vsock { port: 52 },
        "port" => Channel::Port { name: "belljar.agent".into() },
        _ => Channel::Uart { device: "/dev/ttyS1".into() },
    };
    let rootspec = match std::env::var("ROOT").ok() {
        Some(d) => {
            let access = match std::env::var("ACCESS").as_deref() {
                Ok("ro") => Access::ReadOnly,
                Ok("rw") => Access::ReadWrite,
                _ => Access::Overlay,
            };
            if let Some(tag) = d.strip_prefix("fs:") {
                Root::Fs { tag: tag.into(), access }
            } else {
                Root::Disk { device: d, fstype: None, access }
            }
        }
        None => Root::Initramfs,
    };
    let mut plan = Plan::new(ch, rootspec);
    plan.modules = modules;
    if let Ok(init) = std::env::var("HANDOVER") {
        plan.init = Some(vec![init]);
    }
    plan.hostname = "jar".into();
    plan.sysctl = vec![("kernel.panic_on_oops".into(), "1".into())];
    if let Ok(mac) = std::env::var("MAC") {
        let b: Vec<u8> = mac.split(':').map(|x| u8::from_str_radix(x, 16).unwrap()).collect();
        plan.network = vec![Network {
            mac: b.try_into().unwrap(),
            ipv4: Some(Address {
                address: "10.0.2.15".parse().unwrap(),
                prefix: 24,
                gateway: Some("10.0.2.2".parse().unwrap()),
            }),
            ipv6: Some(Address {
                address: "fd00::15".parse().unwrap(),
                prefix: 64,
                gateway: Some("fd00::2".parse().unwrap()),
            }),
            dns: vec!["10.0.2.3".into()],
        }];
    }
    std::fs::write(root.join("belljar/plan"), plan.to_bytes()).unwrap();
    let s = Command::new("sh")
        .arg("-c")
        .arg(format!("cd {} && find . | cpio -o -H newc --quiet > ../agent.cpio", root.display()))
        .status()
        .unwrap();
    assert!(s.success());
    let bj = std::env::var("BELLJAR").unwrap_or("/work/wt/agent/target/x86_64-unknown-linux-gnu/quick/belljar".into());
    let mut c = Command::new("timeout");
    c.arg("100").arg(bj);
    c.args([
        "boot",
        "--engine",
        "soft",
        "--kernel",
        &std::env::var("KERNEL").unwrap_or("/root/.cache/belljar/assets/kernel-6.12-cloud/vmlinux".into()),
    ]);
    if let Ok(more) = std::env::var("INITRD") {
        c.args(["--initrd", &more]);
    }
    c.args([
        "--initrd",
        dir.join("agent.cpio").to_str().unwrap(),
        "--append",
        &std::env::var("APPEND").unwrap_or("quiet".into()),
    ]);
    let sock = dir.join("v.sock");
    let listener = UnixListener::bind(dir.join("v.sock_52")).unwrap();
    match channel.as_str() {
        "vsock" => {
            c.args(["--vsock", sock.to_str().unwrap()]);
        }
        "port" => {
            c.args(["--port", &format!("belljar.agent,to=socket={}", dir.join("p").display())]);
        }
        _ => {
            c.args(["--uart", &format!("to=socket={}", dir.join("p").display())]);
        }
    }
    if let Ok(extra) = std::env::var("EXTRA") {
        c.args(extra.split_whitespace());
    }
    c.stdin(std::process::Stdio::null());
    let begin = Instant::now();
    let mut child = c.spawn().unwrap();
    let stream = if channel == "vsock" {
        listener.accept().unwrap().0
    } else {
        loop {
            if let Ok(s) = UnixStream::connect(dir.join("p")) {
                break s;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let agent = Agent::connect(stream).unwrap();
    let ready = agent.ready(Some(Instant::now() + Duration::from_secs(90)));
    eprintln!("[{:?}] {ready:?}", begin.elapsed());
    if ready.is_ok() {
        let many: Vec<Vec<String>> = args.split(|a| a == "--").map(|x| x.to_vec()).collect();
        for command in many.iter().filter(|c| !c.is_empty()) {
            let mut exec = Exec::new(command.clone());
            if std::env::var("TTY").is_ok() {
                exec.terminal = Some(Size { columns: 80, rows: 24 });
            }
            let t = Instant::now();
            let p = agent.exec(&exec, Io { stdin: Input::None, ..Io::inherit().unwrap() }).unwrap();
            let o = p.wait(Some(Instant::now() + Duration::from_secs(60)));
            eprintln!("[{:?}] {command:?}: {o:?} in {:?}", begin.elapsed(), t.elapsed());
        }
        eprintln!("shutdown: {:?}", agent.shutdown());
    }
    let status = child.wait().unwrap();
    eprintln!("[{:?}] machine: {status}", begin.elapsed());
}

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers the calls that concern `/dev/spidevX.Y` and the little of sysfs that belongs to them.
//!
//! Its invariant: a chip select line changes only where the kernel's core would change it, and every call that concerns
//! a node leaves exactly one record.

use super::host::{Fault, Host, Id, Landlock, Passage, State, When};
use super::kernel_rules as rules;
use super::notify::{Answer, Call};
use super::record::{Kind, Record, Transfer};
use super::sys;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

impl Host {
    /// Answers one intercepted call.
    pub fn answer(&self, call: &Call) -> Answer {
        match call.nr {
            libc::SYS_ioctl => self.ioctl(call),
            libc::SYS_landlock_create_ruleset => self.ruleset(call),
            libc::SYS_readlinkat => self.read_link(call, call.args[1]),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink => self.read_link(call, call.args[0]),
            libc::SYS_openat | libc::SYS_openat2 => {
                self.open(call, call.args[1], call.args[2] as i32)
            }
            _ => self.open(call, call.args[0], call.args[1] as i32),
        }
    }

    /// A node is there, and not a link.
    fn read_link(&self, call: &Call, path: u64) -> Answer {
        let id = call.path(path).as_deref().and_then(parse_node);
        let state = self.state();
        let is_node = id.is_some_and(|id| state.nodes.contains_key(&id));
        if is_node {
            Answer::Return(-i64::from(libc::EINVAL))
        } else {
            Answer::Continue
        }
    }

    fn open(&self, call: &Call, path: u64, flags: i32) -> Answer {
        let Some(path) = call.path(path) else {
            return Answer::Continue;
        };
        let from = format!("/proc/{}/cwd", call.tid);
        let from = fs::read_link(from).unwrap_or_default();
        let path = follow(&from.join(path));
        // The flags of openat2 lie in memory; every program is known to want close-on-exec there.
        let close_on_exec = call.nr == libc::SYS_openat2 || flags & libc::O_CLOEXEC != 0;
        let give = |file: std::io::Result<File>| match file {
            Ok(file) => Answer::Descriptor(file.into(), close_on_exec),
            Err(error) => Answer::Return(-i64::from(error.raw_os_error().unwrap_or(libc::EIO))),
        };
        let mut state = self.state();
        let text = path.to_string_lossy();
        for (served, own) in [
            ("/sys/module/spidev/parameters/bufsiz", "bufsiz"),
            ("/sys/bus/spi/devices", "devices"),
        ] {
            if text.trim_end_matches('/') == served {
                let own = if state.sysfs { own } else { "absent" };
                return give(File::open(state.dir.path().join(own)));
            }
        }
        if let Some(below) = text.strip_prefix("/sys/bus/spi/devices/") {
            let own = if state.sysfs { "sysfs" } else { "absent" };
            return give(File::open(state.dir.path().join(own).join(below)));
        }
        let Some(id) = parse_node(&text) else {
            return Answer::Continue;
        };
        let seq = state.seq;
        let Some(node) = state.nodes.get_mut(&id) else {
            return Answer::Continue;
        };
        let selected = node.selected();
        let errno = node.open_errno;
        if errno == 0 && !still_open(&node.openers, &node.file) {
            // The last close resets what SPI_IOC_WR_MAX_SPEED_HZ had set.
            node.node.speed_hz = node.node.max_speed_hz;
            node.openers.clear();
        }
        let answer = if errno != 0 {
            Answer::Return(-i64::from(errno))
        } else {
            node.openers.push(call.tid);
            // A description of its own for each open: flock(2) conflicts as on a real node.
            give(OpenOptions::new().read(true).write(true).open(&node.file))
        };
        state.seq += 1;
        let (at, selected) = (Instant::now(), (selected, selected));
        let ret = -i64::from(errno);
        let (tid, device) = (call.tid, id);
        state.record(Record {
            seq,
            at,
            tid,
            device,
            request: 0,
            kind: Kind::Open,
            ret,
            selected,
            edges: 0,
        });
        answer
    }

    fn ruleset(&self, call: &Call) -> Answer {
        let asks_version = call.args[2] & 1 != 0;
        while self.state().landlock == Landlock::Waits && call.alive() {
            std::thread::sleep(Duration::from_millis(2));
        }
        match self.state().landlock {
            Landlock::Absent => Answer::Return(-i64::from(libc::ENOSYS)),
            Landlock::Refuses if !asks_version => Answer::Return(-i64::from(libc::EMFILE)),
            Landlock::Kernel | Landlock::Refuses | Landlock::Waits => Answer::Continue,
        }
    }

    fn ioctl(&self, call: &Call) -> Answer {
        let target = fs::read_link(format!("/proc/{}/fd/{}", call.tid, call.args[0] as i32));
        let state = self.state();
        let found = target.ok().and_then(|file| {
            state
                .nodes
                .iter()
                .find(|(_, node)| node.file == file)
                .map(|(id, _)| *id)
        });
        let Some(id) = found else {
            return Answer::Continue;
        };
        let before = (state.nodes[&id].selected(), state.nodes[&id].edges);
        let request = call.args[1] as u32;
        let (mut state, kind, outcome) = self.execute(state, id, call, request);
        let seq = state.seq;
        state.seq += 1;
        let node = &state.nodes[&id];
        let (selected, edges) = (
            (before.0, node.selected()),
            node.edges.saturating_sub(before.1),
        );
        let ret = outcome.unwrap_or_else(|errno| -i64::from(errno));
        let (at, tid, device) = (Instant::now(), call.tid, id);
        state.record(Record {
            seq,
            at,
            tid,
            device,
            request,
            kind,
            ret,
            selected,
            edges,
        });
        self.0.1.notify_all();
        Answer::Return(ret)
    }

    fn execute<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: Id,
        call: &Call,
        request: u32,
    ) -> (MutexGuard<'a, State>, Kind, Result<i64, i32>) {
        let State {
            nodes, controllers, ..
        } = &mut *state;
        let (node, controller) = (nodes.get_mut(&id).unwrap(), &controllers[&id.0]);
        let (arg, mut dead) = (call.args[2], node.ioctl_errno);
        if dead == 0 && node.request_errno.0 == request {
            dead = node.request_errno.1;
        }
        if let Some((value, len)) = rules::get(request, &node.node, controller) {
            let written =
                dead == 0 && sys::write_memory(call.tid, arg, &value.to_ne_bytes()[..len]);
            let outcome = if dead != 0 {
                Err(dead)
            } else if written {
                Ok(0)
            } else {
                Err(libc::EFAULT)
            };
            return (state, Kind::Read(value), outcome);
        }
        if let Some(len) = rules::argument_len(request) {
            let mut raw = [0; 4];
            let readable = sys::read_memory(call.tid, arg, &mut raw[..len]);
            let value = u32::from_ne_bytes(raw);
            let outcome = match rules::set(request, value, &node.node, controller) {
                _ if dead != 0 => Err(dead),
                _ if !readable => Err(libc::EFAULT),
                Ok(next) => {
                    node.node = next;
                    // spi_setup() ends by forcing chip select off.
                    node.set_cs(false, controller.gpio_cs);
                    Ok(0)
                }
                Err(errno) => Err(errno),
            };
            return (state, Kind::Write(value), outcome);
        }
        if request & !(0x3fff << 16) != rules::message(0) {
            return (
                state,
                Kind::Unknown,
                Err(if dead != 0 { dead } else { libc::ENOTTY }),
            );
        }
        if let Some(before) = &mut state.nodes.get_mut(&id).unwrap().before {
            before();
        }
        let (mut transfers, prepared) = copy_in(&state, id, call, request);
        match prepared {
            Ok(0) => (state, Kind::Message(transfers), Ok(0)),
            Ok(_) => {
                let (state, outcome) = self.wire(state, id, call, &mut transfers);
                (state, Kind::Message(transfers), outcome)
            }
            Err(errno) => (state, Kind::Message(transfers), Err(errno)),
        }
    }

    /// `spi_sync()` and the copying out of rx.
    fn wire<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        id: Id,
        call: &Call,
        transfers: &mut [Transfer],
    ) -> (MutexGuard<'a, State>, Result<i64, i32>) {
        let bus = id.0;
        let mut state = self
            .0
            .1
            .wait_while(state, |s| s.busy.contains(&bus))
            .expect("state");
        let gpio = state.controllers[&bus].gpio_cs;
        let node = state.nodes.get_mut(&id).unwrap();
        let due = node.messages;
        node.messages += 1;
        let position = node.faults.iter().position(|(nth, _)| *nth == due);
        let fault = position.map(|n| node.faults.remove(n).1);
        node.faults.retain(|(nth, _)| *nth > due);
        if let Some(Fault::Errno(When::BeforeWire, errno)) = fault {
            return (state, Err(errno));
        }
        if let Err(errno) =
            rules::validate(transfers, &state.nodes[&id].node, &state.controllers[&bus])
        {
            return (state, Err(errno));
        }
        state.nodes.get_mut(&id).unwrap().set_cs(true, gpio);
        state.busy.push(bus);
        self.0.1.notify_all();
        let time = if state.real_time {
            wire_time(transfers, &state, id)
        } else {
            Duration::ZERO
        };
        drop(state);
        match &fault {
            Some(Fault::Wait(more)) => std::thread::sleep(time + *more),
            Some(Fault::Gate(gate)) => wait_gate(gate, call),
            _ => std::thread::sleep(time),
        }
        let mut state = self.state();
        state.busy.retain(|b| *b != bus);
        let node = state.nodes.get_mut(&id).unwrap();
        let half = matches!(fault, Some(Fault::Errno(When::OnWire, _)));
        let count = transfers.len();
        for (n, transfer) in transfers.iter_mut().enumerate() {
            let out = if transfer.tx_buf == 0 {
                vec![0; transfer.len as usize]
            } else {
                transfer.tx.clone()
            };
            if half {
                node.peer.exchange(&out[..out.len() / 2]);
                break;
            }
            // Without any buffer the core clocks nothing and only logs an error.
            let used = transfer.tx_buf != 0 || transfer.rx_buf != 0;
            if used {
                transfer.rx = node.peer.exchange(&out);
            }
            if transfer.cs_change != 0 && n + 1 < count {
                node.set_cs(false, gpio);
                node.set_cs(true, gpio);
            }
        }
        let keep = transfers.last().is_some_and(|last| last.cs_change != 0);
        if half || !keep {
            node.set_cs(false, gpio);
        }
        if let Some(Fault::Errno(_, errno)) = fault {
            return (state, Err(errno));
        }
        for transfer in transfers.iter() {
            if transfer.rx_buf != 0 && !sys::write_memory(call.tid, transfer.rx_buf, &transfer.rx) {
                return (state, Err(libc::EFAULT));
            }
        }
        let total: i64 = transfers.iter().map(|t| i64::from(t.len)).sum();
        let short = matches!(fault, Some(Fault::Short));
        (state, Ok(if short { total / 2 } else { total }))
    }
}

/// `spidev_message()` up to the point where the bus is asked: the transfers with their tx, and their number.
fn copy_in(
    state: &State,
    id: Id,
    call: &Call,
    request: u32,
) -> (Vec<Transfer>, Result<usize, i32>) {
    let node = &state.nodes[&id];
    let size = (request >> 16 & 0x3fff) as usize;
    if node.ioctl_errno != 0 {
        return (Vec::new(), Err(node.ioctl_errno));
    }
    if !size.is_multiple_of(Transfer::SIZE) {
        return (Vec::new(), Err(libc::EINVAL));
    }
    let mut raw = vec![0; size];
    if !sys::read_memory(call.tid, call.args[2], &mut raw) {
        return (Vec::new(), Err(libc::EFAULT));
    }
    let mut transfers: Vec<_> = raw
        .chunks_exact(Transfer::SIZE)
        .map(Transfer::parse)
        .collect();
    let over = rules::fits(&transfers, state.bufsiz, state.align).err();
    let readable = over.unwrap_or(transfers.len());
    for transfer in transfers[..readable].iter_mut().filter(|t| t.tx_buf != 0) {
        let mut tx = vec![0; transfer.len as usize];
        if !sys::read_memory(call.tid, transfer.tx_buf, &mut tx) {
            return (transfers, Err(libc::EFAULT));
        }
        transfer.tx = tx;
    }
    let count = transfers.len();
    (
        transfers,
        if over.is_some() {
            Err(libc::EMSGSIZE)
        } else {
            Ok(count)
        },
    )
}

fn wire_time(transfers: &[Transfer], state: &State, id: Id) -> Duration {
    let (node, controller) = (&state.nodes[&id].node, &state.controllers[&id.0]);
    transfers
        .iter()
        .map(|t| {
            let hz = u64::from(rules::speed(t, node, controller)).max(1);
            Duration::from_nanos(u64::from(t.len) * 8_000_000_000 / hz)
                + Duration::from_micros(t.delay_usecs.into())
        })
        .sum()
}

fn wait_gate(gate: &(Mutex<Passage>, Condvar), call: &Call) {
    let mut passage = gate.0.lock().unwrap();
    if *passage == Passage::Ahead {
        *passage = Passage::Reached;
        gate.1.notify_all();
    }
    while *passage != Passage::Released && call.alive() {
        passage = gate
            .1
            .wait_timeout(passage, Duration::from_millis(50))
            .unwrap()
            .0;
    }
}

fn still_open(pids: &[u32], file: &Path) -> bool {
    pids.iter().any(|pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.filter_map(|entry| fs::read_link(entry.path()).ok())
            .any(|target| target == file)
    })
}

/// The end of a chain of symbolic links.
fn follow(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    for _ in 0..8 {
        match fs::read_link(&path) {
            Ok(target) if target.is_absolute() => path = target,
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    path
}

fn parse_node(path: &str) -> Option<Id> {
    let (bus, cs) = path.strip_prefix("/dev/spidev")?.split_once('.')?;
    Some((bus.parse().ok()?, cs.parse().ok()?))
}

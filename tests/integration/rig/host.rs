// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host with SPI controllers and `/dev/spidevX.Y` nodes: what a test sets up, breaks and looks at.
//!
//! Owns the lines, the peers, the records and the faults; `spidev` moves them as calls come in.

use super::kernel_rules::{self as rules, Controller};
use super::peer::{Loopback, Peer};
use super::record::Record;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Bus and chip select, the two numbers of `/dev/spidevX.Y`.
pub type Id = (u32, u32);

/// When in a message a fault strikes.
#[allow(
    clippy::enum_variant_names,
    reason = "before, on and after the wire is what they are"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before chip select is asserted (ENOMEM, ESHUTDOWN): the line stays as it was, held or not.
    BeforeWire,
    /// Half of the first transfer was clocked: the core deasserts chip select and nothing is copied out.
    OnWire,
    /// All was clocked and the line is as the message left it, but rx could not be copied out.
    AfterWire,
}

/// What becomes of Landlock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// It is as the kernel below has it.
    Kernel,
    /// There is none.
    Absent,
    /// It is there, and refuses.
    Refuses,
    /// Asking for it takes until something else is said.
    Waits,
}

pub(super) enum Fault {
    Errno(When, i32),
    Short,
    Wait(Duration),
    Gate(Arc<(Mutex<Passage>, Condvar)>),
}

pub(super) struct Node {
    pub(super) node: rules::Device,
    pub(super) native_high: bool,
    pub(super) level: bool,
    pub(super) edges: u32,
    pub(super) peer: Box<dyn Peer>,
    pub(super) file: PathBuf,
    pub(super) open_errno: i32,
    pub(super) ioctl_errno: i32,
    pub(super) request_errno: (u32, i32),
    pub(super) messages: u64,
    pub(super) faults: Vec<(u64, Fault)>,
    pub(super) before: Option<Box<dyn FnMut() + Send>>,
    pub(super) openers: Vec<u32>,
}

impl Node {
    pub(super) fn selected(&self) -> bool {
        self.level == self.native_high
    }

    /// `spi_set_cs()`.
    pub(super) fn set_cs(&mut self, enable: bool, gpio: bool) {
        if gpio && self.node.mode & rules::NO_CS != 0 {
            return;
        }
        let high = if gpio {
            self.native_high
        } else {
            self.node.mode & rules::CS_HIGH != 0
        };
        let level = enable == high;
        if level != self.level {
            self.level = level;
            self.edges += 1;
            let selected = self.selected();
            self.peer.select(selected);
        }
    }
}

/// Who watches instead of the records being kept.
type Observer = Box<dyn FnMut(&Record) + Send>;

pub(super) struct State {
    pub(super) bufsiz: u32,
    pub(super) align: u32,
    pub(super) real_time: bool,
    pub(super) sysfs: bool,
    pub(super) landlock: Landlock,
    pub(super) controllers: BTreeMap<u32, Controller>,
    pub(super) busy: Vec<u32>,
    pub(super) nodes: BTreeMap<Id, Node>,
    pub(super) records: VecDeque<Record>,
    pub(super) observer: Option<Observer>,
    pub(super) seq: u64,
    pub(super) dir: tempfile::TempDir,
}

impl State {
    /// Keeps the record, or shows it to who watches.
    pub(super) fn record(&mut self, record: Record) {
        match &mut self.observer {
            Some(observer) => observer(&record),
            None => self.records.push_back(record),
        }
    }
}

/// The host. Cloning gives another handle of the same one; several daemons may share it.
#[derive(Clone)]
pub struct Host(pub(super) Arc<(Mutex<State>, Condvar)>);

/// How far a message and its gate are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    Ahead,
    Reached,
    Released,
}

/// An SPI transfer that does not end before this is dropped (or released).
pub struct Gate(Arc<(Mutex<Passage>, Condvar)>);

impl Gate {
    /// Waits until the message stands at the gate: its chip select is asserted and nothing was clocked.
    #[track_caller]
    pub fn reached(&self) {
        let ahead = |passage: &mut Passage| *passage == Passage::Ahead;
        let waited = self
            .0
            .1
            .wait_timeout_while(self.0.0.lock().unwrap(), PATIENCE, ahead);
        assert!(
            !waited.unwrap().1.timed_out(),
            "no message came to the gate"
        );
    }

    /// Lets the transfer go on.
    pub fn release(self) {}
}

impl Drop for Gate {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = Passage::Released;
        self.0.1.notify_all();
    }
}

impl Host {
    /// A host without devices, with `bufsiz` 4096 and an alignment of 8 (x86_64).
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("spi")
            .tempdir()
            .expect("directory of the faked nodes");
        fs::create_dir(dir.path().join("devices")).unwrap();
        fs::create_dir(dir.path().join("sysfs")).unwrap();
        let state = State {
            bufsiz: 4096,
            align: 8,
            real_time: false,
            sysfs: true,
            landlock: Landlock::Kernel,
            controllers: BTreeMap::new(),
            busy: Vec::new(),
            nodes: BTreeMap::new(),
            records: VecDeque::new(),
            observer: None,
            seq: 0,
            dir,
        };
        let host = Self(Arc::new((Mutex::new(state), Condvar::new())));
        host.bufsiz(4096)
    }

    /// A host with loopback devices at chip selects 0 up to `count` of bus 0, 10 MHz each.
    pub fn with_devices(count: u32) -> Self {
        let host = Self::new();
        (0..count).fold(host, |host, cs| host.device((0, cs), 10_000_000, Loopback))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Sets the parameter of the spidev module.
    pub fn bufsiz(self, bufsiz: u32) -> Self {
        let mut state = self.state();
        state.bufsiz = bufsiz;
        fs::write(state.dir.path().join("bufsiz"), format!("{bufsiz}\n")).unwrap();
        drop(state);
        self
    }

    /// Sets ARCH_DMA_MINALIGN: 8 on x86_64, 128 on arm64.
    pub fn align(self, align: u32) -> Self {
        self.state().align = align;
        self
    }

    /// Makes `/sys` unreadable (ENOENT), as in a container without it.
    pub fn without_sysfs(self) -> Self {
        self.state().sysfs = false;
        self
    }

    /// Says what becomes of Landlock.
    pub fn landlock(self, landlock: Landlock) -> Self {
        self.set_landlock(landlock);
        self
    }

    /// Says it while a daemon is starting.
    pub fn set_landlock(&self, landlock: Landlock) {
        self.state().landlock = landlock;
    }

    /// Makes messages take their wire time.
    pub fn real_time(self) -> Self {
        self.state().real_time = true;
        self
    }

    /// Changes the controller of a bus; before its devices are added, since they are checked against it.
    pub fn controller(self, bus: u32, change: impl FnOnce(&mut Controller)) -> Self {
        change(self.state().controllers.entry(bus).or_default());
        self
    }

    /// Adds a node, mode 0 and 8 bits, with `peer` at the other end.
    pub fn device(self, id: Id, max_speed_hz: u32, peer: impl Peer + 'static) -> Self {
        self.device_in_mode(id, max_speed_hz, 0, peer)
    }

    /// Adds a node whose device tree says more: CS_HIGH in `mode` makes the line active-high by nature.
    pub fn device_in_mode(
        self,
        id: Id,
        max_speed_hz: u32,
        mode: u32,
        peer: impl Peer + 'static,
    ) -> Self {
        self.neighbour(id);
        let mut state = self.state();
        let controller = state.controllers.entry(id.0).or_default().clone();
        let file = state.dir.path().join(format!("spidev{}.{}", id.0, id.1));
        File::create(&file).unwrap();
        let spidev = format!("sysfs/spi{0}.{1}/spidev/spidev{0}.{1}", id.0, id.1);
        fs::create_dir_all(state.dir.path().join(spidev)).unwrap();
        let native_high = mode & rules::CS_HIGH != 0;
        // As when a device is registered: the word size is not checked, the speed is clamped, a GPIO needs CS_HIGH.
        let forced = if controller.gpio_cs {
            rules::CS_HIGH
        } else {
            0
        };
        let (mode, bits_per_word) = (mode | forced, 0);
        let node = rules::Device {
            mode,
            bits_per_word,
            max_speed_hz,
            speed_hz: 0,
        };
        let mut node = rules::setup(node, &controller).expect("a device that its controller takes");
        node.speed_hz = node.max_speed_hz;
        state.nodes.insert(
            id,
            Node {
                node,
                native_high,
                level: !native_high,
                edges: 0,
                peer: Box::new(peer),
                file,
                open_errno: 0,
                ioctl_errno: 0,
                request_errno: (0, 0),
                messages: 0,
                faults: Vec::new(),
                before: None,
                openers: Vec::new(),
            },
        );
        drop(state);
        self
    }

    /// Lists a device in sysfs that has no node: the one of a kernel driver.
    pub fn neighbour(&self, id: Id) {
        let name = format!("spi{}.{}", id.0, id.1);
        let target = format!(
            "../../../devices/platform/spi/spi_master/spi{}/{name}",
            id.0
        );
        let _ =
            std::os::unix::fs::symlink(target, self.state().dir.path().join("devices").join(&name));
        let _ = fs::create_dir(self.state().dir.path().join("sysfs").join(name));
    }

    /// Calls a device of sysfs otherwise than `spiX.Y`, as ACPI does.
    pub fn named(self, id: Id, name: &str) -> Self {
        let sysfs = self.state().dir.path().join("sysfs");
        fs::rename(
            sysfs.join(format!("spi{}.{}", id.0, id.1)),
            sysfs.join(name),
        )
        .unwrap();
        self
    }

    /// Leaves the line asserted, as a daemon that was killed in the middle does.
    pub fn leave_selected(&self, id: Id) {
        let mut state = self.state();
        let gpio = state.controllers[&id.0].gpio_cs;
        let node = state.nodes.get_mut(&id).unwrap();
        node.set_cs(true, gpio);
        node.edges = 0;
    }

    /// Changes what the kernel keeps of a device, as another opener may.
    pub fn change(&self, id: Id, change: impl FnOnce(&mut rules::Device)) {
        change(&mut self.state().nodes.get_mut(&id).unwrap().node);
    }

    /// What the kernel keeps of a device now.
    pub fn kept(&self, id: Id) -> rules::Device {
        self.state().nodes[&id].node.clone()
    }

    /// Opening the node fails from now on; 0 ends that.
    pub fn fail_open(&self, id: Id, errno: i32) {
        self.state().nodes.get_mut(&id).unwrap().open_errno = errno;
    }

    /// Every ioctl of the node fails from now on before it touches anything (ESHUTDOWN: unplugged); 0 ends that.
    pub fn fail_ioctls(&self, id: Id, errno: i32) {
        self.state().nodes.get_mut(&id).unwrap().ioctl_errno = errno;
    }

    /// The same for ioctls of this number alone.
    pub fn fail_request(&self, id: Id, request: u32, errno: i32) {
        self.state().nodes.get_mut(&id).unwrap().request_errno = (request, errno);
    }

    fn fault(&self, id: Id, nth: u64, fault: Fault) {
        let mut state = self.state();
        let node = state.nodes.get_mut(&id).unwrap();
        let at = node.messages + nth;
        node.faults.push((at, fault));
    }

    /// The `nth` message from now (0 is the next) fails with `errno`.
    pub fn fail_message(&self, id: Id, nth: u64, when: When, errno: i32) {
        self.fault(id, nth, Fault::Errno(when, errno));
    }

    /// The `nth` message from now is carried out, but said to have been shorter.
    pub fn short_message(&self, id: Id, nth: u64) {
        self.fault(id, nth, Fault::Short);
    }

    /// Takes back whatever was to go wrong with a device.
    pub fn mend(&self, id: Id) {
        let mut state = self.state();
        let node = state.nodes.get_mut(&id).unwrap();
        node.faults.clear();
        (node.open_errno, node.ioctl_errno) = (0, 0);
        node.request_errno = (0, 0);
    }

    /// The `nth` message from now stays on the wire for `time`.
    pub fn delay_message(&self, id: Id, nth: u64, time: Duration) {
        self.fault(id, nth, Fault::Wait(time));
    }

    /// The `nth` message from now stays on the wire, chip select asserted, until the gate is released.
    pub fn gate_message(&self, id: Id, nth: u64) -> Gate {
        let gate = Arc::new((Mutex::new(Passage::Ahead), Condvar::new()));
        self.fault(id, nth, Fault::Gate(gate.clone()));
        Gate(gate)
    }

    /// Calls `action` with each message from now on, before the kernel looks at what is to be sent: after the daemon has
    /// made up its mind. It must not use the host.
    pub fn before_each_message(&self, id: Id, action: impl FnMut() + Send + 'static) {
        self.state().nodes.get_mut(&id).unwrap().before = Some(Box::new(action));
    }

    /// Whether the device is selected now.
    pub fn selected(&self, id: Id) -> bool {
        self.state().nodes[&id].selected()
    }

    /// Level changes of the device's line so far.
    pub fn edges(&self, id: Id) -> u32 {
        self.state().nodes[&id].edges
    }

    /// Shows every record to `observer` instead of keeping it: before the call returns, so that whoever sees an effect of
    /// the call knows that its record was seen. The observer must not use the host.
    pub fn watch(&self, observer: impl FnMut(&Record) + Send + 'static) {
        self.state().observer = Some(Box::new(observer));
    }

    /// All records so far.
    pub fn records(&self) -> Vec<Record> {
        self.state().records.iter().cloned().collect()
    }

    /// The messages that reached a device.
    pub fn messages(&self, id: Id) -> Vec<Record> {
        let mut all = self.records();
        all.retain(|r| r.device == id && r.transfers().is_some());
        all
    }

    /// Forgets records and edges: what follows is counted from here.
    pub fn forget(&self) {
        let mut state = self.state();
        state.records.clear();
        state.nodes.values_mut().for_each(|node| node.edges = 0);
    }

    /// Puts something else at the other end.
    pub fn replace_peer(&self, id: Id, peer: impl Peer + 'static) {
        self.state().nodes.get_mut(&id).unwrap().peer = Box::new(peer);
    }
}

/// How long the rig waits for what must happen; generous, since two cores may serve many tests and other work.
pub const PATIENCE: Duration = Duration::from_secs(60);

// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! vhost-user messages as bytes, and the replies that they may have.

use crate::fds::{GUEST_LEN, Kind};
use crate::input::Input;
use crate::ring::{AVAIL, DESC, USED};

/// Bytes of a header: request code, flags, size.
const HEADER_LEN: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// As the daemon has it.
const MAX_BODY_LEN: usize = 4096;

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;
const GET_MAX_MEM_SLOTS: u32 = 36;
const ADD_MEM_REG: u32 = 37;
const REM_MEM_REG: u32 = 38;

/// Requests that the daemon serves.
const SERVED: [u32; 22] = [
    1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 25, 34, 36, 37, 38,
];
/// Requests that are always answered.
const ANSWERED: [u32; 6] = [
    GET_FEATURES,
    GET_VRING_BASE,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_CONFIG,
    GET_MAX_MEM_SLOTS,
];

/// INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1, IN_ORDER.
const FEATURES: u64 = 1 << 28 | 1 << 29 | 1 << 30 | 1 << 32 | 1 << 35;
/// MQ, REPLY_ACK, CONFIG, RESET_DEVICE, CONFIGURE_MEM_SLOTS.
const PROTOCOL_FEATURES: u64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 13 | 1 << 15;
/// Where the front-end has the guest's memory.
const USER: u64 = 0x10_0000;
/// Descriptors in the ring of a good front-end.
pub const RING_SIZE: u16 = 16;

/// A message on its way.
#[derive(Debug, Default)]
pub struct Message {
    /// Header and body.
    pub bytes: Vec<u8>,
    /// What goes with it.
    pub kinds: Vec<Kind>,
}

fn message(code: u32, flags: u32, body: &[u8], kinds: &[Kind]) -> Message {
    let size = u32::try_from(body.len()).unwrap();
    let header = [code, flags, size].into_iter().flat_map(u32::to_le_bytes);
    Message {
        bytes: header.chain(body.iter().copied()).collect(),
        kinds: kinds.to_vec(),
    }
}

fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn u32s(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

fn user(address: usize) -> u64 {
    USER + u64::try_from(address).unwrap()
}

/// The message that gives the daemon all of the guest's memory.
fn memory(flags: u32, is_added: bool) -> Message {
    let region = [0, u64::try_from(GUEST_LEN).unwrap(), USER, 0];
    if is_added {
        let body = [&[0], &region[..]].concat();
        return message(ADD_MEM_REG, flags, &u64s(&body), &[Kind::Memory]);
    }
    let table = [u32s(&[1, 0]), u64s(&region)].concat();
    message(SET_MEM_TABLE, flags, &table, &[Kind::Memory])
}

/// All messages of a good front-end up to a ring that runs; the input may leave some out.
pub fn start(input: &mut Input) -> Vec<Message> {
    let (leave_out, choices) = (input.u16(), input.u8());
    let flags = if choices & 1 == 0 {
        VERSION
    } else {
        VERSION | NEED_REPLY
    };
    let without = if choices & 2 == 0 { 0 } else { 1 << 29 };
    let protocol = if choices & 4 == 0 { 1 << 30 } else { 0 };
    let memory = memory(flags, choices & 8 == 0);
    let addresses = u64s(&[0, user(DESC), user(USED), user(AVAIL), 0]);
    let features = FEATURES & !without & !protocol;
    let all = [
        message(SET_OWNER, VERSION, &[], &[]),
        message(GET_FEATURES, VERSION, &[], &[]),
        message(
            SET_PROTOCOL_FEATURES,
            VERSION,
            &u64s(&[PROTOCOL_FEATURES]),
            &[],
        ),
        message(SET_FEATURES, flags, &u64s(&[features]), &[]),
        memory,
        message(SET_VRING_NUM, flags, &u32s(&[0, RING_SIZE.into()]), &[]),
        message(SET_VRING_ADDR, flags, &addresses, &[]),
        message(SET_VRING_BASE, flags, &u32s(&[0, 0]), &[]),
        message(SET_VRING_CALL, flags, &u64s(&[0]), &[Kind::Event]),
        message(SET_VRING_ERR, flags, &u64s(&[0]), &[Kind::Event]),
        message(SET_VRING_KICK, flags, &u64s(&[0]), &[Kind::Event]),
        message(SET_VRING_ENABLE, flags, &u32s(&[0, 1]), &[]),
    ];
    let kept = all.into_iter().enumerate();
    kept.filter(|(number, _)| leave_out >> number & 1 == 0)
        .map(|(_, message)| message)
        .collect()
}

/// One message, as wrong as the input wants it.
pub fn any(input: &mut Input) -> Message {
    let code = match input.u8() {
        choice @ 0..=241 => SERVED[usize::from(choice) % SERVED.len()],
        242..=253 => input.u8().into(),
        _ => input.u32(),
    };
    let odd = input.u8();
    let flags = match odd & 3 {
        0 | 1 => VERSION,
        2 => VERSION | NEED_REPLY,
        _ => input.u8().into(),
    };
    let body = if odd & 0x1c == 0x1c {
        raw(input)
    } else {
        body(input, code)
    };
    let mut kinds = match code {
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => vec![Kind::Event],
        ADD_MEM_REG | SET_MEM_TABLE => vec![Kind::Memory],
        _ => Vec::new(),
    };
    if odd & 0x60 == 0x60 {
        let count = usize::from(input.u8()) % 40;
        kinds = (0..count).map(|_| kind(input)).collect();
    } else if odd & 0x20 != 0 {
        kinds.iter_mut().for_each(|each| *each = kind(input));
    }
    let mut message = message(code, flags, &body, &kinds);
    if odd & 0x80 != 0 {
        let size = u32::from(input.u16());
        let size = if size == 0xffff { u32::MAX } else { size };
        message.bytes[8..12].copy_from_slice(&size.to_le_bytes());
    }
    message
}

fn kind(input: &mut Input) -> Kind {
    match input.u8() {
        255 => Kind::Full,
        choice => Kind::ALL[usize::from(choice) % Kind::ALL.len()],
    }
}

fn raw(input: &mut Input) -> Vec<u8> {
    let len = usize::from(input.u16()) % (MAX_BODY_LEN + 16);
    let mut bytes = input.take(len).to_vec();
    bytes.resize(len, 0);
    bytes
}

fn body(input: &mut Input, code: u32) -> Vec<u8> {
    let numbers = [0, 1, 2, 0x1000, 0x1_0000, USER, FEATURES, PROTOCOL_FEATURES];
    let mut number = || input.number(&numbers);
    let low = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap();
    match code {
        SET_MEM_TABLE => table(input),
        SET_FEATURES | SET_PROTOCOL_FEATURES => {
            let all = if code == SET_FEATURES {
                FEATURES
            } else {
                PROTOCOL_FEATURES
            };
            u64s(&[all & !number()])
        }
        SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
            // The index, and whether there is no fd.
            u64s(&[u64::from(low(number()) & 0x101)])
        }
        SET_VRING_NUM | SET_VRING_BASE | GET_VRING_BASE | SET_VRING_ENABLE => {
            u32s(&[low(number()), low(number())])
        }
        SET_VRING_ADDR => {
            let mut part = |at| user(at).wrapping_add(number());
            let parts = [part(DESC), part(USED), part(AVAIL)];
            u64s(&[low(number()).into(), parts[0], parts[1], parts[2], 0])
        }
        ADD_MEM_REG | REM_MEM_REG => u64s(&[0, number(), number(), number(), number()]),
        GET_CONFIG | SET_CONFIG => {
            let (offset, len) = (low(number()), u32::from(input.u8()));
            let fields = u32s(&[offset, len, 0]);
            let payload = vec![0xa5; usize::try_from(len).unwrap()];
            [fields, payload].concat()
        }
        _ => Vec::new(),
    }
}

fn table(input: &mut Input) -> Vec<u8> {
    let count = u32::from(input.u8() % 40);
    let numbers = [0, 0x1000, 0x1_0000, USER, 0x2000, 0x20_0000];
    let regions = (0..count * 4)
        .map(|_| input.number(&numbers))
        .collect::<Vec<_>>();
    [u32s(&[count, 0]), u64s(&regions)].concat()
}

/// A header and where the message behind it ends; `None` if it has not all come.
fn next_message(stream: &[u8]) -> Option<([u32; 3], usize)> {
    let header = stream.get(..HEADER_LEN)?;
    let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let fields = [field(0), field(4), field(8)];
    Some((fields, HEADER_LEN + usize::try_from(fields[2]).unwrap()))
}

/// What was sent, as far as it must have been read.
#[derive(Debug, Default)]
pub struct Asked {
    /// Of each message: the request, and whether it must be answered and may be.
    messages: Vec<(u32, bool, bool)>,
    /// The last of them has a header that must end the connection.
    ends: bool,
}

impl Asked {
    /// What `stream` asks.
    pub fn new(mut stream: &[u8]) -> Self {
        let mut asked = Self::default();
        while let Some(([code, flags, size], end)) = next_message(stream) {
            let known = SERVED.contains(&code) && flags & !NEED_REPLY == VERSION;
            if !known || usize::try_from(size).unwrap() > MAX_BODY_LEN {
                // It may be refused by an answer.
                asked.messages.push((code, false, flags & NEED_REPLY != 0));
                asked.ends = true;
                break;
            }
            let Some(rest) = stream.get(end..) else {
                // For the fds that came with its header it may be refused already.
                asked.messages.push((code, false, flags & NEED_REPLY != 0));
                break;
            };
            let must = ANSWERED.contains(&code);
            asked
                .messages
                .push((code, must, must || flags & NEED_REPLY != 0));
            stream = rest;
        }
        asked
    }

    /// Checks that `replies` answer what was asked, in order; all of it if the connection lives.
    pub fn check(&self, mut replies: &[u8], is_alive: bool) {
        let mut messages = self.messages.iter();
        while let Some(([code, flags, _], end)) = next_message(replies) {
            assert_eq!(flags, VERSION | REPLY);
            replies = replies.get(end..).expect("a whole reply");
            let answered = messages.find(|(asked, must, may)| {
                let is_answered = *may && *asked == code;
                assert!(
                    is_answered || !must,
                    "{asked} was not answered, but {code} is"
                );
                is_answered
            });
            assert!(answered.is_some(), "{code} is answered, but was not asked");
        }
        assert!(replies.is_empty(), "part of a reply");
        if is_alive {
            assert!(!self.ends, "a wrong header was accepted");
            assert!(messages.all(|(_, must, _)| !must), "not answered");
        }
    }
}

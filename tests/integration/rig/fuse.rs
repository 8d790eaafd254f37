// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file system whose server, a thread of the test, answers until it is told to fall silent: whoever then asks it for
//! anything waits until the test lets go.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

// Of <linux/fuse.h>.
const GETATTR: u32 = 3;
const FORGET: u32 = 2;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;

/// A mounted file system with nothing in its root.
pub struct Fuse {
    at: tempfile::TempDir,
    silent: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts one.
    #[track_caller]
    pub fn mount() -> Self {
        let at = tempfile::tempdir().expect("mount point");
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let device = device.expect("this machine has no FUSE");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let (path, options) = (path(&at), CString::new(options).unwrap());
        let (kind, flags) = (c"fuse".as_ptr(), libc::MS_NOSUID | libc::MS_NODEV);
        let mounted =
            unsafe { libc::mount(kind, path.as_ptr(), kind, flags, options.as_ptr().cast()) };
        assert_eq!(mounted, 0, "mount: {}", std::io::Error::last_os_error());
        let silent = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&silent);
        let server = std::thread::spawn(move || serve(device, &told));
        Self {
            at,
            silent,
            server: Some(server),
        }
    }

    /// Its root, opened.
    pub fn root(&self) -> File {
        File::open(self.at.path()).expect("open the root")
    }

    /// Answers nothing any more.
    pub fn fall_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Ends all that waits for the server, and the server.
        let flags = libc::MNT_FORCE | libc::MNT_DETACH;
        unsafe { libc::umount2(path(&self.at).as_ptr(), flags) };
        let _ = self.server.take().map(JoinHandle::join);
    }
}

fn path(at: &tempfile::TempDir) -> CString {
    CString::new(at.path().as_os_str().as_bytes()).unwrap()
}

fn serve(mut device: File, silent: &AtomicBool) {
    let mut request = vec![0; 1 << 17];
    while device.read(&mut request).is_ok() {
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        if silent.load(Ordering::SeqCst) || opcode == FORGET {
            continue;
        }
        let body = answer(opcode);
        let error = if body.is_none() { -libc::ENOSYS } else { 0 };
        let body = body.unwrap_or_default();
        let len = 16 + body.len() as u32;
        let header = [
            &len.to_ne_bytes()[..],
            &error.to_ne_bytes(),
            &request[8..16],
        ];
        let _ = device.write(&[&header.concat(), &body[..]].concat());
    }
}

/// The body of an answer; `None` where the server does not know the request.
fn answer(opcode: u32) -> Option<Vec<u8>> {
    match opcode {
        // Version 7.31, writes of up to a page.
        INIT => Some(words(&[7, 31, 0, 0, 0, 4096, 1], 64)),
        // A directory of root's, for everybody; nothing of it may be kept.
        GETATTR => {
            let mut attributes = vec![0; 25];
            (attributes[4], attributes[19], attributes[20]) = (1, libc::S_IFDIR | 0o755, 1);
            Some(words(&attributes, 104))
        }
        OPENDIR => Some(words(&[], 16)),
        _ => None,
    }
}

fn words(words: &[u32], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(len, 0);
    bytes
}

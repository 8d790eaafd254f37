// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Files that make whoever touches them wait until the test lets go: a thread of ours stands in the middle of a system
//! call that holds a lock of theirs, since the page that it needs is never filled (`userfaultfd`).

use super::sys;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;

const PAGE_LEN: usize = 4096;
const API: libc::Ioctl = 0xc018_aa3f_u32 as libc::Ioctl;
const ZEROPAGE: libc::Ioctl = 0xc020_aa04_u32 as libc::Ioctl;
const REGISTER: libc::Ioctl = 0xc020_aa00_u32 as libc::Ioctl;

/// What is to be given to the daemon. The test's own close of it may turn out to be the last, and would wait as well.
pub struct Given(Option<OwnedFd>);

impl AsRawFd for Given {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let fd = self.0.take();
        std::thread::spawn(move || drop(fd));
    }
}

/// A thread that waits inside of a system call, for as long as this lives.
pub struct Stall {
    faults: OwnedFd,
    page: usize,
    thread: Option<JoinHandle<()>>,
    /// What the thread's call is about.
    _kept: Vec<OwnedFd>,
}

impl Drop for Stall {
    fn drop(&mut self) {
        // `struct uffdio_zeropage`. Closing the userfaultfd would do, but a child of another test may have it too.
        let mut fill = [self.page as u64, PAGE_LEN as u64, 0, 0];
        unsafe { libc::ioctl(self.faults.as_raw_fd(), ZEROPAGE, fill.as_mut_ptr()) };
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Stall {
    /// Runs `call` on a page that is never filled.
    fn new(kept: Vec<OwnedFd>, call: impl FnOnce(*mut libc::c_void) + Send + 'static) -> Self {
        let (faults, page) = absent_page();
        let thread = std::thread::spawn(move || {
            call(std::ptr::with_exposed_provenance_mut(page));
            unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(page), PAGE_LEN) };
        });
        let mut event = [0; 32];
        let read = std::fs::File::from(faults.try_clone().expect("dup")).read(&mut event);
        assert_eq!(read.expect("a page fault"), 32);
        Self {
            faults,
            page,
            thread: Some(thread),
            _kept: kept,
        }
    }

    /// The reading end of a pipe whose lock a writer holds: its last close waits.
    pub fn pipe() -> (Self, Given) {
        let mut fds = [0; 2];
        sys::check(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }.into()).expect("pipe");
        let [reader, writer] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        let fd = writer.as_raw_fd();
        let stall = Self::new(vec![writer], move |page| {
            unsafe { libc::write(fd, page, PAGE_LEN) };
        });
        (stall, Given(Some(reader)))
    }

    /// A connected TCP socket whose lock a sender holds: everything about it waits.
    pub fn tcp() -> (Self, Given) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port of the loopback");
        let here = TcpStream::connect(listener.local_addr().unwrap()).expect("connect");
        let (there, _) = listener.accept().expect("accept");
        let given = OwnedFd::from(here.try_clone().expect("dup"));
        let fd = here.as_raw_fd();
        let stall = Self::new(vec![here.into(), there.into()], move |page| {
            unsafe { libc::send(fd, page, PAGE_LEN, libc::MSG_NOSIGNAL) };
        });
        (stall, Given(Some(given)))
    }

    /// An eventfd that an epoll set watches whose lock a waiter holds: its last close waits.
    pub fn eventfd() -> (Self, Given) {
        let fd = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let eventfd = unsafe { OwnedFd::from_raw_fd(fd) };
        let fd = sys::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into());
        let epoll = unsafe { OwnedFd::from_raw_fd(fd.expect("epoll") as RawFd) };
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        let (set, fd) = (epoll.as_raw_fd(), eventfd.as_raw_fd());
        let added = unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event) };
        assert_eq!(added, 0);
        let stall = Self::new(vec![epoll], move |page| {
            unsafe { libc::epoll_wait(set, page.cast(), 1, -1) };
        });
        (stall, Given(Some(eventfd)))
    }
}

/// A page that has no memory, and the userfaultfd that keeps it so.
fn absent_page() -> (OwnedFd, usize) {
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    let fd = sys::check(fd).expect("userfaultfd, which only root may have everywhere");
    let faults = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_LEN, prot, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    // `struct uffdio_api` of version 0xaa, and `struct uffdio_register` for missing pages.
    let mut api = [0xaa_u64, 0, 0];
    let mut register = [page.expose_provenance() as u64, PAGE_LEN as u64, 1, 0];
    let started = unsafe { libc::ioctl(faults.as_raw_fd(), API, api.as_mut_ptr()) };
    let added = unsafe { libc::ioctl(faults.as_raw_fd(), REGISTER, register.as_mut_ptr()) };
    assert_eq!((started, added), (0, 0), "userfaultfd");
    (faults, page.expose_provenance())
}

//! The connection of a front-end: what lasts as long as it does, and its end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use vhost::vhost_user::BackendReqHandler;

use crate::os::deferred_close;
use crate::os::epoll::Poller;
use crate::os::ffi::shut_down;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::gate;

/// A front-end that is connected.
pub(super) struct Connection {
    pub(super) handler: BackendReqHandler<Backend>,
    pub(super) backend: Arc<Backend>,
    /// Duplicates of the fds that came with the message that is being handled.
    pub(super) held: Vec<OwnedFd>,
    /// When the rest of a message must be there.
    pub(super) deadline: Option<Instant>,
    pub(super) hung_up: bool,
}

impl Connection {
    /// A new one, whose messages `backend` will handle.
    pub(super) fn new(stream: UnixStream, backend: Backend) -> Self {
        #[expect(
            clippy::arc_with_non_send_sync,
            reason = "the vhost crate asks for an Arc"
        )]
        let backend = Arc::new(backend);
        Self {
            handler: BackendReqHandler::from_stream(stream, Arc::clone(&backend)),
            backend,
            held: Vec::new(),
            deadline: None,
            hung_up: false,
        }
    }

    /// Closes it, without waiting for what that may mean for what the front-end brought or still
    /// has queued.
    pub(super) fn end(self, poller: &Poller) {
        let fd = self.handler.as_raw_fd();
        // The last close, which would remove it, is not ours.
        poller.remove(fd);
        // The front-end sees the end now, whenever the kernel gets to it.
        shut_down(fd);
        self.backend.clear();
        // With nothing in its queue, which takes nothing any more, its close is quick.
        if !gate::is_drained(fd) {
            deferred_close::throw_away(self.handler);
        }
        self.held
            .into_iter()
            .for_each(deferred_close::throw_away_fd);
        deferred_close::collect();
    }
}
